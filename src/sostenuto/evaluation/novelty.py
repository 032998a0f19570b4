"""Novelty@k: mean self-information, in bits, of what lists show in their first k: -log2 of the training share.

The share of an item is (count + 1) / (all counts + number of items), so that a never-seen item stays finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sostenuto.evaluation.terms import Array
from sostenuto.evaluation.top_rows import TopRows


@dataclass(frozen=True, slots=True, kw_only=True)
class NoveltyState:
    """Sums over shown candidates."""

    bits: float
    shown: int


def state(top: TopRows, item_count: Array, *, total: int, num_items: int) -> NoveltyState:
    """Sum the self-information of whole lists.

    Args:
        top:        the rows shown.
        item_count: (N,) training count of every candidate.
        total:      training count of all items together.
        num_items:  items that the counts run over.
    """
    share = (item_count[top.row] + 1.0) / (total + num_items)
    return NoveltyState(bits=float(-np.log2(share).sum()), shown=len(top.row))


def merge(a: NoveltyState, b: NoveltyState) -> NoveltyState:
    """Join two states."""
    return NoveltyState(bits=a.bits + b.bits, shown=a.shown + b.shown)


def value(state: NoveltyState) -> float:
    """Return bits per shown candidate; NaN when nothing was shown."""
    return state.bits / state.shown if state.shown else float("nan")


__all__ = ["NoveltyState", "merge", "state", "value"]
