"""Sizes and switches that the generative rankers share, so that what differs between two of them is the flow alone."""

from __future__ import annotations

from dataclasses import dataclass

from sostenuto.layers.checks import check_config
from sostenuto.layers.hstu_block import HSTUBlock, HSTUBlockConfig, Variant
from sostenuto.layers.tower import Activation
from sostenuto.schema.errors import SpecError


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowConfig:
    """Sizes and switches of MetaGR, SFGR and DFGR."""

    item_dim: int = 0  # width of an item's own trained row; 0 leaves it out: rows over-fit within an epoch
    vector_dim: int = 32  # width of fixed item vectors from early co-occurrence; 0 leaves them out. Ours
    key_vector_dim: int = 32  # their leading columns that enter a token
    category_dim: int = 8  # width per category level
    field_dim: int = 8  # width per categorical field, action and place
    dim: int = 64  # D, width of a token
    layers: int = 2
    heads: int = 2
    variant: Variant = "stu"  # of the block: see layers/hstu_block.py
    relative_bias: bool = True  # scores read how far apart query and key are (released: research yes, stu no)
    num_positions: int = 1024  # entries of the table of distances; larger distances share the last
    time_bias: bool = True  # and how long apart; without relative_bias neither
    normaliser: float = 32.0  # C, constant divisor of attention
    block_dropout: float = 0.1  # before the output map of a block
    token_dropout: float = 0.0  # on the tokens that enter the first block
    pure: bool = False  # the tower reads the flow alone: no match features, candidate fields, context or wide path
    tower_units: tuple[int, ...] = (128, 64)
    tower_activation: Activation = "prelu"
    dropout: float = 0.1  # after each tower layer
    id_dropout: float = 0.0  # chance that an item's own row is replaced by the unknown row. Ours
    wide: bool = True  # linear path from match features and candidate numbers to the logit. Ours
    bins: int = 12  # piecewise-linear bins per match feature and candidate number; 0 = none. Ours
    field_std: float = 0.01  # initial rows of candidate and context fields
    table_std: float = 0.05  # initial embedding rows of tokens
    block_std: float = 0.1  # initial weights of a block's first map (released: 0.02)
    aligned: bool = True  # keys start as queries: at first, tokens read what is like them. Ours

    def __post_init__(self) -> None:
        check_config(self)
        if self.layers < 1:
            raise SpecError(f"FlowConfig.layers must be at least 1, got {self.layers}; set it so")
        for name in ("block_dropout", "token_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise SpecError(f"FlowConfig.{name} must be in [0, 1), got {getattr(self, name)}; set it so")
        self.block()

    def block(self) -> HSTUBlockConfig:
        """Return the configuration of every block."""
        return HSTUBlockConfig.of_variant(
            self.variant,
            dim=self.dim,
            heads=self.heads,
            num_positions=self.num_positions,
            relative_bias=self.relative_bias,
            time_bias=self.time_bias,
            dropout=self.block_dropout,
            normaliser=self.normaliser,
            initial_std=self.block_std,
            aligned=self.aligned,
        )

    def blocks(self) -> list[HSTUBlock]:
        """Make fresh blocks."""
        return [HSTUBlock(self.block()) for _ in range(self.layers)]


__all__ = ["FlowConfig"]
