"""Deep Interest Network (Zhou et al., KDD 2018, arXiv:1706.06978).

Each past behaviour is weighted by its relevance to the target item, and the weighted sum is the user's interest in
it. Differs from the paper: docs/models/din.md lists every choice of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from sostenuto.layers.checks import check_config
from sostenuto.layers.dropout import Dropout
from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import EncodedHistory, HistoryEncoder
from sostenuto.layers.initialise import zero_linear
from sostenuto.layers.item_table import ItemTable
from sostenuto.layers.request_features import RequestFeatures
from sostenuto.layers.target_attention import TargetAttention
from sostenuto.layers.taste import TasteState
from sostenuto.layers.tower import Activation, Tower
from sostenuto.ops.jagged import segment_mean
from sostenuto.ops.target_attention import Normalise
from sostenuto.ops.time_gaps import NUM_GAP_FEATURES
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RankerOutput, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class DINConfig:
    """Sizes and switches of DIN."""

    item_dim: int = 0  # width of an item's own trained row; 0 leaves it out: rows over-fit within an epoch
    vector_dim: int = 32  # width of fixed item vectors from early co-occurrence; 0 leaves them out. Ours
    key_vector_dim: int = 8  # their leading columns that behaviours and candidates are compared by
    category_dim: int = 8  # width per category level
    field_dim: int = 8  # width per categorical field
    attention_units: tuple[int, ...] = (32,)  # hidden widths of the activation unit; one is the fast path
    attention_activation: Literal["relu", "prelu"] = "prelu"
    normalise: Normalise = "softmax"  # of the weighted sum: none (paper), softmax (its code), sqrt_length (ours)
    gaps: bool = True  # the time from a behaviour to the request enters the activation unit. Ours
    gap_values: bool = True  # also sum gap features, weighted: when the relevant behaviours happened. Ours
    products: bool = True  # tower also reads target x mean, target x interest and the sum of the weights. Ours
    tower_units: tuple[int, ...] = (128, 64)
    tower_activation: Activation = "prelu"
    dropout: float = 0.1  # after each tower layer
    embedding_dropout: float = 0.0  # on item vectors and interests that enter the tower
    id_dropout: float = 0.0  # chance that an item's own row is replaced by the unknown row. Ours
    wide: bool = True  # linear path from match features and candidate numbers to the logit. Ours
    bins: int = 12  # piecewise-linear bins per match feature and candidate number; 0 = none. Ours
    field_std: float = 0.01  # initial rows of candidate and context fields
    short_recent: int | None = None  # newest behaviours kept, whole moments; None = all
    table_std: float = 1e-2  # initial embedding rows

    def __post_init__(self) -> None:
        check_config(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DINState:
    """The behaviours that attention sees, and the taste of all of them."""

    history: EncodedHistory
    taste: TasteState | None


class DIN(nn.Module):
    """Target attention over all behaviours, and a tower."""

    def __init__(self, config: DINConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        items = ItemEmbedding(
            features,
            item_dim=config.item_dim,
            category_dim=config.category_dim,
            field_dim=config.field_dim,
            std=config.table_std,
            vector_dim=config.vector_dim,
            key_vector_dim=config.key_vector_dim,
            id_dropout=config.id_dropout,
        )
        dim, hidden = items.out_dim, config.attention_units[0]
        self.histories = HistoryEncoder(
            features, items, hidden=hidden, field_dim=config.field_dim, std=config.table_std, gaps=config.gaps
        )
        self.attention = TargetAttention(
            dim, config.attention_units, activation=config.attention_activation, normalise=config.normalise
        )
        self.requests = RequestFeatures(
            features, items, field_dim=config.field_dim, std=config.field_std, bins=config.bins
        )
        gap_dim = NUM_GAP_FEATURES + 1 if config.gaps and config.gap_values else 0
        products_dim = 2 * dim + 1 if config.products else 0
        self.kept = ItemTable()
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.tower = Tower(
            2 * dim + products_dim + gap_dim + self.requests.out_dim,
            config.tower_units,
            activation=config.tower_activation,
            dropout=config.dropout,
        )
        numbers = self.requests.num_numbers
        self.wide = zero_linear(numbers, 1) if config.wide and numbers else None

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.requests.calibrate(self.histories.items, batches, item_vectors)

    def keep_items(self, catalogue: Catalogue) -> int:
        """Keep every item's vector for scoring; see `schema.ranker.ItemKeeper`."""
        return self.kept.keep(self.histories.items, catalogue)

    def encode(self, histories: History) -> DINState:
        """Embed the behaviours; nothing here knows the candidate or the request."""
        distinct = self.histories.distinct(histories)
        encoded: EncodedHistory = self.histories(histories, distinct)
        taste = self.requests.encode(self.histories.items, histories, distinct)
        return DINState(history=self._kept(encoded), taste=taste)

    def append(self, state: DINState, events: History) -> DINState:
        """Fold later events in; equal to encoding everything anew."""
        later = self.encode(events)
        joined = state.history.joined(later.history)
        return DINState(history=self._kept(joined), taste=self.requests.append(state.taste, later.taste))

    def _kept(self, encoded: EncodedHistory) -> EncodedHistory:
        return encoded if self.config.short_recent is None else encoded.newest(self.config.short_recent)

    def score(self, state: DINState, candidates: Candidates, context: Context) -> RankerOutput:
        """Weigh the behaviours for each candidate and read the tower."""
        past = state.history
        version = self.requests.version(self.histories.items, state.taste, candidates)
        target = self.kept.look_up(self.histories.items, candidates, version)["target"]
        hidden, gaps = self.histories.at_request(past, context)
        beside = [past.key.new_ones(past.key.shape[0], int(self.config.products))]
        if gaps is not None and self.config.gap_values:
            beside.append(gaps)
        interest = self.attention(target, candidates.offsets, past.key, past.offsets, torch.cat(beside, 1), hidden)
        pooled = target
        if self.config.products:
            mean = segment_mean(past.key, past.offsets, exact=True)[candidates.row]
            pooled = torch.cat([target, target * mean, target * interest[:, : target.shape[1]]], 1)
        pooled = self.embedding_dropout(pooled)
        logits = self.requests.logits(
            self.tower, self.wide, [pooled, interest], self.histories.items, state.taste, candidates, context
        )
        return RankerOutput(logits=logits)

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)


__all__ = ["DIN", "DINConfig", "DINState"]
