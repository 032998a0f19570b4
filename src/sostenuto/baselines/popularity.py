"""Popularity: rank by how often everyone met an item before the request, over all time or over four weeks.

No paper. The counts are point-in-time and come with the candidates; nothing is fitted, so the logit is the
standardised popularity: it orders candidates, and its probability means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sostenuto.baselines.design_matrix import candidate_number
from sostenuto.schema.histories import RankerOutput

if TYPE_CHECKING:
    from torch import Tensor

    from sostenuto.schema.features import FeatureSpec, Field
    from sostenuto.schema.histories import Candidates, Context, History


@dataclass(frozen=True, kw_only=True, slots=True)
class PopularityConfig:
    """Nothing to choose."""


class Popularity:
    """Rank by the share of all events before the request."""

    def __init__(self, config: PopularityConfig, features: FeatureSpec) -> None:
        self.config = config
        self.field = candidate_number(features, "popularity", asked_by="popularity")

    def encode(self, histories: History) -> Tensor:
        """Return (B,) lengths: the user's own history does not matter."""
        return histories.lengths

    def append(self, state: Tensor, events: History) -> Tensor:
        """Fold later events in."""
        return state + events.lengths

    def score(self, state: Tensor, candidates: Candidates, context: Context) -> RankerOutput:
        """Return standardised popularity as logits."""
        return RankerOutput(logits=standardised(candidates, self.field))


class RecentPopularity:
    """Rank by the share of the events of the four weeks before the request."""

    def __init__(self, config: PopularityConfig, features: FeatureSpec) -> None:
        self.config = config
        self.field = candidate_number(features, "popularity_28d", asked_by="popularity_recent")

    def encode(self, histories: History) -> Tensor:
        """Return (B,) lengths: the user's own history does not matter."""
        return histories.lengths

    def append(self, state: Tensor, events: History) -> Tensor:
        """Fold later events in."""
        return state + events.lengths

    def score(self, state: Tensor, candidates: Candidates, context: Context) -> RankerOutput:
        """Return standardised recent popularity as logits."""
        return RankerOutput(logits=standardised(candidates, self.field))


def standardised(candidates: Candidates, field: Field) -> Tensor:
    """Return the (N,) numeric candidate field, standardised; 0 where missing."""
    return ((candidates.fields[field.name].float() - field.mean) / (field.std or 1.0)).nan_to_num(nan=0.0)


__all__ = ["Popularity", "PopularityConfig", "RecentPopularity", "standardised"]
