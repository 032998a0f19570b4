"""What part of a history a run may see, and the features that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.clock import CLOCK_FIELDS
from sostenuto.features.match import match_levels, match_names
from sostenuto.features.popularity import POPULARITY_FIELDS
from sostenuto.schema.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from sostenuto.schema.features import FeatureSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryView:
    """One view for training, evaluation and serving alike; it is stored with the model."""

    # newest behaviours kept, with the rest of the moment that the cut would split (behaviours of one moment have no
    # order); None = the whole history. Match features see the same behaviours.
    recent: int | None = None
    match: bool = True  # hand over match features
    content: tuple[str, ...] | None = None  # names of item content for rankers that read some; None = all there is

    def __post_init__(self) -> None:
        if self.content is not None and len(set(self.content)) < len(self.content):
            raise SpecError(
                f"HistoryView.content must be distinct names, got {', '.join(self.content)}; name each once"
            )
        if self.recent is not None and self.recent < 1:
            raise SpecError(f"HistoryView.recent must be at least 1 or none, got {self.recent}; leave it out for all")

    def start(self, time_ms: npt.NDArray[Any], low: int, high: int) -> int:
        """Return where the kept part of the behaviours low .. high begins; `time_ms` never decreases there."""
        if self.recent is None or high - low <= self.recent:
            return low
        cut = high - self.recent
        return low + int(np.searchsorted(time_ms[low:high], time_ms[cut], side="left"))


def view_features(prepared: FeatureSpec, view: HistoryView) -> FeatureSpec:
    """Return what a ranker is built with: the prepared features plus clock, popularity and match features.

    Raises:
        SpecError: the view names content that is not there.
    """
    content = {f.name: f for f in prepared.content}
    for name in view.content or ():
        if name not in content:
            raise SpecError(
                f"view.content must name content of the prepared folder ({', '.join(content) or 'it has none'}), got "
                f"{name!r}.{did_you_mean(name, content)} Build it with `sostenuto content build`"
            )
    return replace(
        prepared,
        candidate_fields=prepared.candidate_fields + POPULARITY_FIELDS,
        context_fields=prepared.context_fields + CLOCK_FIELDS,
        match=match_names(match_levels(prepared)) if view.match else (),
        content=tuple(content[name] for name in (content if view.content is None else view.content)),
    )


__all__ = ["HistoryView", "view_features"]
