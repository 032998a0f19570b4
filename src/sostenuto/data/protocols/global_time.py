"""Protocol `global-time`: one calendar for everyone: train, from `valid_from` validation, from `test_from` test.

A request is a moment of a user; its positives are what the user did then, its negatives are drawn by popularity.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sostenuto.data.prepared import Array, Protocol
from sostenuto.data.protocols.core import Core, MadeRequests
from sostenuto.data.protocols.popularity_sampling import SamplingSettings, group_events, recorded, sampled_requests
from sostenuto.data.protocols.split_times import SplitStart, read_settings, span, split_of, split_starts


class GlobalTimeSettings(SamplingSettings):
    """Settings of `global-time`."""

    valid_from: SplitStart = 0.8  # a share of all events, or a time
    test_from: SplitStart = 0.9


class GlobalTime:
    """Splits by one pair of times. No event at or after `valid_from` touches vocabularies or statistics."""

    name = "global-time"
    version = 1

    def _starts(self, core: Core, settings: GlobalTimeSettings) -> tuple[int, int]:
        return split_starts(settings.valid_from, settings.test_from, core.behaviours.time_ms, core.time_zone)

    def is_training(self, core: Core, *, settings: Mapping[str, Any]) -> Array:
        """Return (N,) bool: events before `valid_from`."""
        given = read_settings(GlobalTimeSettings, self.name, settings)
        return np.asarray(core.behaviours.time_ms) < self._starts(core, given)[0]

    def make_requests(self, core: Core, folder: Path, *, seed: int, settings: Mapping[str, Any]) -> MadeRequests:
        """Return the requests of every split; `folder` stays as it is."""
        given = read_settings(GlobalTimeSettings, self.name, settings)
        valid_ms, test_ms = self._starts(core, given)
        groups = group_events(core, given.moment)
        split = np.empty(len(groups), np.int8)
        for piece in groups.pieces():
            split[piece] = split_of(groups.time_ms(piece), valid_ms, test_ms)
        times = core.behaviours.time_ms
        made, counts = sampled_requests(
            core,
            groups,
            split,
            np.asarray(times) < valid_ms,
            given,
            seed=seed,
            training_window=(int(np.min(times)), valid_ms),
            scratch=folder,
        )
        protocol = Protocol(
            name=self.name,
            version=self.version,
            seed=seed,
            lists=("sampled",),
            settings=recorded(given, {"valid_from_ms": valid_ms, "test_from_ms": test_ms}),
            splits={name: span(requests.time_ms) for name, requests in made.items()},
        )
        return MadeRequests(protocol=protocol, requests=made, counts=counts)


__all__ = ["GlobalTime", "GlobalTimeSettings"]
