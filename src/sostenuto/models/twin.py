"""TWIN: two-stage interest network (Chang et al., KDD 2023, arXiv:2302.02352).

Both stages score a behaviour by the same attention, so the search keeps what the attention would have weighed most.
What depends on the item alone is projected once per behaviour and cached; what only the behaviour has becomes one
number per head. With `cluster_size` a user's old behaviours are clustered first, as in TWIN-V2 (Si et al., CIKM 2024,
arXiv:2407.16357). Differs from the papers: docs/models/twin.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sostenuto.layers.behaviour_clusters import DAY_MS, BehaviourClusters, Clusters
from sostenuto.layers.embedding import TimedVectors
from sostenuto.layers.encoded_history import DistinctItems, EncodedHistory
from sostenuto.layers.search_config import SearchConfig
from sostenuto.layers.selector import ProductSelector, SearchIndex
from sostenuto.layers.two_stage import Past, TwoStage
from sostenuto.ops.jagged import segment_sum
from sostenuto.ops.selected_attention import selected_attention
from sostenuto.ops.steady_product import steady_product
from sostenuto.ops.table_rows import spread_rows
from sostenuto.ops.top_k import Selected
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RankerOutput, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class TWINConfig(SearchConfig):
    """Sizes and switches of TWIN."""

    cluster_size: int = 0  # TWIN-V2: most behaviours of a cluster; 0 leaves every behaviour alone
    cluster_days: float = 28.0  # length of the periods that are clustered, each when it is over. Ours

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        if self.cluster_size < 0 or self.cluster_size == 1:
            raise SpecError(f"TWINConfig.cluster_size must be 0 or at least 2, got {self.cluster_size}; set it so")
        if not 1 <= self.cluster_days * DAY_MS < math.inf:
            raise SpecError(f"TWINConfig.cluster_days must be above 0 and finite, got {self.cluster_days}; set it so")


@dataclass(frozen=True, kw_only=True, slots=True)
class TWINState:
    """All behaviours, and what both stages compare."""

    past: Past
    index: SearchIndex  # rows are (N, H d), W_k k
    size: Tensor | None  # (N,) int64 behaviours of each, where they are clustered
    about: Tensor | None  # (N, S) int64 by which they are


class TWIN(nn.Module):
    """The behaviours of the highest attention scores, the same attention over them, and a tower."""

    def __init__(self, config: TWINConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.two_stage = TwoStage(config, features)
        self.selector = ProductSelector(config.kept)
        self.clusters = None
        if config.cluster_size:
            self.clusters = BehaviourClusters(
                features.num_vector_items, most=config.cluster_size, days=config.cluster_days
            )

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`.

        Clusters follow the first version of the fixed vectors, which is made before any training request.
        """
        self.two_stage.calibrate(batches, item_vectors)
        items = self.two_stage.items
        if self.clusters is not None and items.vector_dim:
            self.clusters.build(items.past_vectors[0].float() if items.num_versions else items.vectors)

    def keep_items(self, catalogue: Catalogue) -> int:
        """Keep every item's vector and queries for scoring; see `schema.ranker.ItemKeeper`."""
        exact = self.two_stage.long.exact
        return self.two_stage.keep_items(catalogue, self._asked, [exact.query.weight, exact.log_gain])

    def encode(self, histories: History) -> TWINState:
        """Embed the behaviours and project each distinct item once."""
        distinct = self.two_stage.histories.distinct(histories)
        projected = self._projected(distinct)
        past = self.two_stage.encode(histories, distinct)
        if self.clusters is None:
            return _state(past, projected)
        history = self._with_side(past.history)
        return _clustered(past, self.clusters.encode(history, projected, self.clusters.about(histories)))

    def append(self, state: TWINState, events: History) -> TWINState:
        """Fold later events in; equal to encoding everything anew."""
        distinct = self.two_stage.histories.distinct(events)
        projected = self._projected(distinct)
        later = self.two_stage.encode(events, distinct)
        past = self.two_stage.append(state.past, later)
        if self.clusters is None or state.size is None or state.about is None:
            index = state.index.joined(_state(later, projected).index)
            return TWINState(past=past, index=index, size=None, about=None)
        single = self.clusters.single(self._with_side(later.history), projected, self.clusters.about(events))
        before = Clusters(history=state.past.history, projected=state.index.rows, size=state.size, about=state.about)
        return _clustered(past, self.clusters.joined(before, single))

    def _projected(self, distinct: DistinctItems) -> Tensor:
        """Return (N, H d), W_k k, which the search alone reads: no gradient flows through a selection."""
        with torch.no_grad():
            return spread_rows(steady_product(distinct.key, self.two_stage.long.exact.key.weight), distinct.place)

    def _with_side(self, history: EncodedHistory) -> EncodedHistory:
        """Return a history with side terms: clusters add the logarithm of their size to them."""
        if history.side is not None:
            return history
        return replace(history, side=history.key.new_zeros(history.key.shape[0], self.config.heads))

    def searched(self, state: TWINState, context: Context) -> list[SearchIndex]:
        """Return per head what the search compares: (N, d + 1), projected behaviours and biases; (N, d) without."""
        history, heads = state.past.history, self.config.heads
        bias = self.two_stage.long.bias(history.side, self.two_stage.long.bias.gaps(history, None, context))
        projected = state.index.rows.view(-1, heads, self.config.head_dim)
        if bias is not None:
            projected = torch.cat([projected, bias.detach()[:, :, None]], 2)
        return [
            SearchIndex(offsets=state.index.offsets, time_ms=state.index.time_ms, rows=projected[:, head].contiguous())
            for head in range(heads)
        ]

    def asked(self, query: Tensor, index: SearchIndex) -> Tensor:
        """Return (Nc, d + 1) or (Nc, d), what (Nc, d) queries of one head ask of its index."""
        more = index.rows.shape[1] - query.shape[1]
        return torch.cat([query, query.new_ones(query.shape[0], more)], 1) if more else query

    def score(self, state: TWINState, candidates: Candidates, context: Context) -> RankerOutput:
        """Search by attention score, per head; attend over what was found, and read the tower."""
        columns = self.two_stage.of_items(state.past, candidates, self._asked)
        target = columns["target"]
        query = columns["asked"].view(-1, self.config.heads, self.config.head_dim)
        read, count = [], None
        for head, index in enumerate(self.searched(state, context)):
            chosen = self.selector.select(self.asked(query[:, head], index), candidates.offsets, index)
            read.append(self.attend(state, context, query, head, chosen))
            count = self._count(state, chosen)
        assert count is not None
        interest = torch.cat(read, 1)
        return RankerOutput(logits=self.two_stage.predict(state.past, candidates, context, target, interest, count))

    def _count(self, state: TWINState, chosen: Selected) -> Tensor:
        """Return (Nc,) behaviours in each selection, those inside clusters too."""
        offsets = chosen.taken.offsets
        return offsets.diff() if state.size is None else segment_sum(state.size[chosen.taken.positions], offsets)

    def attend(self, state: TWINState, context: Context, query: Tensor, head: int, chosen: Selected) -> Tensor:
        """Return (Nc, 1, D + V), what one head makes of its selection; its scores are those of the search."""
        picked = self.two_stage.long.picked(state.past.history, context, chosen.taken)
        return selected_attention(
            self.two_stage.long.exact.fold(query)[:, head : head + 1],
            picked.key,
            None if picked.bias is None else picked.bias[:, head : head + 1],
            picked.value,
            picked.place,
            chosen.taken.offsets,
            with_key=True,
        )

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    def _asked(self, target: Tensor) -> dict[str, Tensor]:
        return {"asked": self.two_stage.long.exact.queries(target).flatten(1)}


def _state(past: Past, projected: Tensor) -> TWINState:
    history = past.history
    index = SearchIndex(offsets=history.offsets, time_ms=history.time_ms, rows=projected)
    return TWINState(past=past, index=index, size=None, about=None)


def _clustered(past: Past, found: Clusters) -> TWINState:
    state = _state(replace(past, history=found.history), found.projected)
    return replace(state, size=found.size, about=found.about)


__all__ = ["TWIN", "TWINConfig", "TWINState"]
