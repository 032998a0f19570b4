"""MetaGR: HSTU as a ranker, items and actions as tokens in turn (arXiv:2402.17152; named so by arXiv:2505.16752).

The timeline is item, action, item, action ...: twice as many tokens as behaviours. A candidate is an item token behind
it. The logit of a behaviour that is itself a candidate is read from the item token that the timeline holds anyway, so
training adds tokens only for candidates that did not happen. Differs from the paper: docs/models/metagr.md lists every
choice of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import TimedVectors
from sostenuto.layers.encoded_history import DistinctItems
from sostenuto.layers.event_tokens import EventTokens
from sostenuto.layers.flow_cache import FlowState, Joined, Timeline
from sostenuto.layers.flow_config import FlowConfig
from sostenuto.layers.hstu_block import HSTUBlock, KeysValues
from sostenuto.layers.ranking_head import RankingHead
from sostenuto.layers.relative_bias import TokenPlaces
from sostenuto.layers.taste import TasteState
from sostenuto.ops.causal_attention import OwnKey, offsets_of_rows, plan_attention
from sostenuto.ops.jagged import row_index
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, RequestBatch, SequenceBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """A flow that was run, with the item tokens that enter the last block."""

    state: FlowState
    item: Tensor  # (N, D)


class MetaGR(nn.Module):
    """A cached flow of items and actions in turn, and candidates that read it."""

    def __init__(self, config: FlowConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.num_items = features.num_items
        self.tokens = EventTokens(config, features)
        self.blocks = nn.ModuleList(config.blocks())
        self.head = RankingHead(config, features, self.tokens.items)

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step."""
        self.head.calibrate(self.tokens.items, batches, item_vectors)

    def encode(self, histories: History) -> FlowState:
        """Run the flow of what happened and keep its keys and values."""
        distinct = self.tokens.distinct(histories)
        return self._run(None, histories, distinct, self.head.taste(self.tokens.items, histories, distinct)).state

    def append(self, state: FlowState, events: History) -> FlowState:
        """Run the flow of later events on top of what is kept; equal to encoding everything anew."""
        distinct = self.tokens.distinct(events)
        later = self.head.taste(self.tokens.items, events, distinct)
        return self._run(state, events, distinct, self.head.append(state.taste, later)).state

    def _run(self, state: FlowState | None, events: History, distinct: DistinctItems, taste: TasteState | None) -> _Run:
        joined = Joined.of(None if state is None else state.timeline, events)
        position, timeline = joined.position, joined.timeline
        parts = self.tokens.of_events(events, position, distinct)
        token = _in_turn(parts.item, parts.action)
        plan = plan_attention(2 * events.offsets, 2 * timeline.offsets, _twice(2 * position))
        at, everything = _places(position, events.time_ms), _places(timeline.position, timeline.time_ms)
        kept: list[KeysValues] = []
        for number, block in enumerate(self._blocks()):
            there = None if state is None else state.layers[number]
            if number == self.config.layers - 1:  # of the last block, actions are read and read nothing
                kept.append(joined.keys_values(there, block.keys_values(token), 2))
                break
            made = block.project(token)
            seen = joined.keys_values(there, made.seen, 2)
            # an item sees the tokens of strictly earlier moments and itself, an action its own item too
            own = [OwnKey(made.seen.key, made.seen.value), _own_item(made.seen)]
            read = block.attend(made.query, seen, plan, queries_at=at, keys_at=everything, own=own)
            token = block.mix(token, made.gate, read)
            kept.append(seen)
        return _Run(state=FlowState(timeline=timeline, layers=tuple(kept), taste=taste), item=token[::2])

    def score(self, state: FlowState, candidates: Candidates, context: Context) -> RankerOutput:
        """Let candidates read the whole flow of their user."""
        lengths = state.timeline.offsets.diff()
        row = torch.arange(len(lengths), device=lengths.device)
        token = self._candidate_tokens(state, row, lengths, candidates, context)
        return self.head(token, self.tokens.items, state.taste, candidates, context)  # type: ignore[no-any-return]

    def logits_along(self, batch: SequenceBatch) -> RankerOutput:
        """Score all requests along timelines in one pass."""
        histories, candidates, context = batch.histories, batch.candidates, batch.context
        distinct = self.tokens.distinct(histories)
        taste = self.head.taste_along(self.tokens.items, histories, distinct, batch.row, batch.prefix)
        run = self._run(None, histories, distinct, None)
        event = self.happened_at(run.state.timeline, histories, batch)
        found = event >= 0
        token = run.item.new_zeros(len(event), self.config.dim)
        if bool(found.any()):
            token = token.index_put((found,), self._last_item_tokens(run, event[found]))
        if not bool(found.all()):
            rest = _candidates_at(candidates, ~found)
            some = Context(time_ms=context.time_ms, place=context.place)
            others = self._candidate_tokens(run.state, batch.row, batch.prefix, rest, some)
            token = token.index_put((~found,), others)
        return self.head(token, self.tokens.items, taste, candidates, context)  # type: ignore[no-any-return]

    def happened_at(self, timeline: Timeline, histories: History, batch: SequenceBatch) -> Tensor:
        """Return (N,) the behaviour that each candidate is: its item at the request's time and place; -1 if none."""
        candidates, context, request = batch.candidates, batch.context, batch.candidates.row
        if not len(histories.item):
            return torch.full_like(candidates.item, -1)
        first = histories.offsets[row_index(histories.offsets)] + timeline.position  # of each behaviour's moment
        known, order = (first * self.num_items + histories.item).sort()
        asked = batch.ends[request] * self.num_items + candidates.item
        place = torch.searchsorted(known, asked).clamp(max=len(known) - 1)
        event = order[place]
        same = (known[place] == asked) & (row_index(histories.offsets)[event] == batch.row[request])
        same &= histories.time_ms[event] == context.time_ms[request]
        same &= histories.place[event] == context.place[request]
        return torch.where(same, event, -1)

    def _last_item_tokens(self, run: _Run, event: Tensor) -> Tensor:
        """Return what the last block makes of some item tokens of the timeline."""
        block, timeline = self._blocks()[-1], run.state.timeline
        event, back = event.unique(return_inverse=True)  # rising, so rows lie together
        token = run.item[event]
        made = block.project(token)
        position = timeline.position[event]
        owners = offsets_of_rows(row_index(timeline.offsets)[event], len(timeline.offsets) - 1)
        read = block.attend(
            made.query,
            run.state.layers[-1],
            plan_attention(owners, 2 * timeline.offsets, 2 * position),
            queries_at=TokenPlaces.at(2 * position, timeline.time_ms[event]),
            keys_at=_places(timeline.position, timeline.time_ms),
            own=[OwnKey(made.seen.key, made.seen.value)],
        )
        return block.mix(token, made.gate, read)[back]

    def _candidate_tokens(
        self, state: FlowState, row: Tensor, prefix: Tensor, candidates: Candidates, context: Context
    ) -> Tensor:
        request, timeline = candidates.row, state.timeline
        position = prefix[request]
        version = self.tokens.items.version_at(timeline.newest(row, prefix))
        token = self.tokens.of_candidates(candidates, context, position, None if version is None else version[request])
        at = TokenPlaces.at(2 * position, context.time_ms[request])
        everything = _places(timeline.position, timeline.time_ms)
        owners = offsets_of_rows(row[request], len(timeline.offsets) - 1)
        plan = plan_attention(owners, 2 * timeline.offsets, 2 * position)
        for block, seen in zip(self._blocks(), state.layers, strict=True):
            made = block.project(token)
            own = [OwnKey(made.seen.key, made.seen.value)]
            read = block.attend(made.query, seen, plan, queries_at=at, keys_at=everything, own=own)
            token = block.mix(token, made.gate, read)
        return token

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    def _blocks(self) -> list[HSTUBlock]:
        return list(self.blocks)  # type: ignore[arg-type]


