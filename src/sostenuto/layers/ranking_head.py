"""From a candidate's last token to its logit, beside everything that is known of candidate and request."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import DistinctItems
from sostenuto.layers.flow_config import FlowConfig
from sostenuto.layers.initialise import zero_linear
from sostenuto.layers.request_features import RequestFeatures
from sostenuto.layers.taste import TasteState
from sostenuto.layers.tower import Tower
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, RequestBatch


class RankingHead(nn.Module):
    """A tower over the token and the request features that other rankers read, and their wide path.

    With `pure` the tower reads the token alone.
    """

    def __init__(self, config: FlowConfig, features: FeatureSpec, items: ItemEmbedding) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        requests = RequestFeatures(features, items, field_dim=config.field_dim, std=config.field_std, bins=config.bins)
        self.requests = None if config.pure else requests
        beside = 0 if config.pure else requests.out_dim
        self.tower = Tower(
            config.dim + beside, config.tower_units, activation=config.tower_activation, dropout=config.dropout
        )
        has_wide = config.wide and not config.pure and requests.num_numbers > 0
        self.wide = zero_linear(requests.num_numbers, 1) if has_wide else None

    def calibrate(
        self, items: ItemEmbedding, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]
    ) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        if self.requests is not None:
            self.requests.calibrate(items, batches, item_vectors)
        elif items.vector_dim:
            items.set_vectors(item_vectors(items.vector_dim))

    def taste(self, items: ItemEmbedding, histories: History, distinct: DistinctItems) -> TasteState | None:
        """Return what request features keep of histories."""
        return None if self.requests is None else self.requests.encode(items, histories, distinct)

    def taste_along(
        self, items: ItemEmbedding, histories: History, distinct: DistinctItems, row: Tensor, prefix: Tensor
    ) -> TasteState | None:
        """Return the same of the first `prefix` behaviours of row `row`, for R requests."""
        return None if self.requests is None else self.requests.encode_along(histories, distinct, row, prefix)

    def append(self, state: TasteState | None, later: TasteState | None) -> TasteState | None:
        """Fold later events in."""
        return None if self.requests is None else self.requests.append(state, later)

    def forward(
        self,
        token: Tensor,
        items: ItemEmbedding,
        taste: TasteState | None,
        candidates: Candidates,
        context: Context,
    ) -> RankerOutput:
        """Return logits of (N, D) last tokens of candidates."""
        token = self.norm(token)
        if self.requests is None:
            return RankerOutput(logits=self.tower(token).squeeze(1))
        numbers = self.requests(items, taste, candidates, context)
        logits = self.tower(torch.cat([token, numbers], 1)).squeeze(1)
        if self.wide is not None:
            logits = logits + self.wide(numbers[:, : self.requests.num_numbers]).squeeze(1)
        return RankerOutput(logits=logits)


__all__ = ["RankingHead"]
