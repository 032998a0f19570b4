"""Which items of a kind happen and are shown, and how many events a user has."""

from __future__ import annotations

import numpy as np

from sostenuto.data.prepared import Array


def zipf_item(kind: Array, first: Array, u: Array) -> Array:
    """Return an item of each kind; a few items of a kind take most of its events."""
    return np.asarray(first[kind] + ((first[kind + 1] - first[kind]) * u * u).astype(np.int64))


def event_counts(events: int, users: int, least: int, rng: np.random.Generator) -> Array:
    """Return event counts of all users: at least `least`, spread over a wide range, `events` in all."""
    shares = rng.lognormal(0.0, 0.8, users)
    spare = events - least * users
    edges = np.floor(np.cumsum(shares) / shares.sum() * spare).astype(np.int64)
    edges[-1] = spare
    return np.asarray(least + np.diff(edges, prepend=0))


def distinct_items(item: Array, item_kind: Array, first: Array) -> Array:
    """Move items that a request shows twice to the next item of their kind until all differ, as far as there are."""
    for _ in range(2 * item.shape[1]):
        order = np.argsort(item, axis=1, kind="stable")
        ordered = np.take_along_axis(item, order, axis=1)
        again = np.zeros(item.shape, bool)
        np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
        if not again.any():
            break
        kind = item_kind[item[again]].astype(np.int64)
        begin = first[kind]
        item[again] = begin + (item[again] + 1 - begin) % (first[kind + 1] - begin)
    return item


__all__ = ["distinct_items", "event_counts", "zipf_item"]
