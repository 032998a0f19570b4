"""Checks of the sizes and switches that the configs of neural rankers share."""

from __future__ import annotations

from typing import Any

from sostenuto.layers.tower import ACTIVATIONS
from sostenuto.ops.target_attention import NORMALISERS
from sostenuto.schema.errors import SpecError

_SHARES = ("dropout", "embedding_dropout", "id_dropout")
_MAY_BE_ZERO = ("item_dim", "vector_dim", "key_vector_dim", "category_dim", "field_dim", "bins", "side_dim")
_ABOVE_ZERO = ("table_std", "field_std")
_FROM_ONE = ("short_recent",)  # None switches it off
_WIDTHS = ("attention_units", "tower_units")
_CHOICES = {"tower_activation": ACTIVATIONS, "normalise": NORMALISERS}


def check_config(config: Any) -> None:
    """Refuse a value out of range in any field of a shared name, naming field, value and fix.

    Args:
        config: a frozen dataclass; fields it does not have are not looked at.
    """
    owner = type(config).__name__

    def refuse(name: str, wanted: str) -> None:
        raise SpecError(f"{owner}.{name} must be {wanted}, got {getattr(config, name)!r}; set it so")

    for name in filter(lambda name: hasattr(config, name), (*_SHARES, *_MAY_BE_ZERO, *_ABOVE_ZERO, *_FROM_ONE)):
        value = getattr(config, name)
        if name in _SHARES and not 0.0 <= value < 1.0:
            refuse(name, "in [0, 1), where 0 is off")
        if name in _MAY_BE_ZERO and value < 0:
            refuse(name, "0, which leaves it out, or more")
        if name in _ABOVE_ZERO and not value > 0:
            refuse(name, "above 0")
        if name in _FROM_ONE and value is not None and value < 1:
            refuse(name, "at least 1")
    for name in filter(lambda name: hasattr(config, name), _WIDTHS):
        if not getattr(config, name) or min(getattr(config, name)) < 1:
            refuse(name, "one or more widths of at least 1")
    for name, choices in _CHOICES.items():
        if hasattr(config, name) and getattr(config, name) not in choices:
            refuse(name, f"one of {', '.join(choices)}")


__all__ = ["check_config"]
