"""DFGR: dual-flow generative ranking (arXiv:2505.16752).

The real flow carries what the user did; the fake flow carries the same places of the timeline with a placeholder for
the action. Both go through the same weights; a fake token reads the strictly earlier real ones and itself. So every
request of a timeline gets its loss in one pass, and one flow, `sfgr`, is left at inference. Differs from the paper:
docs/models/dfgr.md lists every choice of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from sostenuto.layers.embedding import TimedVectors
from sostenuto.layers.flow_cache import FlowState
from sostenuto.layers.flow_config import FlowConfig
from sostenuto.models.sfgr import SFGR
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, RequestBatch, SequenceBatch


class DFGR(nn.Module):
    """One flow at inference, two in training."""

    def __init__(self, config: FlowConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.flow = SFGR(config, features)

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step."""
        self.flow.calibrate(batches, item_vectors)

    def logits_along(self, batch: SequenceBatch) -> RankerOutput:
        """Score all requests along timelines: the real flow once, then the fake tokens of all requests over it."""
        flow, histories = self.flow, batch.histories
        distinct = flow.tokens.distinct(histories)
        taste = flow.head.taste_along(flow.tokens.items, histories, distinct, batch.row, batch.prefix)
        real = flow.extended(None, histories, distinct, None)
        return flow.score_at(replace(real, taste=taste), batch.row, batch.prefix, batch.candidates, batch.context)

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
