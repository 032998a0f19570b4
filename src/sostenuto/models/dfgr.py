"""DFGR: dual-flow generative ranking (arXiv:2505.16752).

The real flow carries what the user did; the fake flow carries the same places of the timeline with a placeholder for
the action. Both go through the same weights; a fake token reads the strictly earlier real ones and itself. So every
request of a timeline gets its loss in one pass, and one flow, `sfgr`, is left at inference. Differs from the paper:
docs/models/dfgr.md lists every choice of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import TimedVectors
from sostenuto.layers.flow_cache import FlowState, Timeline, places_of
from sostenuto.layers.flow_config import FlowConfig
from sostenuto.layers.hstu_block import HSTUBlock, KeysValues
from sostenuto.layers.relative_bias import TokenPlaces
from sostenuto.models.sfgr import SFGR
from sostenuto.ops.causal_attention import AttentionPlan, OwnKey, offsets_of_rows, plan_attention
from sostenuto.ops.jagged import row_index
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, RequestBatch, SequenceBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class _SideBySide:
    """Real and fake tokens of a timeline in one order, so that both read the real ones in one go.

    A fake token stands beside the real ones of its place: they see the same and share a row of the bias.
    """

    order: Tensor  # (N + M,) places in [real, fake], row after row, positions rising
    real: Tensor  # (N,) where in that order the real tokens are
    fake: Tensor  # (M,) and the fake ones
    places: TokenPlaces
    plan: AttentionPlan
    fake_places: TokenPlaces
    fake_plan: AttentionPlan

    @classmethod
    def of(cls, real: Timeline, row: Tensor, position: Tensor, time_ms: Tensor, visible: Tensor) -> _SideBySide:
        """Arrange fake tokens with their (M,) rows, positions and times; `visible` (N + M,) is of both flows."""
        rows = torch.cat([row_index(real.offsets), row])
        positions, times = torch.cat([real.position, position]), torch.cat([real.time_ms, time_ms])
        order = (rows * (positions.shape[0] + 1) + positions).argsort(stable=True)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        users, count = len(real.offsets) - 1, len(real.time_ms)
        return cls(
            order=order,
            real=back[:count],
            fake=back[count:],
            places=TokenPlaces.at(positions[order], times[order]),
            plan=plan_attention(offsets_of_rows(rows, users), real.offsets, visible[order]),
            fake_places=TokenPlaces.at(position, time_ms),
            fake_plan=plan_attention(offsets_of_rows(row, users), real.offsets, visible[count:]),
        )


class DFGR(nn.Module):
    """One flow at inference, two in training."""

    def __init__(self, config: FlowConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.flow = SFGR(config, features)

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step."""
        self.flow.calibrate(batches, item_vectors)

    def logits_along(self, batch: SequenceBatch) -> RankerOutput:
        """Score all requests along timelines: both flows side by side, block by block."""
        flow, tokens, histories = self.flow, self.flow.tokens, batch.histories
        distinct = tokens.distinct(histories)
        taste = flow.head.taste_along(tokens.items, histories, distinct, batch.row, batch.prefix)
        timeline = Timeline.of(histories.offsets, histories.time_ms)
        request, visible = batch.candidates.row, self.visible(batch)[batch.candidates.row]
        parts = tokens.of_events(histories, timeline.position, distinct)
        version = tokens.items.version_at(timeline.newest(batch.row, batch.prefix))
        position = batch.prefix[request]
        fake = tokens.of_candidates(
            batch.candidates, batch.context, position, None if version is None else version[request]
        )
        both = _SideBySide.of(
            timeline,
            batch.row[request],
            position,
            batch.context.time_ms[request],
            torch.cat([timeline.position, visible]),
        )
        token = self._through_blocks(torch.cat([parts.item + parts.action, fake])[both.order], both, timeline)
        output: RankerOutput = flow.head(token, tokens.items, taste, batch.candidates, batch.context)
        return output

    def visible(self, batch: SequenceBatch) -> Tensor:
        """Return (R,) how many real tokens the fake tokens of a request see: what came before it, and no more."""
        return batch.prefix

    def _through_blocks(self, token: Tensor, both: _SideBySide, timeline: Timeline) -> Tensor:
        """Return the last fake tokens of the first tokens of both flows."""
        blocks: list[HSTUBlock] = list(self.flow.blocks)  # type: ignore[arg-type]
        keys_at = places_of(timeline)
        for block in blocks[:-1]:
            made = block.project(token)
            real = KeysValues(made.seen.key[both.real], made.seen.value[both.real])
            own = [OwnKey(made.seen.key, made.seen.value)]
            read = block.attend(made.query, real, both.plan, queries_at=both.places, keys_at=keys_at, own=own)
            token = block.mix(token, made.gate, read)
        last, fake = blocks[-1], token[both.fake]
        made = last.project(fake)
        read = last.attend(
            made.query,
            last.keys_values(token[both.real]),  # nobody reads what the last block would make of them
            both.fake_plan,
            queries_at=both.fake_places,
            keys_at=keys_at,
            own=[OwnKey(made.seen.key, made.seen.value)],
        )
        return last.mix(fake, made.gate, read)

    def encode(self, histories: History) -> FlowState:
        """Run the real flow and keep its keys and values."""
        return self.flow.encode(histories)

    def append(self, state: FlowState, events: History) -> FlowState:
        """Fold later events in; equal to encoding everything anew."""
        return self.flow.append(state, events)

    def score(self, state: FlowState, candidates: Candidates, context: Context) -> RankerOutput:
        """Let candidates, which are fake tokens, read the whole real flow of their user."""
        return self.flow.score(state, candidates, context)

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)


__all__ = ["DFGR"]