def _in_turn(item: Tensor, action: Tensor) -> Tensor:
    """Return (2 N, ...): item, action, item, action ..."""
    return torch.stack([item, action], 1).flatten(0, 1)


def _twice(values: Tensor) -> Tensor:
    return values.repeat_interleave(2)


def _own_item(seen: KeysValues) -> OwnKey:
    """Return each action's own item as a further key; an item has none, and a value of zeros adds nothing."""
    nothing = (torch.zeros_like(seen.key[::2]), torch.zeros_like(seen.value[::2]))
    return OwnKey(_in_turn(nothing[0], seen.key[::2]), _in_turn(nothing[1], seen.value[::2]), distance=1)


def _places(position: Tensor, time_ms: Tensor) -> TokenPlaces:
    """Return where item and action tokens of behaviours stand."""
    return TokenPlaces.at(_in_turn(2 * position, 2 * position + 1), _twice(time_ms))


def _candidates_at(candidates: Candidates, kept: Tensor) -> Candidates:
    """Return some candidates of R requests."""
    request = candidates.row[kept]
    return Candidates(
        offsets=offsets_of_rows(request, len(candidates.offsets) - 1),
        item=candidates.item[kept],
        category=candidates.category[kept],
        match=candidates.match[kept],
        fields={name: column[kept] for name, column in candidates.fields.items()},
    )


__all__ = ["MetaGR"]
