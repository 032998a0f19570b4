"""What users of a world like, when, and what a blind ranker takes for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sostenuto.data.prepared import Array
from sostenuto.data.worlds.table import (
    DAY_S,
    GROUPS,
    KINDS,
    OWN_PLACES,
    PERIOD_DAYS,
    PHASE_EVENTS,
    PLACES,
    RARE_FROM,
    RARE_SHARE,
    WORLDS,
)


@dataclass(frozen=True, slots=True)
class Taste:
    """Favourite kinds and own places of every user, computed instead of stored."""

    kind_from: Array
    kind_step: Array
    place_from: Array
    place_step: Array
    phase_s: Array
    has_rare: bool  # favourite 0 is of the common groups and 1 of the rare one
    by_group: bool  # favourite j is of group j

    def kind(self, user: Array, j: Array | int) -> Array:
        """Return favourite number `j` of each user."""
        if self.has_rare:
            rare = RARE_FROM + self.kind_step[user] % (KINDS - RARE_FROM)
            return np.where(np.asarray(j) == 0, self.kind_from[user] % RARE_FROM, rare)
        wanted = np.asarray(self.kind_from[user] + self.kind_step[user] * j)
        if self.by_group:
            low, high = _first_kind(np.asarray(j) % GROUPS), _first_kind(np.asarray(j) % GROUPS + 1)
            return np.asarray(low + wanted % (high - low))
        return wanted % KINDS

    def place(self, user: Array, k: Array) -> Array:
        """Return own place number `k` of each user."""
        return np.asarray((self.place_from[user] + self.place_step[user] * k) % PLACES)

    def ranks(self, user: Array, kind: Array, favourites: int) -> Array:
        """Return which favourite of the user each kind is, -1 when none."""
        rank = np.full(len(user), -1)
        for j in range(favourites):
            rank[self.kind(user, j) == kind] = j
        return rank


def _first_kind(group: Array) -> Array:
    return -(-KINDS * group // GROUPS)  # kind k is of group k * GROUPS // KINDS


def phase(taste: Taste, user: Array, events: Array) -> Array:
    """Return whose turn it is, a group, for users with so many events behind them."""
    return np.asarray((taste.phase_s[user] + events // PHASE_EVENTS) % GROUPS)


def habits(taste: Taste, user: Array, time_s: Array, own_place: Array) -> Array:
    """Return (N, 3) numbers of the favourites of habits that rule: by taste, by weekday, by place."""
    drifting = 7 + OWN_PLACES + (time_s + taste.phase_s[user]) // (PERIOD_DAYS * DAY_S)
    return np.stack([drifting, (time_s // DAY_S) % 7, 7 + own_place], axis=1)


def habit_part(rank: Array) -> Array:
    """Return which part of habits a favourite belongs to: 1 taste, 2 weekday, 3 place."""
    return np.where(rank < 7, 2, np.where(rank < 7 + OWN_PLACES, 3, 1))


def current(
    name: str, taste: Taste, user: Array, time_s: Array, own_place: Array, pick: Array, rare_share: float = RARE_SHARE
) -> Array:
    """Return the number of the favourite that rules at each moment; `pick` in [0, 1) chooses among equals."""
    if name == "drift":
        return (time_s + taste.phase_s[user]) // (PERIOD_DAYS * DAY_S)
    if name == "weekly_habit":
        return (time_s // DAY_S) % 7
    if name == "place_habit":
        return own_place
    if name == "habits":
        return habits(taste, user, time_s, own_place)[np.arange(len(user)), (pick * 3).astype(np.int64)]
    if name == "prior_intents":
        return (pick < rare_share).astype(np.int64)
    equals = {"action_taste": 3, "last_action": 6, "several_interests": 4}.get(name, 3)
    return (pick * equals).astype(np.int64)


def any_kind(name: str, rank: Array, rng: np.random.Generator) -> Array:
    """Return any kind; of the rare group where the rare intent rules, and of the others where it does not."""
    if name != "prior_intents":
        return rng.integers(0, KINDS, len(rank))
    low, high = np.where(rank == 1, RARE_FROM, 0), np.where(rank == 1, KINDS, RARE_FROM)
    return rng.integers(low, high)


def decoys(name: str, taste: Taste, user: Array, liked: Array, centres: Array, rng: np.random.Generator) -> Array:
    """Return a kind that a blind ranker takes for liked, -1 where the world has none."""
    n = len(user)
    if name == "drift":  # a former taste
        return np.where(liked > 0, taste.kind(user, (rng.random(n) * np.maximum(liked, 1)).astype(np.int64)), -1)
    if name == "habits":  # another day's, another place's, or a former taste
        other = np.where(liked < 7, (liked + rng.integers(1, 7, n)) % 7, -1)
        place = 7 + (liked - 7 + rng.integers(1, OWN_PLACES, n)) % OWN_PLACES
        other = np.where((liked >= 7) & (liked < 7 + OWN_PLACES), place, other)
        first = 7 + OWN_PLACES
        former = first + (rng.random(n) * np.maximum(liked - first, 1)).astype(np.int64)
        other = np.where(liked > first, former, other)
        return np.where(other >= 0, taste.kind(user, other), -1)
    if name in {"weekly_habit", "place_habit", "phases"}:  # the taste of another day, place or turn
        count = WORLDS[name].favourites
        return taste.kind(user, (liked + rng.integers(1, count, n)) % count)
    if name == "action_taste":  # a kind that is only viewed
        return taste.kind(user, rng.integers(3, 6, n))
    if name == "several_interests":
        users = np.arange(len(taste.kind_from))
        own = np.stack([taste.kind(users, j) for j in range(WORLDS[name].favourites)], axis=1)
        near = centres[own].mean(1) @ centres.T
        np.put_along_axis(near, own, -np.inf, axis=1)
        return np.asarray(near.argmax(1)[user])
    return np.full(n, -1)


def is_liked_kind(name: str, taste: Taste, user: Array, liked: Array, kind: Array) -> Array:
    """Return whether the user likes each kind at the moment whose ruling favourite is `liked`."""
    if name in {"drift", "weekly_habit", "place_habit", "phases"}:
        return np.asarray(taste.kind(user, liked) == kind)
    return taste.ranks(user, kind, 3 if name == "action_taste" else WORLDS[name].favourites) >= 0


__all__ = ["Taste", "any_kind", "current", "decoys", "habit_part", "habits", "is_liked_kind", "phase"]
