"""From a candidate's last token to its logit, beside everything that is known of candidate and request."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
        self.requests = None
        if not config.pure:
            self.requests = RequestFeatures(
                features, items, field_dim=config.field_dim, std=config.field_std, bins=config.bins
            )
        beside, numbers = (0, 0) if self.requests is None else (self.requests.out_dim, self.requests.num_numbers)
        self.tower = Tower(
            config.dim + beside, config.tower_units, activation=config.tower_activation, dropout=config.dropout
        )
        self.wide = zero_linear(numbers, 1) if config.wide and numbers else None

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
        logits = self.requests.logits(self.tower, self.wide, [token], items, taste, candidates, context)
        return RankerOutput(logits=logits)


__all__ = ["RankingHead"]
