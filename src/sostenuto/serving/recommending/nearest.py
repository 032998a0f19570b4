"""Candidate sources: nearest items, by vectors of their content, by a ranker's fixed vectors, or by its own search.

The search is an exact product with all candidate items: a few milliseconds for 100,000 of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.serving.recommending.source import NOTHING, Proposal, Seeker

if TYPE_CHECKING:
    from sostenuto.features.assembly import Assembler
    from sostenuto.schema.content import ItemContent

Array = npt.NDArray[Any]

ROWS_AT_ONCE = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorIndex:
    """Vectors of the candidate items that have one, and of every item that a user may have met."""

    item: Array  # (M,) int64 rising
    vectors: Array  # (M, D) float32
    every: Array  # (R, D) by item index: what is looked up for past items; zero rows have no vector

    @classmethod
    def of(cls, items: Array, vectors: Array) -> VectorIndex:
        """Index the vectors (R, D) of items, scaled to length 1; rows of zeros have none."""
        every = unit_rows(vectors)
        inside = items[items < len(every)]
        inside = inside[(every[inside] != 0).any(1)]
        return cls(item=inside, vectors=np.ascontiguousarray(every[inside]), every=every)

    def rows(self, item: Array) -> Array:
        """Return (N, D) vectors of items; zero where there is none."""
        inside = np.where(item < len(self.every), item, 0)
        return np.asarray(self.every[inside])


def unit_rows(vectors: Array) -> Array:
    """Return rows scaled to length 1, in float32; rows of zeros stay. Row 0 and 1, which are no items, become zero."""
    found = np.empty(vectors.shape, np.float32)
    for start in range(0, len(found), ROWS_AT_ONCE):
        part = np.asarray(vectors[start : start + ROWS_AT_ONCE], np.float32)
        found[start : start + ROWS_AT_ONCE] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    found[:2] = 0.0
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestSource:
    """Items of the highest cosine with one of the newest distinct items, those themselves left out.

    One query per item and not their mean: a mean of several interests lies near none of them. An item's cosine counts
    with the fourth root of its decayed count, so that a habit proposes more than a whim. Ours.
    """

    name: str
    index: VectorIndex
    recent: int = 16  # distinct items that are queries

    def propose(self, seeker: Seeker, budget: int) -> Proposal:
        """Return items by their best weighted cosine."""
        past = seeker.past
        at = past.by_recency[: self.recent]
        queries = self.index.rows(past.item[at])
        queries = queries * (past.decayed_at(seeker.time_ms)[at] ** 0.25).astype(np.float32)[:, None]
        if not queries.any():
            return NOTHING
        score = (self.index.vectors @ queries.T).max(1)
        wanted = (score > 0) & ~np.isin(self.index.item, past.item[at])
        return Proposal.best(self.index.item[wanted], score[wanted], budget)


class SearchSource:
    """Items of the highest inner product with what a retriever asks for: its own search.

    Args:
        name:      of the source.
        ranker:    has `query` and `item_vectors`, see `schema.ranker.Retriever`; in evaluation mode.
        assembler: describes items.
        items:     (M,) int64 rising.
    """

    def __init__(self, name: str, ranker: Any, assembler: Assembler, items: Array) -> None:
        import torch

        self.name, self._ranker, self._items = name, ranker, items
        with torch.inference_mode():
            parts = [
                ranker.item_vectors(assembler.items(items[at : at + ROWS_AT_ONCE]))
                for at in range(0, len(items), ROWS_AT_ONCE)
            ]
            self._vectors = torch.cat(parts) if parts else torch.zeros(0, 1)

    def propose(self, seeker: Seeker, budget: int) -> Proposal:
        """Return items by inner product; a user without a past has a query too."""
        import torch

        if seeker.state is None or seeker.context is None or not len(self._items):
            return NOTHING
        with torch.inference_mode():
            query = self._ranker.query(seeker.state, seeker.context)
            score = (self._vectors @ query[0]).double().numpy(force=True)
        return Proposal.best(self._items, score, budget)


def is_retriever(ranker: Any) -> bool:
    """Say whether a ranker can search by inner product."""
    return callable(getattr(ranker, "query", None)) and callable(getattr(ranker, "item_vectors", None))


def fixed_vectors(ranker: Any) -> Array | None:
    """Return (R, V) fixed item vectors that a ranker carries, None where it has none."""
    from torch import nn

    from sostenuto.layers.embedding import ItemEmbedding

    if isinstance(ranker, nn.Module):
        for module in ranker.modules():
            if isinstance(module, ItemEmbedding) and module.vector_dim and bool(module.vectors.any()):
                return np.asarray(module.vectors.detach().numpy(force=True), np.float32)
    return None


def content_vectors(content: ItemContent) -> Array:
    """Return (num_items, D) float32 vectors of item content, codes decoded; zero where an item has none."""
    vectors = content.vectors.numpy(force=True).astype(np.float32)
    if content.scale is not None:
        vectors *= content.scale.numpy(force=True)[:, None]
    vectors[~content.known.numpy(force=True)] = 0.0
    return np.asarray(vectors)


__all__ = [
    "NearestSource",
    "SearchSource",
    "VectorIndex",
    "content_vectors",
    "fixed_vectors",
    "is_retriever",
    "unit_rows",
]
