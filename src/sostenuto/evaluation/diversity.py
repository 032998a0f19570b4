"""Diversity@k (intra-list): mean distance of the pairs that a list shows in its first k, by category path.

Two items of a path with K levels are 1 - (levels shared from the top) / K apart: 0 in one leaf, 1 in different roots.
Lists that show fewer than two items are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sostenuto.evaluation.terms import Array
from sostenuto.evaluation.top_rows import TopRows


@dataclass(frozen=True, slots=True, kw_only=True)
class DiversityState:
    """Sums over lists with at least two shown items."""

    distance: float
    lists: int


def state(top: TopRows, category: Array) -> DiversityState:
    """Sum the mean pair distance of whole lists; `category` is (N, K) of every candidate, coarse to fine."""
    rows, codes = top.row, top.group
    levels = category.shape[1]
    size = np.bincount(codes).astype(np.float64)
    pairs = size * (size - 1) / 2
    kept = pairs > 0
    if levels == 0 or not kept.any():
        return DiversityState(distance=0.0, lists=0)
    shared = np.zeros(len(size))
    prefix = codes
    for level in range(levels):  # lists and path prefixes together name a cell; pairs inside a cell share the level
        column = category[rows, level].astype(np.int64)
        _, prefix = np.unique(prefix * (int(column.max()) + 1) + column, return_inverse=True)
        prefix = prefix.reshape(-1)
        cell = np.bincount(prefix).astype(np.float64)
        list_of_cell = np.zeros(len(cell), np.int64)
        list_of_cell[prefix] = codes
        shared += np.bincount(list_of_cell, weights=cell * (cell - 1) / 2, minlength=len(size))
    distance = 1.0 - shared[kept] / pairs[kept] / levels
    return DiversityState(distance=float(distance.sum()), lists=int(kept.sum()))


def merge(a: DiversityState, b: DiversityState) -> DiversityState:
    """Join two states."""
    return DiversityState(distance=a.distance + b.distance, lists=a.lists + b.lists)


def value(state: DiversityState) -> float:
    """Return the mean distance, 0 .. 1; NaN without lists of two."""
    return state.distance / state.lists if state.lists else float("nan")


__all__ = ["DiversityState", "merge", "state", "value"]
