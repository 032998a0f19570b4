"""Self-attentive sequential recommendation (Kang and McAuley, ICDM 2018, arXiv:1808.09781).

Causal self-attention over the newest behaviours; the output at the last one is compared with the vector of every item.
Trained with a sampled softmax in place of the paper's one negative and binary loss, as in the eSASRec study (RecSys
2025). Differs from both: docs/models/sasrec.md lists every choice of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sostenuto.layers.checks import check_config
from sostenuto.layers.dropout import Dropout, DropoutByItem
from sostenuto.layers.item_vectors import ItemVectors
from sostenuto.layers.window import Along, Window, WindowState, windows_along
from sostenuto.ops.bucketed_attention import IdlePlaces, LengthBuckets, bucketed_attention, length_buckets
from sostenuto.ops.moments import moment_places
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, SequenceBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class SASRecConfig:
    """Sizes and switches of SASRec."""

    width: int = 64  # D of items, queries and blocks
    blocks: int = 1
    heads: int = 1
    hidden: int = 64  # width inside the position-wise network; the paper's is D
    max_length: int = 50  # newest behaviours read, with the rest of the moment that the cut would split
    dropout: float = 0.2  # on inputs, attention weights and inside the position-wise network
    # on item vectors, one mask per item for all it is met as in a step; RecTools' has it at `dropout`
    item_dropout: float = 0.0
    # first: positions count from the start of the window; last: from its newest moment, as in the published code. A
    # training pass then counts from the end of the whole timeline, not of each prefix (docs/models/sasrec.md)
    positions: Literal["first", "last"] = "first"
    idle_places: bool = False  # places of the window that hold nothing are keys too, as in RecTools without a key mask
    category_dim: int = 8  # width per category level, mapped onto the item's row; 0 leaves categories out
    field_dim: int = 8  # width per categorical item field, likewise; 0 leaves all item fields out
    table_std: float = 0.02  # initial item rows and positions

    def __post_init__(self) -> None:
        check_config(self)
        for name in ("width", "blocks", "heads", "hidden", "max_length"):
            if getattr(self, name) < 1:
                raise SpecError(f"SASRecConfig.{name} must be at least 1, got {getattr(self, name)}; raise it")
        if not 0.0 <= self.item_dropout < 1.0:
            raise SpecError(f"SASRecConfig.item_dropout must be in [0, 1), got {self.item_dropout}; 0 switches it off")
        if self.width % self.heads:
            raise SpecError(
                f"SASRecConfig.heads must divide width, got {self.heads} and {self.width}; take another number"
            )


class CausalBlock(nn.Module):
    """Attention and a position-wise network, each with a residual around it, as in the paper's code.

    q = LN(x);  x = q + attend(q, x, x);  y = LN(x);  y + W2 relu(W1 y)
    """

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.idle_places = config.max_length if config.idle_places else 0
        self.query_norm, self.hidden_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value, self.mix = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.inner, self.outer = nn.Linear(width, config.hidden), nn.Linear(config.hidden, width)
        for layer in (self.query, self.key_value, self.mix, self.inner, self.outer):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, buckets: LengthBuckets) -> Tensor:
        """Return (N, D) of (N, D)."""
        normed = self.query_norm(x)
        key, value = self.key_value(x).chunk(2, 1)
        query, key, value = (
            part.reshape(len(x), self.heads, x.shape[1] // self.heads) for part in (self.query(normed), key, value)
        )
        idle = None
        if self.idle_places:  # what an input of zeros gives
            idle_key, idle_value = self.key_value.bias.view(2, self.heads, -1).unbind(0)
            idle = IdlePlaces(idle_key, idle_value, self.idle_places)
        attended = bucketed_attention(
            query, key, value, buckets, dropout=self.dropout if self.training else 0.0, idle=idle
        )
        x = normed + self.mix(attended.flatten(1))
        y: Tensor = self.hidden_norm(x)
        out: Tensor = y + self.drop(self.outer(self.drop(torch.relu(self.inner(y)))))
        return out


class SASRec(nn.Module):
    """A causal transformer whose last output is looked up among all items."""

    def __init__(self, config: SASRecConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.items = ItemVectors(
            features,
            config.width,
            category_dim=config.category_dim,
            field_dim=config.field_dim,
            std=config.table_std,
        )
        # of the n-th moment of what is read; a moment holds one behaviour or more, so max_length places are enough
        self.position = nn.Parameter(torch.empty(config.max_length, config.width).normal_(0.0, config.table_std))
        self.start = nn.Parameter(torch.empty(config.width).normal_(0.0, config.table_std))  # of an empty history
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.drop = Dropout(config.dropout)
        self.item_drop = DropoutByItem(config.item_dropout)

    def encode(self, histories: History) -> WindowState:
        """Read the newest behaviours; what they ask for depends on no request."""
        return self._read(self._window(histories).newest(self.config.max_length))

    def append(self, state: WindowState, events: History) -> WindowState:
        """Fold later events in: the window moves on and is read anew, since positions count from its start."""
        return self._read(state.window.joined(self._window(events)).newest(self.config.max_length))

    def query(self, state: WindowState, context: Context) -> Tensor:
        """Return (B, D) what each user asks for; the request adds nothing."""
        return state.query

    def item_vectors(self, candidates: Candidates) -> Tensor:
        """Return (N, D): the vectors that behaviours are read by, too."""
        vectors = self.items(candidates.item, candidates.category, candidates.fields)
        dropped: Tensor = self.item_drop(vectors, candidates.item)
        return dropped

    def queries_along(self, batch: SequenceBatch) -> Tensor:
        """Return (R, D) what is asked for at every request of the timelines.

        Each timeline is read once, but where positions count from the newest moment: then one pass over it gives what
        its prefixes ask for with other positions, which is good enough to learn by and is not what they ask for.
        """
        timelines = self._window(batch.histories)
        is_shared = self.training or self.config.positions == "first"
        return self._queries(
            *windows_along(timelines, batch.row, batch.prefix, self.config.max_length, is_shared=is_shared)
        )

    def score(self, state: WindowState, candidates: Candidates, context: Context) -> RankerOutput:
        """Compare candidates with what is asked for."""
        queries = self.query(state, context).index_select(0, candidates.row)
        return RankerOutput(logits=(queries * self.item_vectors(candidates)).sum(1))

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    def _window(self, histories: History) -> Window:
        self.item_drop.renew()  # reading histories begins a step
        vectors = self.items(histories.item, histories.category, histories.fields)
        return Window.of(histories, self.item_drop(vectors, histories.item))

    def _read(self, window: Window) -> WindowState:
        return WindowState(window=window, query=self._queries(*Along.at_the_end(window)))

    def _queries(self, window: Window, row: Tensor, prefix: Tensor) -> Tensor:
        """Return (R, D): the mean output over the last moment of each request's prefix of a row."""
        moments = moment_places(window.offsets, window.time_ms)
        # from the start of the window, outputs inside a timeline do not depend on what follows
        places = moments.index if self.config.positions == "first" else moments.from_end(window.offsets)
        x = self.drop(window.vectors + self.position.index_select(0, places))
        buckets = length_buckets(window.offsets, moments.end)
        for block in self.blocks:
            x = block(x, buckets)
        outputs = torch.cat([self.start[None], self.norm(moments.mean(x))])
        return outputs.index_select(0, moments.asked(window.offsets[row], prefix))


__all__ = ["SASRec", "SASRecConfig"]
