"""The world `two_jobs`: which behaviours matter is one property of a kind, what they say is another."""

from __future__ import annotations

import numpy as np

from sostenuto.data.prepared import Array
from sostenuto.data.protocols.sampling import generator
from sostenuto.data.worlds.items import distinct_items, event_counts, zipf_item
from sostenuto.data.worlds.log import WorldLog
from sostenuto.data.worlds.table import CANDIDATES, CIRCLES, DAY_S, DAYS, KINDS, LIKED, OTHER, PLACES, START, VECTOR

ASKED = 3  # newest events of the candidate's circle that decide
TURNED = 0.1  # share of items that say the opposite of what their kind says


def circle_of(kind: Array) -> Array:
    """Return the circle of each kind: behaviours of a candidate's circle matter to it."""
    return kind % CIRCLES


def says_good(kind: Array) -> Array:
    """Return whether events of each kind speak for their circle; about half of every circle's kinds do."""
    return np.asarray((kind // CIRCLES) % 2 == 0)


def relevant_events(circle: Array, of_candidate: Array) -> Array:
    """Return (C, L) bool: the events that decide about candidates, of one user's (L,) circles, oldest first."""
    same = circle[None, :] == of_candidate[:, None]
    newer = same[:, ::-1].cumsum(1)[:, ::-1] - same
    return np.asarray(same & (newer < ASKED))


def two_jobs_log(events: int, users: int, items: int, requests: int, seed: int) -> WorldLog:
    """Draw the world in which attention and representation want different things of one table.

    A kind lies in a circle, and it speaks for that circle or against it. A candidate is liked when most of the user's
    last three events of its circle spoke for it: kinds of a circle must be alike to be found, and unlike to be read.
    A tenth of the items say the opposite of their kind. Users have no tastes.
    """
    rng = generator(seed, "world", "two_jobs")
    first = np.linspace(0, items, KINDS + 1).astype(np.int64)
    item_kind = np.repeat(np.arange(KINDS, dtype=np.int16), np.diff(first))
    good = says_good(item_kind.astype(np.int64)) ^ (rng.random(items) < TURNED)
    kinds = np.arange(KINDS)
    cells = [[kinds[(circle_of(kinds) == c) & (says_good(kinds) == g)] for g in (False, True)] for c in range(CIRCLES)]

    def drawn(count: int) -> Array:
        """Return kinds: circles alike, what speaks for them as often as what speaks against."""
        circle, side, u = rng.integers(0, CIRCLES, count), rng.integers(0, 2, count), rng.random(count)
        out = np.zeros(count, np.int64)
        for c, pair in enumerate(cells):
            for g, pool in enumerate(pair):
                here = (circle == c) & (side == g)
                out[here] = pool[(u[here] * len(pool)).astype(np.int64)]
        return out

    user = np.repeat(np.arange(users, dtype=np.int64), event_counts(events, users, 2, rng))
    span = DAYS * DAY_S
    time_s = np.sort((user << 32) | rng.integers(0, span, events)) & 0xFFFFFFFF
    event_item = zipf_item(drawn(events), first, rng.random(events))

    at_s = np.sort(rng.integers(int(span * 0.4), span, requests))
    who = rng.integers(0, users, requests)
    shown = drawn(requests * CANDIDATES)
    item = distinct_items(zipf_item(shown, first, rng.random(len(shown))).reshape(-1, CANDIDATES), item_kind, first)
    liked = np.zeros(item.shape, bool)
    edges = np.searchsorted(user, np.arange(users + 1))
    circle, speaks = circle_of(item_kind[event_item]), np.where(good[event_item], 1, -1)
    asked = circle_of(item_kind[item])
    for r in range(requests):
        low = edges[who[r]]
        past = slice(low, low + np.searchsorted(time_s[low : edges[who[r] + 1]], at_s[r]))
        liked[r] = (relevant_events(circle[past], asked[r]) * speaks[past]).sum(1) > 0
    probability = np.where(liked, LIKED, OTHER)
    start_ms = int(START.timestamp()) * 1000
    return WorldLog(
        name="two_jobs",
        seed=seed,
        num_users=users,
        event_user=user.astype(np.int32),
        event_time_ms=start_ms + time_s * 1000,
        event_item=event_item.astype(np.int32),
        event_place=rng.integers(0, PLACES, events).astype(np.int16),
        event_action=(rng.random(events) < 0.5).astype(np.int8),
        event_value=np.round(rng.lognormal(1.0, 0.5, events), 2).astype(np.float32),
        item_kind=item_kind,
        item_vector=np.zeros((items, VECTOR), np.float32),  # a kind is known by its row alone
        request_user=who.astype(np.int32),
        request_time_ms=start_ms + at_s * 1000,
        request_place=rng.integers(0, PLACES, requests).astype(np.int16),
        candidate_item=item.astype(np.int32),
        logit=np.log(probability / (1 - probability)).astype(np.float32),
        label=(rng.random(item.shape) < probability).astype(np.float32),
        part=np.zeros(item.shape, np.int8),
    )


__all__ = ["circle_of", "relevant_events", "says_good", "two_jobs_log"]
