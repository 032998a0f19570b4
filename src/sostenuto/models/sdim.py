"""SDIM: sampling is all you need on modelling long-term user behaviours (Cao et al., CIKM 2022, arXiv:2205.10249).

Behaviours and candidate are hashed by random hyperplanes; the interest is the sum of the behaviours in the
candidate's bucket, averaged over signatures. Behaviours are hashed without knowing the candidate, so a user's whole
history becomes a table of fixed size. Differs from the paper: docs/models/sdim.md lists every choice of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sostenuto.layers.checks import check_config
from sostenuto.layers.dropout import Dropout
from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import EncodedHistory, HistoryEncoder
from sostenuto.layers.hash_buckets import Buckets, HashBuckets
from sostenuto.layers.initialise import xavier_linear, zero_linear
from sostenuto.layers.item_table import ItemTable, target_columns
from sostenuto.layers.request_features import RequestFeatures
from sostenuto.layers.target_attention import TargetAttention
from sostenuto.layers.taste import TasteState
from sostenuto.layers.tower import Activation, Tower
from sostenuto.ops.bucket_sum import direction
from sostenuto.ops.target_attention import Normalise
from sostenuto.ops.time_gaps import NUM_GAP_FEATURES
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RankerOutput, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class SDIMConfig:
    """Sizes and switches of SDIM."""

    item_dim: int = 0  # width of an item's own trained row; 0 leaves it out: rows over-fit within an epoch
    vector_dim: int = 32  # width of fixed item vectors from early co-occurrence; 0 leaves them out. Ours
    key_vector_dim: int = 8  # their leading columns that behaviours and candidates are compared by
    category_dim: int = 8  # width per category level
    field_dim: int = 8  # width per categorical field
    num_hashes: int = 48  # m, hyperplanes in all
    hash_bits: int = 3  # tau, bits per signature; m / tau signatures
    half_life_days: tuple[float, ...] = (28.0,)  # of the decayed bucket sets; () = the paper's one set
    normalise_buckets: bool = True  # divide each bucket sum by its length (paper)
    collision_count: bool = False  # also tell the tower log1p of the mean bucket size. Ours
    side_dim: int = 0  # width of action, value and event fields inside bucket values; 0 leaves them out. Ours
    short_recent: int = 50  # newest behaviours under target attention, whole moments
    attention_units: tuple[int, ...] = (32,)  # of the short branch
    attention_activation: Literal["relu", "prelu"] = "prelu"
    normalise: Normalise = "softmax"  # of the short branch's weighted sum
    gaps: bool = True  # the time from a behaviour to the request enters the short branch, and is summed there. Ours
    products: bool = True  # tower also reads target x short interest, its agreement with the long ones, and the sum
    # of the short branch's weights. Ours
    tower_units: tuple[int, ...] = (128, 64)
    tower_activation: Activation = "prelu"
    dropout: float = 0.1  # after each tower layer
    embedding_dropout: float = 0.0  # on item vectors and interests that enter the tower
    id_dropout: float = 0.0  # chance that an item's own row is replaced by the unknown row. Ours
    wide: bool = True  # linear path from match features and candidate numbers to the logit. Ours
    bins: int = 12  # piecewise-linear bins per match feature and candidate number; 0 = none. Ours
    field_std: float = 0.01  # initial rows of candidate and context fields
    table_std: float = 0.05  # initial item and category rows: dividing by |u| multiplies gradients by about 1 / std

    def __post_init__(self) -> None:
        check_config(self)
        if not 1 <= self.hash_bits <= 16:
            raise SpecError(f"SDIMConfig.hash_bits must be in 1..16, got {self.hash_bits}")
        if self.num_hashes < self.hash_bits or self.num_hashes % self.hash_bits:
            raise SpecError(
                f"SDIMConfig.num_hashes must be a multiple of hash_bits, got {self.num_hashes} and {self.hash_bits}; "
                f"set it to {max(1, self.num_hashes // self.hash_bits) * self.hash_bits}"
            )
        if any(days <= 0 for days in self.half_life_days):
            raise SpecError(f"SDIMConfig.half_life_days must be positive, got {self.half_life_days}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SDIMState:
    """The newest behaviours as they are, and all of them as bucket sums."""

    recent: EncodedHistory
    long: Buckets
    taste: TasteState | None


class SDIM(nn.Module):
    """Hash buckets over the whole history, target attention over the newest behaviours, and a tower."""

    def __init__(self, config: SDIMConfig, features: FeatureSpec) -> None:
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
        if not items.identity_dim:
            raise SpecError("SDIM hashes item and category rows, but item_dim is 0 and the data have no category")
        dim, hidden = items.out_dim, config.attention_units[0]
        self.histories = HistoryEncoder(features, items, hidden=hidden, field_dim=config.field_dim, gaps=config.gaps)
        side_dim = config.side_dim if self.histories.side_dim else 0
        self.long_side = xavier_linear(self.histories.side_dim, side_dim, bias=False) if side_dim else None
        self.long = HashBuckets(
            items.identity_dim,
            [dim, side_dim] if side_dim else [dim],
            num_hashes=config.num_hashes,
            hash_bits=config.hash_bits,
            half_life_days=config.half_life_days,
            normalise=config.normalise_buckets,
            counted=config.collision_count,
        )
        self.short = TargetAttention(
            dim, config.attention_units, activation=config.attention_activation, normalise=config.normalise
        )
        self.requests = RequestFeatures(
            features, items, field_dim=config.field_dim, std=config.field_std, bins=config.bins
        )
        self.kept = ItemTable()
        self.embedding_dropout = Dropout(config.embedding_dropout)
        num_sets = self.long.num_sets
        short_dim = dim + config.products + (NUM_GAP_FEATURES + 1 if config.gaps else 0)
        self.tower = Tower(
            dim  # target
            + short_dim
            + num_sets * (dim + side_dim)  # long interests
            + (dim + num_sets if config.products else 0)
            + config.collision_count
            + self.requests.out_dim,
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
        """Keep every item's vector and buckets for scoring; see `schema.ranker.ItemKeeper`."""
        items = self.histories.items
        return self.kept.keep(items, catalogue, target_columns(items, self._buckets), [self.long.planes])

    def _of_items(self, state: SDIMState, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Return the vectors of the candidates' items, (N, D), and their buckets, (N, G)."""
        items = self.histories.items
        version = self.requests.version(items, state.taste, candidates)
        columns = self.kept.look_up(items, candidates, version, target_columns(items, self._buckets))
        return columns["target"], columns["hashed"].int()

    def _buckets(self, target: Tensor) -> dict[str, Tensor]:
        hashed = self.long.hash(self._hashed(target))
        return {"hashed": hashed.to(torch.uint8) if self.long.buckets <= 256 else hashed}

    def encode(self, histories: History) -> SDIMState:
        """Embed and hash the behaviours, and sum them by bucket (the paper's behaviour sequence encoding)."""
        distinct = self.histories.distinct(histories)
        encoded = self.histories(histories, distinct)
        values = encoded.key
        if self.long_side is not None:
            values = torch.cat([values, self.long_side(self.histories.side_features(histories))], 1)
        hashed = self.long.hash(self._hashed(distinct.key))
        return SDIMState(
            recent=encoded.newest(self.config.short_recent),
            long=self.long.encode(hashed, distinct.place, values, encoded.offsets, encoded.time_ms),
            taste=self.requests.encode(self.histories.items, histories, distinct),
        )

    def append(self, state: SDIMState, events: History) -> SDIMState:
        """Fold later events in; equal to encoding everything anew."""
        later = self.encode(events)
        return SDIMState(
            recent=state.recent.joined(later.recent).newest(self.config.short_recent),
            long=self.long.append(state.long, later.long),
            taste=self.requests.append(state.taste, later.taste),
        )

    def score(self, state: SDIMState, candidates: Candidates, context: Context) -> RankerOutput:
        """Look the candidates' buckets up, weigh the newest behaviours, and read the tower."""
        target, hashed = self._of_items(state, candidates)
        recent, dim = state.recent, target.shape[1]
        hidden, gaps = self.histories.at_request(recent, context)
        beside = recent.key.new_ones(recent.key.shape[0], int(self.config.products))
        if gaps is not None:
            beside = torch.cat([beside, gaps], 1)
        short = self.short(target, candidates.offsets, recent.key, recent.offsets, beside, hidden)
        long = self.long.lookup(state.long, hashed, candidates.offsets)
        parts = (
            [target, target * short[:, :dim], long.flatten(1)] if self.config.products else [target, long.flatten(1)]
        )
        if self.training:
            parts = [self.embedding_dropout(torch.cat(parts, 1))]
        if self.config.products:
            parts.append((long[:, :, :dim] * direction(target)[:, None, :]).sum(2))
        parts.append(short)
        if self.config.collision_count:
            parts.append(torch.log1p(self.long.collisions(state.long, hashed, candidates.row)))
        logits = self.requests.logits(
            self.tower, self.wide, parts, self.histories.items, state.taste, candidates, context
        )
        return RankerOutput(logits=logits)

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    def _hashed(self, vectors: Tensor) -> Tensor:
        """Return the item and category rows: what behaviours and candidates are compared by."""
        return vectors[:, : self.histories.items.identity_dim]


__all__ = ["SDIM", "SDIMConfig", "SDIMState"]
