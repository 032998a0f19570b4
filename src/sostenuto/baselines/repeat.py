"""Repeat: rank what the user met before by how often and how recently, everything else by popularity.

No paper. On repeat-purchase data this rule is a bar that many networks miss. Nothing is fitted: the weights are
constants of the configuration, and the probability of the logit means nothing.

    logit = count_weight * log(1 + n) + recency_weight / (1 + days since last) + popularity_weight * popularity
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sostenuto.baselines.design_matrix import candidate_number, match_column
from sostenuto.baselines.popularity import standardised
from sostenuto.schema.errors import SpecError
from sostenuto.schema.histories import RankerOutput

if TYPE_CHECKING:
    from torch import Tensor

    from sostenuto.schema.features import FeatureSpec
    from sostenuto.schema.histories import Candidates, Context, History


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatConfig:
    """Weights of the rule, each at least 0."""

    count_weight: float = 2.0  # of log(1 + times this user met the item)
    recency_weight: float = 1.0  # of 1 / (1 + days since the last time), 0 if never
    popularity_weight: float = 0.3  # of the standardised popularity: tie-breaker, and order of what was never met

    def __post_init__(self) -> None:
        for name in ("count_weight", "recency_weight", "popularity_weight"):
            if not getattr(self, name) >= 0:
                raise SpecError(f"RepeatConfig.{name} must be at least 0, got {getattr(self, name)}; raise it")


class Repeat:
    """Repeat count and recency of the item, then popularity."""

    def __init__(self, config: RepeatConfig, features: FeatureSpec) -> None:
        self.config = config
        self.count = match_column(features, "item.count", asked_by="repeat")
        self.recency = match_column(features, "item.recency", asked_by="repeat")
        self.field = candidate_number(features, "popularity", asked_by="repeat")

    def encode(self, histories: History) -> Tensor:
        """Return (B,) lengths: what the rule needs of the history comes as match features."""
        return histories.lengths

    def append(self, state: Tensor, events: History) -> Tensor:
        """Fold later events in."""
        return state + events.lengths

    def score(self, state: Tensor, candidates: Candidates, context: Context) -> RankerOutput:
        """Return the weighted sum as logits."""
        c = self.config
        repeats = (
            c.count_weight * candidates.match[:, self.count] + c.recency_weight * candidates.match[:, self.recency]
        )
        return RankerOutput(logits=repeats + c.popularity_weight * standardised(candidates, self.field))


__all__ = ["Repeat", "RepeatConfig"]
