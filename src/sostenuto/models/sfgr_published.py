"""SFGR with HSTU's published time bias (arXiv:2402.17152, released research code).

There a token's bias counts from the time of the *next* event, which for the newest is the request's: the keys and
values of the newest behaviours change with every request and with every later event. So nothing can be cached beyond
the tokens that enter the first block. Kept to measure what the cacheable form costs in quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import TimedVectors
from sostenuto.layers.encoded_history import DistinctItems
from sostenuto.layers.flow_config import FlowConfig
from sostenuto.layers.taste import TasteState
from sostenuto.models.sfgr import SFGR
from sostenuto.ops.jagged import row_index
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreadHistory:
    """Histories whose flow is run when the request is known."""

    histories: History
    distinct: DistinctItems
    taste: TasteState | None


def next_times(offsets: Tensor, time_ms: Tensor, request_ms: Tensor) -> Tensor:
    """Return (N,) the next later time of each behaviour's row; of the newest ones the (B,) request's."""
    row = row_index(offsets)
    found = request_ms[row]
    if len(time_ms) > 1:
        later = (row[1:] == row[:-1]) & (time_ms[1:] > time_ms[:-1])
        # walking from the end: the nearest place at or behind each whose successor is later, in the same row
        place = torch.arange(len(time_ms) - 1, device=time_ms.device)
        far = len(time_ms)
        nearest = torch.where(later, place, far).flip(0).cummin(0).values.flip(0)
        at = nearest.clamp(max=len(time_ms) - 2) + 1
        own = (nearest < far) & (row[at] == row[:-1])
        found = found.clone()
        found[:-1] = torch.where(own, time_ms[at], found[:-1])
    return found


class PublishedSFGR(nn.Module):
    """SFGR whose flow is run anew for every request."""

    def __init__(self, config: FlowConfig, features: FeatureSpec) -> None:
        super().__init__()
        if not (config.relative_bias and config.time_bias):
            raise SpecError(
                "relative_bias and time_bias of sfgr_published must be on, got "
                f"{config.relative_bias} and {config.time_bias}; use sfgr without them"
            )
        self.flow = SFGR(config, features)

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step."""
        self.flow.calibrate(batches, item_vectors)

    def encode(self, histories: History) -> UnreadHistory:
        """Embed the behaviours; all else waits for the request's time."""
        distinct = self.flow.tokens.distinct(histories)
        taste = self.flow.head.taste(self.flow.tokens.items, histories, distinct)
        return UnreadHistory(histories=histories, distinct=distinct, taste=taste)

    def score(self, state: UnreadHistory, candidates: Candidates, context: Context) -> RankerOutput:
        """Run the flow up to the request, then let the candidates read it."""
        past = state.histories
        times = next_times(past.offsets, past.time_ms, context.time_ms)
        flow = self.flow.extended(None, past, state.distinct, state.taste, times)
        return self.flow.score(flow, candidates, context)

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)


__all__ = ["PublishedSFGR", "UnreadHistory", "next_times"]
