"""Hierarchical sequential transduction units for retrieval (Zhai et al., ICML 2024, arXiv:2402.17152).

Gated pointwise attention with relative biases over the newest behaviours; the output at the last one, on the unit
sphere, is compared with every item's vector there. Differs from the released code: docs/models/hstu.md lists every
choice of ours. The ranking form is `metagr`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.layers.checks import check_config
from sostenuto.layers.dropout import Dropout
from sostenuto.layers.hstu_block import HSTUBlock, HSTUBlockConfig, Variant
from sostenuto.layers.item_vectors import ItemVectors
from sostenuto.layers.relative_bias import TokenPlaces
from sostenuto.layers.window import Along, Window, WindowState, windows_along
from sostenuto.ops.causal_attention import OwnKey, plan_attention
from sostenuto.ops.moments import moment_places
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, SequenceBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class HSTUConfig:
    """Sizes and switches of HSTU."""

    width: int = 64  # D of items, queries and blocks
    blocks: int = 2
    heads: int = 2
    variant: Variant = "research"  # of the block: research (published results), stu (the released large-scale layer)
    time_bias: bool = True  # relative bias reads times; switch it off where times are only an order
    max_length: int = 50  # newest behaviours read, with the rest of the moment that the cut would split
    temperature: float = 0.05  # divides the cosine of query and item
    input_dropout: float = 0.2
    dropout: float = 0.2  # before the output map of a block
    category_dim: int = 8  # width per category level, mapped onto the item's row; 0 leaves categories out
    field_dim: int = 8  # width per categorical item field, likewise; 0 leaves all item fields out
    table_std: float = 0.02  # initial item rows

    def __post_init__(self) -> None:
        check_config(self)
        for name in ("width", "blocks", "heads", "max_length"):
            if getattr(self, name) < 1:
                raise SpecError(f"HSTUConfig.{name} must be at least 1, got {getattr(self, name)}; raise it")
        if not self.temperature > 0:
            raise SpecError(f"HSTUConfig.temperature must be above 0, got {self.temperature}; 0.05 is usual")
        if not 0.0 <= self.input_dropout < 1.0:
            raise SpecError(f"HSTUConfig.input_dropout must be in [0, 1), got {self.input_dropout}; 0 switches it off")
        self.block()

    def block(self) -> HSTUBlockConfig:
        """Return the layer's configuration; the normaliser is the maximal length, as in the released code."""
        return HSTUBlockConfig.of_variant(
            self.variant,
            dim=self.width,
            heads=self.heads,
            num_positions=self.max_length,
            time_bias=self.time_bias,
            dropout=self.dropout,
            normaliser=float(self.max_length),
        )


class HSTU(nn.Module):
    """Pointwise attention whose last output is looked up among all items."""

    def __init__(self, config: HSTUConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.items = ItemVectors(
            features,
            config.width,
            category_dim=config.category_dim,
            field_dim=config.field_dim,
            std=config.table_std,
        )
        std = config.width**-0.5
        position = torch.empty(config.max_length, config.width)
        self.position = nn.Parameter(nn.init.trunc_normal_(position, std=std, a=-2 * std, b=2 * std))
        self.start = nn.Parameter(torch.empty(config.width).normal_(0.0, std))  # what an empty history asks for
        self.blocks = nn.ModuleList(HSTUBlock(config.block()) for _ in range(config.blocks))
        self.drop = Dropout(config.input_dropout)

    def encode(self, histories: History) -> WindowState:
        """Read the newest behaviours; what they ask for depends on no request."""
        return self._read(self._window(histories).newest(self.config.max_length))

    def append(self, state: WindowState, events: History) -> WindowState:
        """Fold later events in: the window moves on and is read anew, since absolute positions count from its start."""
        return self._read(state.window.joined(self._window(events)).newest(self.config.max_length))

    def query(self, state: WindowState, context: Context) -> Tensor:
        """Return (B, D) what each user asks for, of length 1 / temperature; the request adds nothing."""
        return state.query

    def item_vectors(self, candidates: Candidates) -> Tensor:
        """Return (N, D) of length 1."""
        return F.normalize(self.items(candidates.item, candidates.category, candidates.fields), dim=1, eps=1e-6)

    def queries_along(self, batch: SequenceBatch) -> Tensor:
        """Return (R, D) what is asked for at every request of the timelines; each timeline is read once."""
        timelines = self._window(batch.histories)
        return self._queries(*windows_along(timelines, batch.row, batch.prefix, self.config.max_length))

    def score(self, state: WindowState, candidates: Candidates, context: Context) -> RankerOutput:
        """Compare candidates with what is asked for."""
        queries = self.query(state, context).index_select(0, candidates.row)
        return RankerOutput(logits=(queries * self.item_vectors(candidates)).sum(1))

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    def _window(self, histories: History) -> Window:
        return Window.of(histories, self.items(histories.item, histories.category, histories.fields))

    def _read(self, window: Window) -> WindowState:
        return WindowState(window=window, query=self._queries(*Along.at_the_end(window)))

    def _queries(self, window: Window, row: Tensor, prefix: Tensor) -> Tensor:
        """Return (R, D): the mean output over the last moment of each request's prefix of a row, made 1 / t long."""
        moments = moment_places(window.offsets, window.time_ms)
        x = window.vectors * self.config.width**0.5 + self.position.index_select(0, moments.index)
        x = self.drop(x)
        # a behaviour reads the strictly earlier moments and itself, so those of one moment have no order
        plan = plan_attention(window.offsets, window.offsets, moments.start)
        at = TokenPlaces.at(moments.start, window.time_ms)
        for layer in self.blocks:
            block = cast("HSTUBlock", layer)
            made = block.project(x)
            own = [OwnKey(made.seen.key, made.seen.value)]
            x = block.mix(x, made.gate, block.attend(made.query, made.seen, plan, queries_at=at, keys_at=at, own=own))
        outputs = torch.cat([self.start[None], moments.mean(x)])
        asked = outputs.index_select(0, moments.asked(window.offsets[row], prefix))
        return F.normalize(asked, dim=1, eps=1e-6) / self.config.temperature


__all__ = ["HSTU", "HSTUConfig"]
