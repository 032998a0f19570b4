"""Which candidates stand in the top k of each list; ties are broken by a hash, never by the order of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sostenuto.evaluation.terms import Array, dense_groups
from sostenuto.schema.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class TopRows:
    """The rows that stand in the first places of their list."""

    row: Array  # (T,) row of the scores
    group: Array  # (T,) dense group
    place: Array  # (T,) 0-based place in the list

    def first(self, k: int) -> TopRows:
        """Return the first k places only."""
        kept = self.place < k
        return TopRows(row=self.row[kept], group=self.group[kept], place=self.place[kept])


def _shuffled(group: Array, item: Array) -> Array:
    """Mix (group, item) into 64 bits (splitmix64): a coin that falls the same way in every run."""
    with np.errstate(over="ignore"):
        z = group.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + item.astype(np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def top_rows(scores: Array, group: Array, item: Array, k: int) -> TopRows:
    """Return the first k rows of each group, best first.

    Item indices are ordered by popularity, so breaking ties by index would smuggle popularity in; the hash does not.
    """
    if k < 1:
        raise SpecError(f"k must be at least 1, got {k}")
    names, codes = dense_groups(group)
    order = np.lexsort((_shuffled(names[codes], item), -np.asarray(scores, np.float64), codes))
    sorted_codes = codes[order]
    starts = np.searchsorted(sorted_codes, np.arange(len(names)))
    place = np.arange(len(order)) - starts[sorted_codes]
    return TopRows(row=order, group=sorted_codes, place=place).first(k)


__all__ = ["TopRows", "top_rows"]
