"""Encoders of item texts that a ranker's loss trains: text rows in, one vector per text out.

Both read constants that `ItemContent` hands over (tokens and their frozen input table, or hidden states and the frozen
layer above them) and keep no copy. Texts go through in order of length, so that short ones are not padded to the
longest; padding reaches no result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.layers.initialise import xavier_linear
from sostenuto.layers.lora import LoRALinear
from sostenuto.ops.encoder_layer import encoder_layer, text_vectors
from sostenuto.schema.content import LAST_LAYER, ItemContent
from sostenuto.schema.errors import RunError, SpecError
from sostenuto.schema.features import ContentField

ATTENTION_MAPS = ("query", "key", "value", "attention")  # of a frozen layer: those that a low-rank change is added to
FROZEN = tuple(name for name in LAST_LAYER if name.partition(".")[0] not in ATTENTION_MAPS)
TEXTS_AT_ONCE = 256  # of about one length; bounds padding, and memory where no gradient is kept


class _Texts(nn.Module):
    """The tokens of distinct texts; row 0 is no text."""

    tokens: Tensor
    item_of: Tensor
    text_row: Tensor

    def __init__(self, content: ContentField, max_tokens: int) -> None:
        super().__init__()
        self.name = content.name
        self.max_tokens = min(max_tokens, content.num_tokens)
        self.register_buffer("tokens", torch.zeros(0, content.num_tokens, dtype=torch.int32), persistent=False)
        self.register_buffer("item_of", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("text_row", torch.zeros(0, dtype=torch.int32), persistent=False)

    def set_texts(self, content: ItemContent) -> None:
        if content.tokens is None or content.text_row is None:
            raise SpecError(
                f"content {self.name!r} must come with tokens and text rows, these are missing; "
                "hand over what content.store.open_content gives"
            )
        row = content.text_row.long()
        self.tokens, self.text_row = content.tokens, content.text_row
        self.item_of = row.new_zeros(int(row.max()) + 1 if len(row) else 1)
        turned = torch.arange(len(row) - 1, -1, -1, device=row.device)
        self.item_of[row[turned]] = turned  # the last write stays: the first item of every text
        self.item_of[0] = 0  # padding, whose tokens are none

    @property
    def num_texts(self) -> int:
        """Distinct texts, row 0 included."""
        return len(self.item_of)

    def _check(self) -> None:
        if not len(self.item_of):
            raise RunError(
                f"content {self.name!r} must be handed over before a ranker is asked, nothing came; "
                "call take_content with content.store.open_content, or open the run with `open_run`"
            )

    def of_items(self, item: Tensor) -> Tensor:
        """Return the (N,) int64 text rows of items; 0 = no text."""
        self._check()
        return self.text_row[item].long()

    def tokens_of(self, text: Tensor) -> Tensor:
        """Return (N, max_tokens) int64 token ids of text rows; 0 = padding. A longer text keeps its beginning."""
        self._check()
        return self.tokens[self.item_of[text]][:, : self.max_tokens].long()

    def by_length(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (positions in `text`, (n, T) tokens cut to the longest) of pieces of about one length."""
        tokens = self.tokens_of(text)
        lengths = (tokens != 0).sum(1)
        order = torch.argsort(lengths, stable=True)
        starts = range(0, len(order), TEXTS_AT_ONCE)
        pieces = [order[start : start + TEXTS_AT_ONCE] for start in starts]
        return [(at, tokens[at, : max(int(lengths[at[-1]]), 1)]) for at in pieces]


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum(1, keepdim=True).clamp(min=1)
    return (values * mask[:, :, None]).sum(1) / count


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Return (N, T, D) of softmax attention over the real tokens."""

    rows, count, dim = query.shape

    def split(values: Tensor) -> Tensor:
        return values.reshape(rows, count, heads, dim // heads).transpose(1, 2)

    query, key, value = split(query), split(key), split(value)
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


class _Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_inner = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.joint = xavier_linear(dim, 3 * dim)
        self.out = xavier_linear(dim, dim)
        self.inner, self.outer = xavier_linear(dim, 2 * dim), xavier_linear(2 * dim, dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.joint(self.before_attention(tokens)).chunk(3, -1)
        tokens = tokens + self.out(_attend(query, key, value, mask, self.heads))
        out: Tensor = tokens + self.outer(F.gelu(self.inner(self.before_inner(tokens))))
        return out


class TokenEncoder(_Texts):
    """A small transformer over a frozen table of token vectors, trained from the start; mean over tokens, layer norm.

    Args:
        content: sizes; has tokens.
        dim: width.
        layers: one or two.
        heads: of each layer.
        max_tokens: a longer text is cut.
    """

    token_vectors: Tensor

    def __init__(self, content: ContentField, *, dim: int, layers: int, heads: int, max_tokens: int) -> None:
        super().__init__(content, max_tokens)
        if dim % heads:
            raise SpecError(f"heads must divide the width {dim} of a text encoder, got {heads}; take 1, 2 or 4")
        self.out_dim = dim
        shape = (0, content.token_dim)
        self.register_buffer("token_vectors", torch.zeros(shape, dtype=torch.float16), persistent=False)
        self.project = xavier_linear(content.token_dim, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(self.max_tokens, dim))
        self.layers = nn.ModuleList(_Layer(dim, heads=heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.scale = 1.0

    def set_content(self, content: ItemContent) -> None:
        """Take the tokens and the table over; nothing is copied."""
        self.set_texts(content)
        if content.token_vectors is None:
            raise SpecError(f"content {self.name!r} must come with token vectors, none came; build it with an encoder")
        self.token_vectors = content.token_vectors
        sample = content.token_vectors[:: max(1, len(content.token_vectors) // 4096)].float()
        self.scale = 1.0 / max(float(sample.square().mean().sqrt()), 1e-6)  # entries of about 1

    def forward(self, text: Tensor) -> Tensor:
        """Return (N, dim) of (N,) text rows."""
        if not len(text):
            return self.positions.new_zeros(0, self.out_dim)
        parts, places = [], []
        for at, tokens in self.by_length(text):
            mask = tokens != 0
            distinct, place = torch.unique(tokens, return_inverse=True)
            vectors = self.project(self.token_vectors[distinct].float() * self.scale)
            hidden = F.embedding(place, vectors) + self.positions[: tokens.shape[1]]
            for layer in self.layers:
                hidden = layer(hidden, mask)
            parts.append(self.norm(_masked_mean(hidden, mask)))
            places.append(at)
        return _back(parts, places)


class LastLayerEncoder(_Texts):
    """The frozen last layer of a text encoder over its stored hidden states, with a trained change of low rank.

    At the start a text's vector is the frozen encoder's own (scaled to entries of about 1): mean over tokens, scaled
    to length.

    The change is of the four maps of the attention; the two wide maps behind it stay as they are. Ours.

    Args:
        content: sizes; has states.
        rank: of every map's change.
        alpha: a change counts alpha / rank.
        max_tokens: a longer text is cut.
    """

    states: Tensor

    def __init__(self, content: ContentField, *, rank: int, alpha: float, max_tokens: int) -> None:
        super().__init__(content, max_tokens)
        dim = content.token_dim
        self.out_dim = dim
        self.heads = 0
        self.register_buffer("states", torch.zeros(0, 0, dim, dtype=torch.float16), persistent=False)
        self.changed = nn.ModuleDict(
            {name: LoRALinear(dim, dim, rank=rank, alpha=alpha, persistent=False) for name in ATTENTION_MAPS}
        )
        for name in FROZEN:
            self.register_buffer(_buffer(name), torch.zeros(0), persistent=False)

    def set_content(self, content: ItemContent) -> None:
        """Take states and the frozen layer over."""
        self.set_texts(content)
        if content.states is None or not content.last_layer:
            raise SpecError(
                f"content {self.name!r} must come with hidden states and the layer above them, these are missing; "
                "build it with `--states`"
            )
        self.states, self.heads = content.states, content.heads
        for name, change in self.changed.items():
            assert isinstance(change, LoRALinear)
            change.set_base(content.last_layer[f"{name}.weight"], content.last_layer[f"{name}.bias"])
        for name in FROZEN:
            setattr(self, _buffer(name), content.last_layer[name])

    def _weights(self) -> dict[str, Tensor]:
        """Return the layer's weights with the changes added: one sum a call, not one a text."""
        weights: dict[str, Tensor] = {name: getattr(self, _buffer(name)) for name in FROZEN}
        for name, change in self.changed.items():
            assert isinstance(change, LoRALinear)
            weights[f"{name}.weight"], weights[f"{name}.bias"] = change.merged()
        return weights

    def forward(self, text: Tensor) -> Tensor:
        """Return (N, token_dim) of (N,) text rows."""
        weights = self._weights()
        if not len(text):
            return weights["query.bias"].new_zeros(0, self.out_dim)
        parts, places = [], []
        for at, tokens in self.by_length(text):
            mask = tokens != 0
            hidden = self.states[text[at], : tokens.shape[1]].float()
            made = text_vectors(encoder_layer(hidden, mask, weights, heads=self.heads), mask)
            parts.append(made * math.sqrt(self.out_dim))
            places.append(at)
        return _back(parts, places)


def _buffer(name: str) -> str:
    return name.replace(".", "_")


def _back(parts: list[Tensor], places: list[Tensor]) -> Tensor:
    """Put pieces back where their texts stood."""
    place = torch.cat(places)
    return torch.cat(parts)[torch.argsort(place)]


__all__ = ["LastLayerEncoder", "TokenEncoder"]
