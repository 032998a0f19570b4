"""Mean-pooled history network: the embeddings and the tower of DIN without its attention.

The base model of the DIN paper (Zhou et al., KDD 2018, arXiv:1706.06978, section 4.2: embedding, pooling, tower).
Differs from it: mean instead of sum, the product of target and mean in place of the mean, match features, and a
linear path from the numbers to the logit, all as in `models/din.py`, so that the two differ by
attention and what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.checks import check_config
from sostenuto.layers.dropout import Dropout
from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.initialise import zero_linear
from sostenuto.layers.request_features import RequestFeatures
from sostenuto.layers.taste import TasteState
from sostenuto.layers.tower import Activation, Tower
from sostenuto.ops.jagged import segment_sum
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanPoolConfig:
    """Sizes; the defaults are DIN's."""

    item_dim: int = 0  # width of an item's own trained row; 0 leaves it out: rows over-fit within an epoch
    vector_dim: int = 32  # width of fixed item vectors from early co-occurrence; 0 leaves them out. Ours
    key_vector_dim: int = 8  # their leading columns that behaviours and candidates are compared by
    category_dim: int = 8  # width per category level
    field_dim: int = 8  # width per categorical field
    tower_units: tuple[int, ...] = (128, 64)
    tower_activation: Activation = "prelu"
    dropout: float = 0.1  # after each tower layer
    embedding_dropout: float = 0.0  # on item vectors that enter the tower
    id_dropout: float = 0.0  # chance that an item's own row is replaced by the unknown row
    wide: bool = True  # linear path from match features and candidate numbers to the logit
    bins: int = 12  # piecewise-linear bins per match feature and candidate number; 0 = none. Ours
    field_std: float = 0.01  # initial rows of candidate and context fields
    table_std: float = 1e-2  # initial embedding rows

    def __post_init__(self) -> None:
        check_config(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class PooledHistory:
    """Sums over the behaviours of B users; the size does not depend on their number."""

    total: Tensor  # (B, D) float64: thousands of terms are added
    length: Tensor  # (B,) int64
    taste: TasteState | None


class MeanPool(nn.Module):
    """Mean of the behaviours' item vectors beside the target's, and a tower."""

    def __init__(self, config: MeanPoolConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.items = ItemEmbedding(
            features,
            item_dim=config.item_dim,
            category_dim=config.category_dim,
            field_dim=config.field_dim,
            std=config.table_std,
            vector_dim=config.vector_dim,
            key_vector_dim=config.key_vector_dim,
            id_dropout=config.id_dropout,
        )
        self.requests = RequestFeatures(
            features, self.items, field_dim=config.field_dim, std=config.field_std, bins=config.bins
        )
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.tower = Tower(
            2 * self.items.out_dim + 1 + self.requests.out_dim,
            config.tower_units,
            activation=config.tower_activation,
            dropout=config.dropout,
        )
        numbers = self.requests.num_numbers
        self.wide = zero_linear(numbers, 1) if config.wide and numbers else None

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.requests.calibrate(self.items, batches, item_vectors)

    def encode(self, histories: History) -> PooledHistory:
        """Sum the item vectors of each user."""
        version = self.items.version_of_behaviours(histories.offsets, histories.time_ms)
        vectors = self.items(histories.item, histories.category, histories.fields, version)
        return PooledHistory(
            total=segment_sum(vectors.double(), histories.offsets),
            length=histories.lengths,
            taste=self.requests.encode(self.items, histories),
        )

    def append(self, state: PooledHistory, events: History) -> PooledHistory:
        """Fold later events in; equal to encoding everything anew."""
        later = self.encode(events)
        taste = self.requests.append(state.taste, later.taste)
        return PooledHistory(total=state.total + later.total, length=state.length + later.length, taste=taste)

    def score(self, state: PooledHistory, candidates: Candidates, context: Context) -> RankerOutput:
        """Compare each candidate with the mean behaviour."""
        row = candidates.row
        version = self.requests.version(self.items, state.taste, candidates)
        target = self.items(candidates.item, candidates.category, candidates.fields, version)
        mean = (state.total / state.length.clamp(min=1)[:, None]).to(target.dtype)[row]
        length = torch.log1p(state.length.to(target.dtype))[row, None] / 10.0  # a tenth: 100,000 behaviours give 1.15
        pooled = self.embedding_dropout(torch.cat([target, target * mean], 1))
        logits = self.requests.logits(
            self.tower, self.wide, [pooled, length], self.items, state.taste, candidates, context
        )
        return RankerOutput(logits=logits)

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)


__all__ = ["MeanPool", "MeanPoolConfig", "PooledHistory"]
