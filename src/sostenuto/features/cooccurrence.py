"""Item vectors from who bought what, as they stood at several times of the training period.

Embedding rows that only the labels train over-fit within an epoch, while the log says for free which items go
together. A truncated singular value decomposition of the (user, item) matrix gives one vector per item; rankers take
them as fixed inputs. Vectors of the whole training period would remember each user's own later purchases: agreement
with them took .006 to .008 validation GAUC by request from the promoted list of Complete Journey. So there are
versions, each of the events before a time, and a training request sees none that knows its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.data.prepared import SPLITS
from sostenuto.features.array_cache import keep_arrays, kept_arrays
from sostenuto.schema.features import FIRST_KNOWN

if TYPE_CHECKING:
    from sostenuto.data.prepared import PreparedData

Array = npt.NDArray[Any]

NUM_VERSIONS = 12  # spread over the training requests: three weeks apart on Complete Journey
VECTORS_VERSION = 3  # raise it when equal data would give other vectors: it names the cache
NORM_FLOOR = 1e-3  # keeps the vector of an item that hardly occurs near zero


def cooccurrence_vectors(user: Array, item: Array, num_items: int, dim: int) -> Array:
    """Return (num_items, dim) float32 vectors of about length 1; zero for items that do not occur.

    Counts enter as log1p(count) * idf, each user scaled to length 1. Columns are ordered by singular value, with the
    sign that makes the largest entry positive, so equal input gives equal output.

    Args:
        user:      (N,) int64 of each event.
        item:      (N,) int64 of each event.
        num_items: size of the vocabulary.
        dim:       columns; those beyond what the data can support are zero.
    """
    import scipy.sparse as sparse
    from scipy.sparse.linalg import svds

    vectors = np.zeros((num_items, dim), np.float32)
    users, row = np.unique(user, return_inverse=True)
    items, column = np.unique(item, return_inverse=True)
    rank = min(dim, len(users) - 1, len(items) - 1)
    if rank < 1:
        return vectors
    counts = sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=(len(users), len(items)))
    counts.sum_duplicates()
    holders = np.bincount(counts.indices, minlength=len(items))
    weight = np.log1p(counts.data) * np.log((len(users) + 1) / (holders + 1.0))[counts.indices]
    length = np.sqrt(np.bincount(np.repeat(np.arange(len(users)), np.diff(counts.indptr)), weight**2, len(users)))
    counts.data = weight / np.maximum(length, 1e-12)[np.repeat(np.arange(len(users)), np.diff(counts.indptr))]
    if not counts.data.any():  # every user has every item: nothing tells them apart, and ARPACK refuses zeros
        return vectors
    start = np.random.default_rng(0).normal(size=min(counts.shape))
    _, singular, right = svds(counts, k=rank, v0=start)
    order = np.argsort(-singular, kind="stable")
    found = right[order].T * np.sqrt(np.maximum(singular[order], 0.0))
    found *= np.sign(found[np.abs(found).argmax(0), np.arange(rank)])
    found /= np.linalg.norm(found, axis=1, keepdims=True) + NORM_FLOOR
    vectors[items, :rank] = found
    return vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemVectors:
    """Vectors at P times of the training period, and at its end; V = dim, or 2 * dim with categories."""

    last: Array  # (num_vector_items, V) float32, of every event that training may use
    past: Array  # (P, num_vector_items, V) float16; version p is of events strictly before starts_ms[p]
    starts_ms: Array  # (P,) int64, rising; the first is the time of the first training request


def item_vectors(data: PreparedData, dim: int) -> ItemVectors:
    """Return the vectors of a prepared folder, made once and kept in its `cache/`.

    With categories a vector is the item's, then that of its finest category, made the same way. Each version is
    turned to lie on the one before it, which changes no inner product inside a version, so that a column means about
    the same in all.
    """
    path = data.folder / "cache" / f"cooccurrence-v{VECTORS_VERSION}-{data.manifest.arrays_hash[:16]}-{dim}.npz"
    if (kept := kept_arrays(path, "last", "past", "starts_ms")) is not None:
        last, past, starts = kept
        return ItemVectors(last=last, past=past, starts_ms=starts)
    lawful = training_events(data)
    time_ms = np.asarray(data.behaviours.time_ms)
    width = dim * (2 if data.features.categories else 1)
    starts = version_starts(np.asarray(data.requests("train").time_ms))
    past = np.zeros((len(starts), data.features.num_vector_items, width), np.float16)
    newest = np.zeros((data.features.num_vector_items, width), np.float32)
    for version, start in enumerate(starts):
        newest = _turned_parts(_vectors_of(data, lawful & (time_ms < start), dim), newest, dim)
        past[version] = newest
    last = _turned_parts(_vectors_of(data, lawful, dim), newest, dim)
    vectors = ItemVectors(last=last, past=past, starts_ms=starts)
    keep_arrays(path, last=last, past=past, starts_ms=starts)
    return vectors


def training_events(data: PreparedData) -> Array:
    """Return (N,) bool: behaviours that statistics of training may use.

    Where the protocol splits by time, those before the first validation or test request of all; where splits overlap
    in time (leave-last-out), those before the first of their own user. No event at or after a held-out request.
    """
    time_ms = np.asarray(data.behaviours.time_ms)
    asked = {s: data.requests(s) for s in SPLITS if (data.folder / "requests" / s).is_dir()}
    held_out = [asked[s] for s in ("valid", "test") if s in asked and len(asked[s])]
    if not held_out:
        return np.ones(len(time_ms), np.bool_)
    first = min(int(np.min(r.time_ms)) for r in held_out)
    if "train" not in asked or not len(asked["train"]) or int(np.max(asked["train"].time_ms)) < first:
        return time_ms < first
    until = np.full(len(data.behaviours.offsets) - 1, np.iinfo(np.int64).max)
    for requests in held_out:
        np.minimum.at(until, np.asarray(requests.user), np.asarray(requests.time_ms))
    return np.asarray(time_ms < np.repeat(until, np.diff(data.behaviours.offsets)))


def version_starts(train_ms: Array) -> Array:
    """Return the (P,) rising start times of the versions for the times of the training requests.

    >>> version_starts(np.array([100, 220])).tolist()[:3]
    [100, 110, 120]
    """
    if not len(train_ms):
        return np.zeros(0, np.int64)
    first, last = int(train_ms.min()), int(train_ms.max())
    return np.unique(first + (last - first) * np.arange(NUM_VERSIONS, dtype=np.int64) // NUM_VERSIONS)


def turned(vectors: Array, target: Array) -> Array:
    """Return vectors rotated (or mirrored) to lie as near to `target` as a rotation can bring them."""
    left, _, right = np.linalg.svd(vectors.T.astype(np.float64) @ target)
    return np.asarray(vectors @ (left @ right), np.float32)


def _turned_parts(vectors: Array, target: Array, dim: int) -> Array:
    """Turn the item's part and the category's part, each by itself."""
    parts = [slice(start, start + dim) for start in range(0, vectors.shape[1], dim)]
    return np.concatenate([turned(vectors[:, part], target[:, part]) for part in parts], 1)


def _vectors_of(data: PreparedData, chosen: Array, dim: int) -> Array:
    """Return (num_vector_items, V) float32 vectors of the chosen (N,) behaviours."""
    rows = data.features.num_vector_items
    at = np.flatnonzero(chosen)
    user = np.searchsorted(data.behaviours.offsets, at, side="right") - 1
    item = np.asarray(data.behaviours.item)[at]
    owners = item < rows
    vectors = cooccurrence_vectors(user[owners], item[owners], rows, dim)
    if data.features.categories:
        finest = data.item_category[:, -1]
        known = finest[item] >= FIRST_KNOWN
        kinds = cooccurrence_vectors(user[known], finest[item][known], data.features.categories[-1].size, dim)
        vectors = np.concatenate([vectors, kinds[finest[:rows]]], 1)
    return vectors


__all__ = [
    "ItemVectors",
    "cooccurrence_vectors",
    "item_vectors",
    "training_events",
    "turned",
    "version_starts",
]
