"""ItemContent: what a ranker is handed of the items' texts and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LAST_LAYER = (  # names of the tensors of `ItemContent.last_layer`; D = token_dim, I = its inner width
    *("query.weight", "query.bias", "key.weight", "key.bias", "value.weight", "value.bias"),  # (D, D), (D,)
    *("attention.weight", "attention.bias", "attention_norm.weight", "attention_norm.bias"),  # (D, D), (D,) ...
    *("inner.weight", "inner.bias", "outer.weight", "outer.bias"),  # (I, D), (I,), (D, I), (D,)
    *("outer_norm.weight", "outer_norm.bias"),  # (D,)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemContent:
    """One kind of content of all items; row = item index, rows 0 (padding) and 1 (unknown) are zero.

    The tensors are constants of the prepared folder: memory-mapped, never trained, never part of a checkpoint. A
    ranker keeps them as buffers with `persistent=False` (`layers/content_vectors.py`).

    Tokens start and end with the marks of the tokeniser; token 0 is padding behind the last one. States are stored
    once per distinct text: the states of item i are `states[text_row[i]]`, those of padding positions are zero.
    `last_layer` is the frozen layer above the states, with `heads` heads: `ops.encoder_layer.encoder_layer` applies it
    and `text_vectors` makes the item's vector of the result, up to rounding and to texts longer than `num_tokens`.
    """

    name: str
    arrays_hash: str  # of the arrays; recorded with a trained ranker and checked when it is opened
    known: Tensor  # (num_items,) bool, the item has content
    vectors: Tensor  # (num_items, vector_dim) float16, or int8 codes
    scale: Tensor | None = None  # (num_items,) float32; a vector is its codes times this. None: vectors are no codes
    tokens: Tensor | None = None  # (num_items, num_tokens) int32
    token_vectors: Tensor | None = None  # (num_token_ids, token_dim) float16, the encoder's input table
    text_row: Tensor | None = None  # (num_items,) int32, equal for items of equal text; 0 = no text
    states: Tensor | None = None  # (num distinct texts + 1, num_tokens, token_dim) float16
    last_layer: Mapping[str, Tensor] = field(default_factory=dict)  # float32, see LAST_LAYER; {} without states
    heads: int = 0  # of `last_layer`

    def to(self, device: torch.device | str) -> Self:
        """Return a copy whose tensors live on `device`; nothing is copied that is there already."""
        changes = {name: _moved(getattr(self, name), device) for name in self.__slots__}
        return type(self)(**changes)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(item, device) for name, item in value.items()}
    return value.to(device) if hasattr(value, "to") else value


__all__ = ["LAST_LAYER", "ItemContent"]
