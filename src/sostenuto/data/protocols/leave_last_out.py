"""Protocol `leave-last-out`: each user's last moment is test, the one before is validation, earlier ones train.

Users with fewer than three moments only train. Known weakness of this split, whoever uses it: one user's training may
lie after another's test, so a model can learn the future popularity of items. Use `global-time` where you can; this
protocol is here to compare with papers. Negatives still come from strictly before their own request.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sostenuto.data.prepared import Array, Protocol
from sostenuto.data.protocols.core import Core, MadeRequests, event_users
from sostenuto.data.protocols.popularity_sampling import (
    PIECE,
    Groups,
    SamplingSettings,
    group_events,
    recorded,
    sampled_requests,
)
from sostenuto.data.protocols.split_times import read_settings, span

FEWEST_MOMENTS = 3
NEVER = np.iinfo(np.int64).max


class LeaveLastOutSettings(SamplingSettings):
    """Settings of `leave-last-out`."""


def _splits(groups: Groups) -> Array:
    """Return (G,) int8 0 train, 1 valid, 2 test; groups are by user, and sessions are numbered by their first event."""
    bounds = groups.user_bounds()
    behind = bounds[1:][np.diff(bounds) >= FEWEST_MOMENTS]
    split = np.zeros(len(groups), np.int8)
    split[behind - 1] = 2
    split[behind - 2] = 1
    return split


class LeaveLastOut:
    """Splits by user; training is what lies before the user's validation moment."""

    name = "leave-last-out"
    version = 1

    def is_training(self, core: Core, *, settings: Mapping[str, Any]) -> Array:
        """Return (N,) bool: events before their user's validation moment; all events of users with few moments."""
        given = read_settings(LeaveLastOutSettings, self.name, settings)
        return self._training(core, group_events(core, given.moment))

    def _training(self, core: Core, groups: Groups) -> Array:
        split = _splits(groups)
        valid_from = np.full(len(core.behaviours.offsets) - 1, NEVER, np.int64)
        valid = np.flatnonzero(split == 1)
        valid_from[groups.user(valid)] = groups.time_ms(valid)
        times = core.behaviours.time_ms
        training = np.empty(len(times), bool)
        for start in range(0, len(times), PIECE):
            stop = min(start + PIECE, len(times))
            training[start:stop] = times[start:stop] < valid_from[event_users(core.behaviours, start, stop)]
        return training

    def make_requests(self, core: Core, folder: Path, *, seed: int, settings: Mapping[str, Any]) -> MadeRequests:
        """Return the requests of every split; `folder` stays as it is."""
        given = read_settings(LeaveLastOutSettings, self.name, settings)
        groups = group_events(core, given.moment)
        training = self._training(core, groups)
        times = np.asarray(core.behaviours.time_ms)
        made, counts = sampled_requests(
            core,
            groups,
            _splits(groups),
            training,
            given,
            seed=seed,
            training_window=(int(times.min()), int(times.max()) + 1),
            scratch=folder,
        )
        protocol = Protocol(
            name=self.name,
            version=self.version,
            seed=seed,
            lists=("sampled",),
            settings=recorded(given, {}),
            splits={name: span(requests.time_ms) for name, requests in made.items()},
        )
        return MadeRequests(protocol=protocol, requests=made, counts=counts)


__all__ = ["LeaveLastOut", "LeaveLastOutSettings"]
