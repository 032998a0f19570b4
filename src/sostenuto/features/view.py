"""What part of a history a run may see, and the features that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.clock import CLOCK_FIELDS
from sostenuto.features.match import match_levels, match_names
from sostenuto.features.popularity import POPULARITY_FIELDS
from sostenuto.schema.errors import SpecError

if TYPE_CHECKING:
    from sostenuto.schema.features import FeatureSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryView:
    """One view for training, evaluation and serving alike; it is stored with the model."""

    # newest behaviours kept, with the rest of the moment that the cut would split (behaviours of one moment have no
    # order); None = the whole history. Match features see the same behaviours.
    recent: int | None = None
    match: bool = True  # hand over match features

    def __post_init__(self) -> None:
        if self.recent is not None and self.recent < 1:
            raise SpecError(f"HistoryView.recent must be at least 1 or none, got {self.recent}; leave it out for all")

    def start(self, time_ms: npt.NDArray[Any], low: int, high: int) -> int:
        """Return where the kept part of the behaviours low .. high begins; `time_ms` never decreases there."""
        if self.recent is None or high - low <= self.recent:
            return low
        cut = high - self.recent
        return low + int(np.searchsorted(time_ms[low:high], time_ms[cut], side="left"))


def view_features(prepared: FeatureSpec, view: HistoryView) -> FeatureSpec:
    """Return what a ranker is built with: the prepared features plus clock, popularity and match features."""
    return replace(
        prepared,
        candidate_fields=prepared.candidate_fields + POPULARITY_FIELDS,
        context_fields=prepared.context_fields + CLOCK_FIELDS,
        match=match_names(match_levels(prepared)) if view.match else (),
    )


__all__ = ["HistoryView", "view_features"]
