"""Which items have the most similar content: a look at what vectors say before anything is trained on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.content.store import ContentStore
from sostenuto.schema.errors import DataError

Array = npt.NDArray[Any]

ROWS = 16_384  # items compared at a time


def nearest(store: ContentStore, item: int, k: int) -> list[tuple[int, float]]:
    """Return the k items of highest cosine with an item and that cosine; equal cosines in order of the item index.

    Items whose vector is the same, bit by bit, as one listed already (the same text) are left out.

    Args:
        store: content.
        item:  index.
        k:     how many, at least 1.
    """
    if not store.known[item]:
        raise DataError(f"the item must have content, item index {item} has none in {store.folder}; name another one")
    asked = store.rows(np.array([item]))[0]
    asked = asked / max(float(np.linalg.norm(asked)), 1e-30)
    cosine = np.full(len(store.known), -np.inf, np.float32)
    for start in range(0, len(cosine), ROWS):
        rows = start + np.flatnonzero(store.known[start : start + ROWS])
        vectors = store.rows(rows)
        cosine[rows] = vectors @ asked / np.maximum(np.linalg.norm(vectors, axis=1), 1e-30)
    cosine[item] = -np.inf
    found: list[tuple[int, float]] = []
    listed = {store.vectors[item].tobytes()}
    for row in np.argsort(-cosine, kind="stable"):
        if len(found) == k or not np.isfinite(cosine[row]):
            break
        same = store.vectors[row].tobytes()
        if same not in listed:
            listed.add(same)
            found.append((int(row), float(cosine[row])))
    return found


__all__ = ["nearest"]
