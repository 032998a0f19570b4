"""Sizes and switches that the two-stage rankers share, so that what differs between two of them is the search alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sostenuto.layers.checks import check_config
from sostenuto.layers.embedding import ItemEmbedding
from sostenuto.layers.tower import Activation
from sostenuto.ops.target_attention import Normalise
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoStageConfig:
    """Sizes and switches of every ranker that searches its history."""

    kept: int = 50  # K, behaviours that the exact attention sees, whole moments
    gain: float = 8.0  # factor of the scores at the start, learned. Ours
    item_dim: int = 0  # width of an item's own trained row; 0 leaves it out: rows over-fit within an epoch
    vector_dim: int = 32  # width of fixed item vectors from early co-occurrence; 0 leaves them out. Ours
    key_vector_dim: int = 8  # their leading columns that behaviours and candidates are compared by
    category_dim: int = 8  # width per category level
    field_dim: int = 8  # width per categorical field
    short_recent: int = 50  # newest behaviours under target attention, whole moments
    attention_units: tuple[int, ...] = (32,)  # of the short branch
    attention_activation: Literal["relu", "prelu"] = "prelu"
    normalise: Normalise = "softmax"  # of the short branch's weighted sum
    gaps: bool = True  # the time from a behaviour to the request enters both branches, and is summed there. Ours
    tower_units: tuple[int, ...] = (128, 64)
    tower_activation: Activation = "prelu"
    dropout: float = 0.1  # after each tower layer
    embedding_dropout: float = 0.0  # on item vectors and interests that enter the tower
    id_dropout: float = 0.0  # chance that an item's own row is replaced by the unknown row. Ours
    wide: bool = True  # linear path from match features and candidate numbers to the logit. Ours
    bins: int = 12  # piecewise-linear bins per match feature and candidate number; 0 = none. Ours
    field_std: float = 0.01  # initial rows of candidate and context fields
    table_std: float = 0.05  # initial item and category rows

    def __post_init__(self) -> None:
        check_config(self)
        self._check_from_one("kept")
        if not self.gain > 0:
            raise SpecError(f"{type(self).__name__}.gain must be above 0, got {self.gain}; set it so")

    def _check_from_one(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise SpecError(
                    f"{type(self).__name__}.{name} must be at least 1, got {getattr(self, name)}; set it so"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig(TwoStageConfig):
    """Moreover those of the multi-head attention that SIM, ETA, TWIN and MUSE have behind their search."""

    heads: int = 2  # H, of the exact attention
    head_dim: int = 16  # d, width of a head
    products: bool = True  # tower also reads target x interests, and the sum of the short branch's weights. Ours

    def __post_init__(self) -> None:
        TwoStageConfig.__post_init__(self)
        self._check_from_one("heads", "head_dim")


def item_embedding(config: TwoStageConfig, features: FeatureSpec) -> ItemEmbedding:
    """Make the embedding that behaviours and candidates share."""
    return ItemEmbedding(
        features,
        item_dim=config.item_dim,
        category_dim=config.category_dim,
        field_dim=config.field_dim,
        std=config.table_std,
        vector_dim=config.vector_dim,
        key_vector_dim=config.key_vector_dim,
        id_dropout=config.id_dropout,
    )


__all__ = ["SearchConfig", "TwoStageConfig", "item_embedding"]
