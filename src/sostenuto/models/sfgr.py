"""SFGR: one flow of item-and-action tokens, candidates behind it (arXiv:2505.16752, its intermediate form).

History tokens carry item and action together; a candidate is the same token without an action. It sees the whole
history and itself, never another candidate. The blocks are HSTU's (arXiv:2402.17152). `dfgr` is this network trained on
all requests of a timeline at once. Differs from the paper: docs/models/sfgr.md lists every choice of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import TimedVectors
from sostenuto.layers.encoded_history import DistinctItems
from sostenuto.layers.event_tokens import EventTokens
from sostenuto.layers.flow_cache import FlowState, Joined, places_of
from sostenuto.layers.flow_config import FlowConfig
from sostenuto.layers.hstu_block import HSTUBlock, KeysValues
from sostenuto.layers.ranking_head import RankingHead
from sostenuto.layers.relative_bias import TokenPlaces
from sostenuto.layers.taste import TasteState
from sostenuto.ops.causal_attention import OwnKey, offsets_of_rows, plan_attention
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, RequestBatch


class SFGR(nn.Module):
    """A cached flow of what happened, and candidates that read it."""

    blocks: nn.ModuleList

    def __init__(self, config: FlowConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.tokens = EventTokens(config, features)
        self.blocks = nn.ModuleList(config.blocks())
        self.head = RankingHead(config, features, self.tokens.items)

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step."""
        self.head.calibrate(self.tokens.items, batches, item_vectors)

    def encode(self, histories: History) -> FlowState:
        """Run the flow of what happened and keep its keys and values."""
        distinct = self.tokens.distinct(histories)
        return self.extended(None, histories, distinct, self.head.taste(self.tokens.items, histories, distinct))

    def append(self, state: FlowState, events: History) -> FlowState:
        """Run the flow of later events on top of what is kept; equal to encoding everything anew."""
        distinct = self.tokens.distinct(events)
        later = self.head.taste(self.tokens.items, events, distinct)
        return self.extended(state, events, distinct, self.head.append(state.taste, later))

    def extended(
        self,
        state: FlowState | None,
        events: History,
        distinct: DistinctItems,
        taste: TasteState | None,
        query_time_ms: Tensor | None = None,
    ) -> FlowState:
        """Put the keys and values of events behind those that are kept.

        Args:
            state: what is kept; None = nothing.
            events: of the same users, none earlier than what is kept.
            distinct: their items.
            taste: of all of it, handed on.
            query_time_ms: (N,) the moments that the events' own biases count from; None = when they happened.
        """
        joined = Joined.of(None if state is None else state.timeline, events)
        position, timeline = joined.position, joined.timeline
        parts = self.tokens.of_events(events, position, distinct)
        token = parts.item + parts.action
        # an event sees the strictly earlier moments and itself, so events of one moment have no order
        plan = plan_attention(events.offsets, timeline.offsets, position)
        at, everything = TokenPlaces.at(position, _or(query_time_ms, events.time_ms)), places_of(timeline)
        kept: list[KeysValues] = []
        for number, block in enumerate(self._blocks()):
            there = None if state is None else state.layers[number]
            if number == self.config.layers - 1:  # nobody reads what the last block would make of them
                kept.append(joined.keys_values(there, block.keys_values(token)))
                break
            made = block.project(token)
            seen = joined.keys_values(there, made.seen)
            read = block.attend(
                made.query, seen, plan, queries_at=at, keys_at=everything, own=[OwnKey(made.seen.key, made.seen.value)]
            )
            token = block.mix(token, made.gate, read)
            kept.append(seen)
        return FlowState(timeline=timeline, layers=tuple(kept), taste=taste)

    def score(self, state: FlowState, candidates: Candidates, context: Context) -> RankerOutput:
        """Let candidates read the whole flow of their user."""
        lengths = state.timeline.offsets.diff()
        row = torch.arange(len(lengths), device=lengths.device)
        return self.score_at(state, row, lengths, candidates, context)

    def score_at(
        self, state: FlowState, row: Tensor, prefix: Tensor, candidates: Candidates, context: Context
    ) -> RankerOutput:
        """Let the candidates of R requests read the first `prefix` events of row `row`; `state.taste` is of the requests.

        Args:
            state: of U users.
            row: (R,) int64, never decreasing.
            prefix: (R,) int64, whole moments.
            candidates: of R requests.
            context: of R requests.
        """
        token = self.flow_at(state, row, prefix, candidates, context)
        return self.head(token, self.tokens.items, state.taste, candidates, context)  # type: ignore[no-any-return]

    def flow_at(
        self, state: FlowState, row: Tensor, prefix: Tensor, candidates: Candidates, context: Context
    ) -> Tensor:
        """Return the (N, D) last tokens of candidates."""
        request, timeline = candidates.row, state.timeline
        position = prefix[request]
        version = self.tokens.items.version_at(timeline.newest(row, prefix))
        token = self.tokens.of_candidates(candidates, context, position, None if version is None else version[request])
        at, everything = TokenPlaces.at(position, context.time_ms[request]), places_of(timeline)
        owners = offsets_of_rows(row[request], len(timeline.offsets) - 1)
        plan = plan_attention(owners, timeline.offsets, self.visible(state, row, prefix)[request])
        for block, seen in zip(self._blocks(), state.layers, strict=True):
            made = block.project(token)
            read = block.attend(
                made.query, seen, plan, queries_at=at, keys_at=everything, own=[OwnKey(made.seen.key, made.seen.value)]
            )
            token = block.mix(token, made.gate, read)
        return token

    def visible(self, state: FlowState, row: Tensor, prefix: Tensor) -> Tensor:
        """Return (R,) how many events of its row each request's candidates see: what came before, and no more."""
        return prefix

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    def _blocks(self) -> list[HSTUBlock]:
        return list(self.blocks)  # type: ignore[arg-type]


def _or(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first


__all__ = ["SFGR"]
