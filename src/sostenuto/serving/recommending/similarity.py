"""How alike two items are, for lists that shall not show the same thing ten times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.schema.features import FIRST_KNOWN

Array = npt.NDArray[Any]

CATEGORY_SHARE = 0.5  # of the similarity, where there are vectors too


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSimilarity:
    """Mean of two numbers in [0, 1]: levels of the category path shared from the top, and the cosine of item vectors.

    A negative cosine counts as 0. Where the data have only one of the two it stands alone; with neither all items are
    wholly different. A level that is missing or unknown is shared with nothing, and ends the path.
    """

    category: Array  # (I, K)
    vectors: Array | None = None  # (R, V) of length 1, or zero where an item has none; I - R items have none

    def to(self, item: int, items: Array) -> Array:
        """Return (C,) float64 similarities of one item to (C,) items; indices beyond the tables are like nothing."""
        parts, shares = [], []
        levels = self.category.shape[1]
        if levels:
            parts.append(self._shared(item, items) / levels)
            shares.append(CATEGORY_SHARE if self.vectors is not None else 1.0)
        if self.vectors is not None:
            parts.append(self._cosine(item, items))
            shares.append(1.0 - CATEGORY_SHARE if levels else 1.0)
        if not parts:
            return np.zeros(len(items))
        return np.asarray(np.clip(sum(s * p for s, p in zip(shares, parts, strict=True)), 0.0, 1.0), np.float64)

    def _shared(self, item: int, items: Array) -> Array:
        if item >= len(self.category):
            return np.zeros(len(items))
        inside = np.where(items < len(self.category), items, 0)
        mine = self.category[item]
        same = (self.category[inside] == mine) & (mine >= FIRST_KNOWN)
        return np.asarray(np.cumprod(same, axis=1).sum(1))

    def _cosine(self, item: int, items: Array) -> Array:
        if self.vectors is None or item >= len(self.vectors):
            return np.zeros(len(items))
        inside = np.where(items < len(self.vectors), items, 0)  # row 0 is zero
        return np.asarray(np.maximum(self.vectors[inside] @ self.vectors[item], 0.0))


__all__ = ["CATEGORY_SHARE", "ItemSimilarity"]
