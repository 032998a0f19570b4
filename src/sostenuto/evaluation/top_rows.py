"""Which candidates stand in the top k of each list; ties are broken by a hash, never by the order of rows."""

from __future__ import annotations

import numpy as np

from sostenuto.evaluation.terms import Array, dense_groups
from sostenuto.schema.errors import SpecError


def _shuffled(group: Array, item: Array) -> Array:
    """Mix (group, item) into 64 bits (splitmix64): a coin that falls the same way in every run."""
    with np.errstate(over="ignore"):
        z = group.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + item.astype(np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def top_rows(scores: Array, group: Array, item: Array, k: int) -> tuple[Array, Array]:
    """Return the rows of the first k of each group, and their dense group.

    Item indices are ordered by popularity, so breaking ties by index would smuggle popularity in; the hash does not.
    """
    if k < 1:
        raise SpecError(f"k must be at least 1, got {k}")
    names, codes = dense_groups(group)
    order = np.lexsort((_shuffled(names[codes], item), -np.asarray(scores, np.float64), codes))
    sorted_codes = codes[order]
    starts = np.searchsorted(sorted_codes, np.arange(len(names)))
    place = np.arange(len(order)) - starts[sorted_codes]
    kept = place < k
    return order[kept], sorted_codes[kept]


__all__ = ["top_rows"]
