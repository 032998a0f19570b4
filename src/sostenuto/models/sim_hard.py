"""SIM with hard search: search-based user interest modelling (Pi et al., CIKM 2020, arXiv:2006.05639).

The general search unit keeps the newest behaviours of the candidate's own category, looked up in a tree of user and
category; the exact search unit attends over them with times. Differs from the paper: docs/models/sim_hard.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from sostenuto.layers.embedding import TimedVectors
from sostenuto.layers.search_config import SearchConfig
from sostenuto.layers.selector import CategoryIndex, CategorySelector, SearchIndex, searched_kind
from sostenuto.layers.two_stage import Past, TwoStage
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RankerOutput, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class SIMHardConfig(SearchConfig):
    """Sizes and switches of SIM with hard search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SIMHardState:
    """All behaviours, and the tree that finds those of a category."""

    past: Past
    tree: CategoryIndex


class SIMHard(nn.Module):
    """The newest behaviours of the candidate's category, exact attention over them, and a tower."""

    def __init__(self, config: SIMHardConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.two_stage = TwoStage(config, features)
        self.selector = CategorySelector(config.kept)

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.two_stage.calibrate(batches, item_vectors)

    def keep_items(self, catalogue: Catalogue) -> int:
        """Keep every item's vector for scoring; see `schema.ranker.ItemKeeper`."""
        return self.two_stage.keep_items(catalogue)

    def encode(self, histories: History) -> SIMHardState:
        """Embed the behaviours and sort them into the tree."""
        kinds = self._kind(histories.item, histories.category)
        index = SearchIndex(offsets=histories.offsets, time_ms=histories.time_ms, rows=kinds)
        past = self.two_stage.encode(histories, self.two_stage.histories.distinct(histories))
        return SIMHardState(past=past, tree=CategoryIndex.of(index))

    def append(self, state: SIMHardState, events: History) -> SIMHardState:
        """Fold later events in; equal to encoding everything anew."""
        later = self.encode(events)
        return SIMHardState(past=self.two_stage.append(state.past, later.past), tree=state.tree.joined(later.tree))

    def score(self, state: SIMHardState, candidates: Candidates, context: Context) -> RankerOutput:
        """Look each candidate's category up, attend over what is there, and read the tower."""
        target = self.two_stage.of_items(state.past, candidates)["target"]
        kinds = self._kind(candidates.item, candidates.category)
        chosen = self.selector.select(kinds, candidates.offsets, state.tree)
        interest, count = self.two_stage.attend(state.past, context, target, chosen)
        return RankerOutput(logits=self.two_stage.predict(state.past, candidates, context, target, interest, count))

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    def _kind(self, item: Tensor, category: Tensor) -> Tensor:
        return searched_kind(item, category, self.two_stage.num_categories)


__all__ = ["SIMHard", "SIMHardConfig", "SIMHardState"]
