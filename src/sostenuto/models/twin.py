"""TWIN: two-stage interest network (Chang et al., KDD 2023, arXiv:2302.02352).

Both stages score a behaviour by the same attention, so the search keeps what the attention would have weighed most.
What depends on the item alone is projected once per behaviour and cached; what only the behaviour has becomes one
number per head. Differs from the paper: docs/models/twin.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import TimedVectors
from sostenuto.layers.search_config import SearchConfig
from sostenuto.layers.selector import ProductSelector, SearchIndex
from sostenuto.layers.two_stage import Past, TwoStage
from sostenuto.ops.selected_attention import selected_attention
from sostenuto.ops.table_rows import few_rows, spread_rows
from sostenuto.ops.top_k import Selected
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RankerOutput, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class TWINConfig(SearchConfig):
    """Sizes and switches of TWIN."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TWINState:
    """All behaviours, and what both stages compare."""

    past: Past
    index: SearchIndex  # rows are (N, H d), W_k k


class TWIN(nn.Module):
    """The behaviours of the highest attention scores, the same attention over them, and a tower."""

    def __init__(self, config: TWINConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.two_stage = TwoStage(config, features)
        self.selector = ProductSelector(config.kept)

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.two_stage.calibrate(batches, item_vectors)

    def keep_items(self, catalogue: Catalogue) -> int:
        """Keep every item's vector and queries for scoring; see `schema.ranker.ItemKeeper`."""
        exact = self.two_stage.exact
        return self.two_stage.keep_items(catalogue, self._asked, [exact.query.weight, exact.log_gain])

    def encode(self, histories: History) -> TWINState:
        """Embed the behaviours and project each distinct item once."""
        distinct = self.two_stage.histories.distinct(histories)
        projected = spread_rows(self.two_stage.exact.key(distinct.key), distinct.place)
        return TWINState(
            past=self.two_stage.encode(histories, distinct),
            index=SearchIndex(offsets=histories.offsets, time_ms=histories.time_ms, rows=projected),
        )

    def append(self, state: TWINState, events: History) -> TWINState:
        """Fold later events in; equal to encoding everything anew."""
        later = self.encode(events)
        return TWINState(past=self.two_stage.append(state.past, later.past), index=state.index.joined(later.index))

    def searched(self, state: TWINState, context: Context) -> list[SearchIndex]:
        """Return per head what the search compares: (N, d + 1), the projected behaviour and its bias."""
        history = state.past.history
        bias = self.two_stage.bias(history.side, self.two_stage.gaps(history, context))
        projected = state.index.rows.view(-1, self.config.heads, self.config.head_dim)
        if bias is None:
            bias = projected.new_zeros(projected.shape[:2])
        rows = torch.cat([projected, bias[:, :, None]], 2).detach()
        return [
            SearchIndex(offsets=state.index.offsets, time_ms=state.index.time_ms, rows=rows[:, head].contiguous())
            for head in range(self.config.heads)
        ]

    def score(self, state: TWINState, candidates: Candidates, context: Context) -> RankerOutput:
        """Search by attention score, per head; attend over what was found, and read the tower."""
        columns = self.two_stage.of_items(state.past, candidates, self._asked)
        target = columns["target"]
        query = columns["asked"].view(-1, self.config.heads, self.config.head_dim)
        one = query.new_ones(query.shape[0], 1)
        read, count = [], None
        for head, index in enumerate(self.searched(state, context)):
            asked = torch.cat([query[:, head], one], 1)
            chosen = self.selector.select(asked, candidates.offsets, index)
            read.append(self.attend(state, context, query, head, chosen))
            count = chosen.taken.offsets.diff()
        assert count is not None
        interest = torch.cat(read, 1)
        return RankerOutput(logits=self.two_stage.predict(state.past, candidates, context, target, interest, count))

    def attend(self, state: TWINState, context: Context, query: Tensor, head: int, chosen: Selected) -> Tensor:
        """Return (Nc, 1, D + V), what one head makes of its selection."""
        picked = self.two_stage.picked(state.past.history, context, chosen)
        key = few_rows(state.index.rows, picked.first).view(-1, self.config.heads, self.config.head_dim)
        return selected_attention(
            query[:, head : head + 1],
            key[:, head],
            None if picked.bias is None else picked.bias[:, head : head + 1],
            torch.cat([picked.key, picked.value], 1),
            picked.place,
            chosen.taken.offsets,
        )

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    def _asked(self, target: Tensor) -> dict[str, Tensor]:
        return {"asked": self.two_stage.exact.queries(target).flatten(1)}


__all__ = ["TWIN", "TWINConfig", "TWINState"]
