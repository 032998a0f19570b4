"""Seeded sampling of candidates for all requests at once."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from sostenuto.data.prepared import Array

_ROUNDS = 48  # rejection rounds before the few rows still open are finished exactly, one by one


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a random generator of its own for this seed and these names (protocol, list, step)."""
    words = [zlib.crc32(str(name).encode()) for name in names]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))


def contains(sorted_keys: Array, keys: Array) -> Array:
    """Return which `keys` occur in `sorted_keys`."""
    if len(sorted_keys) == 0:
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.asarray(sorted_keys[at] == keys)


def cap_per_row(row: Array, limit: Array | int, rng: np.random.Generator) -> Array:
    """Return a mask that keeps at most `limit` (one number, or one per row index) random entries of each row.

    Args:
        row:   (N,) row index of each entry, in any order.
        limit: entries to keep per row.
        rng:   randomness.
    """
    order = np.lexsort((rng.random(len(row)), row))
    ordered = row[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(row) else np.zeros(0, np.int64)
    rank = np.arange(len(row)) - np.repeat(starts, np.diff(np.append(starts, len(row))))
    allowed = limit if isinstance(limit, int) else limit[ordered]
    keep = np.zeros(len(row), bool)
    keep[order] = rank < allowed
    return keep


def sample_distinct(
    counts: Array,
    draw: Callable[[Array, np.random.Generator], Array],
    pool: Callable[[int], tuple[Array, Array | None]],
    forbidden: Array,
    *,
    num_items: int,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Draw `counts[r]` distinct items for every row r, none of them forbidden.

    Draws one after another and rejects what the row has already: exactly successive sampling without replacement
    from the distribution behind `draw`. Rows that rejection cannot fill are finished by an exact draw from what is
    left of their pool.

    Args:
        counts:    (R,) items to draw; the caller makes sure that the pool minus the forbidden holds as many.
        draw:      rows (S,), generator -> items (S,), one draw with replacement for each.
        pool:      row -> its items and their weights (None: uniform); asked only for rows that stay open.
        forbidden: sorted keys `row * num_items + item`.
        num_items: size of the item vocabulary.
        rng:       randomness.
    Returns:
        row (S,) ascending and item (S,), S = sum of counts.
    """
    row = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    item = np.full(len(row), -1, np.int64)
    taken = [forbidden]
    open_ = np.arange(len(row))
    for _ in range(_ROUNDS):
        if not len(open_):
            break
        drawn = draw(row[open_], rng)
        keys = row[open_] * num_items + drawn
        _, first = np.unique(keys, return_index=True)
        good = np.zeros(len(keys), bool)
        good[first] = True
        for block in taken:
            good &= ~contains(block, keys)
        item[open_[good]] = drawn[good]
        taken.append(np.sort(keys[good]))
        open_ = open_[~good]
    for r in np.unique(row[open_]):
        slots = open_[row[open_] == r]
        item[slots] = _finish(int(r), len(slots), pool, taken, num_items, rng)
    return row, item.astype(np.int32)


def _finish(
    row: int,
    count: int,
    pool: Callable[[int], tuple[Array, Array | None]],
    taken: list[Array],
    num_items: int,
    rng: np.random.Generator,
) -> Array:
    items, weights = pool(row)
    keys = row * num_items + items.astype(np.int64)
    left = np.ones(len(keys), bool)
    for block in taken:
        left &= ~contains(block, keys)
    if weights is not None:
        left &= weights > 0
    shares = None if weights is None else weights[left] / weights[left].sum()
    return rng.choice(items[left], size=count, replace=False, p=shares)


__all__ = ["cap_per_row", "contains", "generator", "sample_distinct"]
