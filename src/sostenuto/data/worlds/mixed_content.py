"""The world `mixed_content`: items are known by their content alone."""

from __future__ import annotations

import numpy as np

from sostenuto.data.prepared import Array
from sostenuto.data.protocols.sampling import generator
from sostenuto.data.worlds.items import event_counts
from sostenuto.data.worlds.log import WorldLog
from sostenuto.data.worlds.table import (
    CANDIDATES,
    CONTENT,
    DAY_S,
    DAYS,
    KINDS,
    LIKED,
    LOYALTY,
    NEW_SHARE,
    OTHER,
    PLACES,
    START,
    TRAIN_SHARE,
    VECTOR,
)


def mixed_content_log(events: int, users: int, items: int, requests: int, seed: int) -> WorldLog:
    """Draw the world whose items are known by their content alone.

    Text and image of an item each lie at one of two points. An item is of class 1 where both lie at the first or both
    at the second, else of class 0: either alone, and every sum of parts, says nothing. Kinds, groups and the item
    vector are drawn without regard to the class.
    """
    rng = generator(seed, "world", "mixed_content")
    kind = np.sort(rng.integers(0, KINDS, items)).astype(np.int16)
    side = rng.integers(0, 2, (items, 2))
    of_class = (side[:, 0] == side[:, 1]).astype(np.int64)
    points = rng.standard_normal((2, CONTENT))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    contents = [
        ((2 * side[:, [m]] - 1) * points[m] + 0.1 * rng.standard_normal((items, CONTENT))).astype(np.float32)
        for m in range(2)
    ]
    is_new = rng.random(items) < NEW_SHARE
    pools = {(c, new): np.flatnonzero((of_class == c) & (new | ~is_new)) for c in range(2) for new in (False, True)}

    def drawn(wanted: Array, with_new: Array) -> Array:
        u = rng.random(len(wanted))
        out = np.zeros(len(wanted), np.int64)
        for (c, new), pool in pools.items():
            here = (wanted == c) & (with_new == new)
            out[here] = pool[(u[here] * len(pool)).astype(np.int64)]
        return out

    likes = rng.integers(0, 2, users)
    user = np.repeat(np.arange(users, dtype=np.int64), event_counts(events, users, 2, rng))
    span = DAYS * DAY_S
    time_s = np.sort((user << 32) | rng.integers(0, span, events)) & 0xFFFFFFFF
    loyal = rng.random(events) < LOYALTY
    event_item = drawn(np.where(loyal, likes[user], rng.integers(0, 2, events)), np.zeros(events, bool))

    at_s = np.sort(rng.integers(int(span * 0.4), span, requests))
    who = rng.integers(0, users, requests)
    cell = (requests, CANDIDATES)
    late = np.repeat(np.arange(requests) >= int(requests * TRAIN_SHARE), CANDIDATES)
    item = drawn(rng.integers(0, 2, requests * CANDIDATES), late).reshape(cell)
    for _ in range(100):  # a request shows no item twice
        ordered = np.sort(item, axis=1)
        again = (ordered[:, 1:] == ordered[:, :-1]).any(1)
        if not again.any():
            break
        rows = np.repeat(again, CANDIDATES)
        item[again] = drawn(rng.integers(0, 2, int(rows.sum())), late[rows]).reshape(-1, CANDIDATES)
    probability = np.where(of_class[item] == likes[who][:, None], LIKED, OTHER)
    start_ms = int(START.timestamp()) * 1000
    return WorldLog(
        name="mixed_content",
        seed=seed,
        num_users=users,
        event_user=user.astype(np.int32),
        event_time_ms=start_ms + time_s * 1000,
        event_item=event_item.astype(np.int32),
        event_place=rng.integers(0, PLACES, events).astype(np.int16),
        event_action=(rng.random(events) < 0.5).astype(np.int8),
        event_value=np.round(rng.lognormal(1.0, 0.5, events), 2).astype(np.float32),
        item_kind=kind,
        item_vector=rng.standard_normal((items, VECTOR)).astype(np.float32),
        request_user=who.astype(np.int32),
        request_time_ms=start_ms + at_s * 1000,
        request_place=rng.integers(0, PLACES, requests).astype(np.int16),
        candidate_item=item.astype(np.int32),
        logit=np.log(probability / (1 - probability)).astype(np.float32),
        part=np.zeros(cell, np.int8),
        label=(rng.random(cell) < probability).astype(np.float32),
        item_content={"image": contents[1], "text": contents[0]},
    )


__all__ = ["mixed_content_log"]
