"""Synthetic worlds: logs whose truth is known, one planted structure each.

Every world is a log of behaviours and a log of exposures whose labels are drawn from a known probability, so the
best possible score, its AUC, and what a ranker blind to the structure can reach are all known beforehand.

Items lie in kinds (fine) and groups (coarse). A user's events pick a kind that the user likes at that moment with
probability `LOYALTY`, else any kind. A candidate is *liked* by the world's rule, or not; its label is 1 with
probability `LIKED` or `OTHER`. Decoys are candidates that a ranker blind to the structure would take for liked.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from sostenuto.data.content_folder import write_content
from sostenuto.data.prepared import (
    FORMAT_VERSION,
    Array,
    Behaviours,
    Manifest,
    PreparedData,
    Protocol,
    Requests,
    arrays_hash,
    write_arrays,
    write_behaviours,
    write_manifest,
    write_requests,
)
from sostenuto.data.protocols.core import prefix_lengths
from sostenuto.data.protocols.sampling import generator
from sostenuto.data.vocabularies import with_specials, write_vocabulary
from sostenuto.schema.errors import SpecError, did_you_mean
from sostenuto.schema.features import FIRST_KNOWN, FeatureSpec, Field

KINDS = 41  # fine categories; a prime, so that (a + b * j) mod KINDS gives distinct favourites
GROUPS = 6  # coarse categories
PLACES = 53  # a prime, for the same reason
OWN_PLACES = 4  # places a user goes to
VECTOR = 8  # width of the item vectors
LOYALTY = 0.65  # share of events that follow the user's taste
LIKED, OTHER = 0.8, 0.1  # probability of label 1
CANDIDATES = 8  # per request
LIKED_SHARE, DECOY_SHARE = 0.3, 0.3  # of the candidates; the rest are any item
NEWEST = 50  # T of long_range: the newest T events of a user say nothing
PERIOD_DAYS = 60  # length of one taste in drift and habits
HABIT_EVENTS, HABIT_LEAST = 600, 300  # of a user of habits, on average and at least
HABIT_SHARES = (0.7, 0.15, 0.15)  # of the loyal events of habits: drifting taste, habit of the weekday, of the place
RARE_FROM = -(-KINDS * (GROUPS - 1) // GROUPS)  # prior_intents: kinds from this on, the last group, are the rare intent
RARE_SHARE = 0.06  # of its events
NEW_SHARE = 0.3  # of the items of mixed_content: they come up after the training requests
CONTENT = 8  # width of each of its two content vectors
START = datetime.datetime(2023, 1, 2, tzinfo=datetime.UTC)  # a Monday
DAYS = 364
DAY_S = 86_400
TRAIN_SHARE, VALID_SHARE = 0.6, 0.2  # of the requests, in order of time; the rest is the test split
VIEW, BUY = "view", "buy"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One planted structure."""

    name: str
    title: str
    seen_by: str  # what a ranker must be able to see
    favourites: int  # kinds a user may like, all tastes together


WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        World(
            name="action_taste",
            title="Only kinds that the user buys count; kinds only viewed are met just as often",
            seen_by="the action of a behaviour",
            favourites=6,
        ),
        World(
            name="drift",
            title=f"The liked kind changes every {PERIOD_DAYS} days; former ones are decoys",
            seen_by="recency",
            favourites=8,
        ),
        World(
            name="last_action",
            title="A kind is liked while the user's last event of it was a purchase",
            seen_by="which action came last for a kind",
            favourites=6,
        ),
        World(
            name="habits",
            title=(
                f"A taste that changes every {PERIOD_DAYS} days fills the newest behaviours; beside it a kind for each "
                f"weekday and one for each of {OWN_PLACES} own places; those of other days, places and times are decoys"
            ),
            seen_by="recency, weekday and place of old behaviours, and of the request",
            favourites=7 + OWN_PLACES + DAYS // PERIOD_DAYS + 2,
        ),
        World(
            name="long_range",
            title=f"The newest {NEWEST} behaviours are noise; older ones tell the taste",
            seen_by=f"behaviours older than the newest {NEWEST}",
            favourites=3,
        ),
        World(
            name="mixed_content",
            title="Text and image of an item tell together, and only together, which of two classes it is; users like "
            "one class; many items of later requests are new",
            seen_by="both contents, mixed by more than a sum",
            favourites=1,
        ),
        World(name="noise", title="Labels depend on nothing", seen_by="nothing", favourites=3),
        World(
            name="place_habit",
            title=f"The liked kind depends on which of {OWN_PLACES} own places the user is at",
            seen_by="the place of behaviours and of the request",
            favourites=OWN_PLACES,
        ),
        World(
            name="prior_intents",
            title=f"One liked kind in the common groups, one in a group that only {RARE_SHARE:.0%} of events are of",
            seen_by="groups of items, each read by itself",
            favourites=2,
        ),
        World(
            name="several_interests",
            title="Four liked kinds lie apart in vector space; decoys lie at their mean",
            seen_by="interests one by one, not their mean",
            favourites=4,
        ),
        World(name="stable_taste", title="Three liked kinds, always", seen_by="counts of kinds", favourites=3),
        World(
            name="weekly_habit",
            title="The liked kind depends on the weekday; those of other days are decoys",
            seen_by="the weekday of behaviours and of the request",
            favourites=7,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldLog:
    """A world's events, items and exposures as arrays. Users, items, kinds, groups and places count from 0."""

    name: str
    seed: int
    num_users: int
    event_user: Array  # (N,) int32, ascending
    event_time_ms: Array  # (N,) int64, ascending inside a user
    event_item: Array  # (N,) int32
    event_place: Array  # (N,) int16
    event_action: Array  # (N,) int8: 0 view, 1 buy
    event_value: Array  # (N,) float32
    item_kind: Array  # (I,) int16
    item_vector: Array  # (I, VECTOR) float32
    request_user: Array  # (R,) int32; requests are in order of time
    request_time_ms: Array  # (R,) int64
    request_place: Array  # (R,) int16
    candidate_item: Array  # (R, CANDIDATES) int32
    logit: Array  # (R, CANDIDATES) float32, the truth
    label: Array  # (R, CANDIDATES) float32
    part: Array  # (R, CANDIDATES) int8, habits: drawn for the taste (1), the weekday (2), the place (3), nothing (0)
    item_content: Mapping[str, Array] = field(default_factory=dict)  # (I, CONTENT) float32 by name; most have none

    @property
    def item_group(self) -> Array:
        """(I,) int16 coarse category."""
        return (self.item_kind.astype(np.int32) * GROUPS // KINDS).astype(np.int16)

    @property
    def oracle_auc(self) -> float:
        """Expected pooled AUC of the true probabilities, from the probabilities themselves."""
        return expected_auc(1 / (1 + np.exp(-self.logit.astype(np.float64).ravel())))


def expected_auc(probability: Array, score: Array | None = None) -> float:
    """Return the AUC of `score` (default: the probabilities themselves) when labels are drawn from `probability`.

    Every candidate counts as `probability` positives and `1 - probability` negatives; ties count one half.

    >>> expected_auc(np.array([0.5, 0.5]))
    0.5
    """
    score = probability if score is None else score
    levels, which = np.unique(score, return_inverse=True)
    positive = np.bincount(which, probability, len(levels))
    negative = np.bincount(which, 1 - probability, len(levels))
    below = np.cumsum(negative) - negative
    return float(np.sum(positive * (below + negative / 2)) / (positive.sum() * negative.sum()))


@dataclass(frozen=True, slots=True)
class _Taste:
    """Favourite kinds and own places of every user, computed instead of stored."""

    kind_from: Array
    kind_step: Array
    place_from: Array
    place_step: Array
    phase_s: Array
    has_rare: bool  # favourite 0 is of the common groups and 1 of the rare one

    def kind(self, user: Array, j: Array | int) -> Array:
        """Return favourite number `j` of each user."""
        if self.has_rare:
            rare = RARE_FROM + self.kind_step[user] % (KINDS - RARE_FROM)
            return np.where(np.asarray(j) == 0, self.kind_from[user] % RARE_FROM, rare)
        return np.asarray((self.kind_from[user] + self.kind_step[user] * j) % KINDS)

    def place(self, user: Array, k: Array) -> Array:
        """Return own place number `k` of each user."""
        return np.asarray((self.place_from[user] + self.place_step[user] * k) % PLACES)

    def ranks(self, user: Array, kind: Array, favourites: int) -> Array:
        """Return which favourite of the user each kind is, -1 when none."""
        rank = np.full(len(user), -1)
        for j in range(favourites):
            rank[self.kind(user, j) == kind] = j
        return rank


def _habits(taste: _Taste, user: Array, time_s: Array, own_place: Array) -> Array:
    """Return (N, 3) numbers of the favourites of habits that rule: by taste, by weekday, by place."""
    drifting = 7 + OWN_PLACES + (time_s + taste.phase_s[user]) // (PERIOD_DAYS * DAY_S)
    return np.stack([drifting, (time_s // DAY_S) % 7, 7 + own_place], axis=1)


def _habit_part(rank: Array) -> Array:
    """Return which part of habits a favourite belongs to: 1 taste, 2 weekday, 3 place."""
    return np.where(rank < 7, 2, np.where(rank < 7 + OWN_PLACES, 3, 1))


def _current(
    name: str, taste: _Taste, user: Array, time_s: Array, own_place: Array, pick: Array, rare_share: float = RARE_SHARE
) -> Array:
    """Return the number of the favourite that rules at each moment; `pick` in [0, 1) chooses among equals."""
    if name == "drift":
        return (time_s + taste.phase_s[user]) // (PERIOD_DAYS * DAY_S)
    if name == "weekly_habit":
        return (time_s // DAY_S) % 7
    if name == "place_habit":
        return own_place
    if name == "habits":
        return _habits(taste, user, time_s, own_place)[np.arange(len(user)), (pick * 3).astype(np.int64)]
    if name == "prior_intents":
        return (pick < rare_share).astype(np.int64)
    equals = {"action_taste": 3, "last_action": 6, "several_interests": 4}.get(name, 3)
    return (pick * equals).astype(np.int64)


def _zipf_item(kind: Array, first: Array, u: Array) -> Array:
    """Return an item of each kind; a few items of a kind take most of its events."""
    return np.asarray(first[kind] + ((first[kind + 1] - first[kind]) * u * u).astype(np.int64))


def _lengths(events: int, users: int, least: int, rng: np.random.Generator) -> Array:
    """Return event counts of all users: at least `least`, spread over a wide range, `events` in all."""
    shares = rng.lognormal(0.0, 0.8, users)
    spare = events - least * users
    edges = np.floor(np.cumsum(shares) / shares.sum() * spare).astype(np.int64)
    edges[-1] = spare
    return np.asarray(least + np.diff(edges, prepend=0))


def world_log(
    name: str,
    *,
    events: int,
    users: int | None = None,
    items: int | None = None,
    requests: int | None = None,
    seed: int,
) -> WorldLog:
    """Draw a world.

    Args:
        name:     one of `WORLDS`.
        events:   behaviours, 1e3 to 1e7.
        users:    default: one per 100 events (long_range: 200, habits: 600).
        items:    default: one per 50 events, between 410 and 100,000.
        requests: exposures of `CANDIDATES` items; default: one per 10 events, between 400 and 100,000.
        seed:     the same seed gives the same world.
    Raises:
        SpecError: an unknown world, or sizes that cannot be.
    """
    if name not in WORLDS:
        raise SpecError(f"world must be one of {', '.join(WORLDS)}, got {name!r}.{did_you_mean(name, WORLDS)}")
    least = {"long_range": 2 * NEWEST, "habits": HABIT_LEAST}.get(name, 2)
    each = {"long_range": 4 * NEWEST, "habits": HABIT_EVENTS}.get(name, 100)
    users = max(events // each, 2) if users is None else users
    items = min(max(events // 50, 10 * KINDS), 100_000) if items is None else items
    requests = min(max(events // 10, 400), 100_000) if requests is None else requests
    if users < 1 or events < least * users:
        raise SpecError(f"events must be at least {least} per user in world {name}, got {events} for {users} users")
    if items < 3 * KINDS:
        raise SpecError(f"items must be at least {3 * KINDS} (three of each kind), got {items}")
    if requests < 1:
        raise SpecError(f"requests must be at least 1, got {requests}")

    if name == "mixed_content":
        return _mixed_content(events, users, items, requests, seed)
    rng = generator(seed, "world", name)
    taste = _Taste(
        kind_from=rng.integers(0, KINDS, users),
        kind_step=rng.integers(1, KINDS, users),
        place_from=rng.integers(0, PLACES, users),
        place_step=rng.integers(1, PLACES, users),
        phase_s=rng.integers(0, PERIOD_DAYS * DAY_S, users),
        has_rare=name == "prior_intents",
    )
    first = np.linspace(0, items, KINDS + 1).astype(np.int64)  # items of kind k: first[k] .. first[k + 1]
    item_kind = np.repeat(np.arange(KINDS, dtype=np.int16), np.diff(first))
    centres = rng.standard_normal((KINDS, VECTOR))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    item_vector = (centres[item_kind] + 0.1 * rng.standard_normal((items, VECTOR))).astype(np.float32)

    # events: user-major, times ascending inside a user
    lengths = _lengths(events, users, least, rng)
    user = np.repeat(np.arange(users, dtype=np.int64), lengths)
    span = int(DAYS * DAY_S * (0.8 if name == "long_range" else 1.0))
    time_s = np.sort((user << 32) | rng.integers(0, span, events)) & 0xFFFFFFFF
    own = rng.integers(0, OWN_PLACES, events)
    pick = rng.random(events)
    if name == "habits":  # what happens is mostly taste, what is asked about is all three alike
        pick = np.interp(pick, np.cumsum((0.0, *HABIT_SHARES)), np.arange(4) / 3)
    rank = _current(name, taste, user, time_s, own, pick)
    bought = rng.random(events) < 0.5
    if name == "action_taste":  # as many kinds only viewed as bought, met just as often
        rank = np.where(bought, rank, rank + 3)
    loyal = rng.random(events) < LOYALTY
    if name == "long_range":
        loyal &= np.arange(events) < np.repeat(np.cumsum(lengths) - NEWEST, lengths)
    kind = np.where(loyal, taste.kind(user, rank), _any_kind(name, rank, rng))
    event_item = _zipf_item(kind, first, rng.random(events))

    # requests, in order of time
    begin = int(span * (1.0 if name == "long_range" else 0.4))
    at_s = np.sort(rng.integers(begin, DAYS * DAY_S, requests))
    who = rng.integers(0, users, requests)
    here = rng.integers(0, OWN_PLACES, requests)
    cell = (requests, CANDIDATES)
    who_c, at_c, here_c = (np.repeat(column, CANDIDATES) for column in (who, at_s, here))
    liked = _current(name, taste, who_c, at_c, here_c, rng.random(len(who_c)), 0.5)  # shown: rare as often as common
    decoy = _decoys(name, taste, who_c, liked, centres, rng)
    last = _LastActions.of(user, time_s, kind, bought) if name == "last_action" else None
    if last is not None:
        liked, decoy = last.favourites(taste, who_c, at_c, rng)
    role = rng.random(len(who_c))
    shown = np.where(role < LIKED_SHARE, taste.kind(who_c, liked), _any_kind(name, liked, rng))
    shown = np.where((role >= LIKED_SHARE) & (role < LIKED_SHARE + DECOY_SHARE) & (decoy >= 0), decoy, shown)
    item = _distinct(_zipf_item(shown, first, rng.random(len(who_c))).reshape(cell), item_kind, first)
    shown = item_kind[item].astype(np.int64).ravel()
    is_liked = _is_liked(name, taste, who_c, liked, shown).reshape(cell)
    if last is not None:
        is_liked = (last.before(who_c, at_c, shown) == 1).reshape(cell)
    part = np.zeros(cell, np.int8)
    if name == "habits":
        kinds = [taste.kind(who_c, ruling) for ruling in _habits(taste, who_c, at_c, here_c).T]
        is_liked = np.any([k == item_kind[item].ravel() for k in kinds], axis=0).reshape(cell)
        planted = (role < LIKED_SHARE) | ((role < LIKED_SHARE + DECOY_SHARE) & (decoy >= 0))
        part = np.where(planted, _habit_part(liked), 0).reshape(cell).astype(np.int8)
    probability = np.where(is_liked, LIKED, OTHER)
    if name == "noise":
        probability = np.full(cell, 0.3)
    start_ms = int(START.timestamp()) * 1000
    return WorldLog(
        name=name,
        seed=seed,
        num_users=users,
        event_user=user.astype(np.int32),
        event_time_ms=start_ms + time_s * 1000,
        event_item=event_item.astype(np.int32),
        event_place=taste.place(user, own).astype(np.int16),
        event_action=bought.astype(np.int8),
        event_value=np.round(rng.lognormal(1.0, 0.5, events), 2).astype(np.float32),
        item_kind=item_kind,
        item_vector=item_vector,
        request_user=who.astype(np.int32),
        request_time_ms=start_ms + at_s * 1000,
        request_place=taste.place(who, here).astype(np.int16),
        candidate_item=item.astype(np.int32),
        logit=np.log(probability / (1 - probability)).astype(np.float32),
        label=(rng.random(cell) < probability).astype(np.float32),
        part=part,
    )


def _any_kind(name: str, rank: Array, rng: np.random.Generator) -> Array:
    """Return any kind; of the rare group where the rare intent rules, and of the others where it does not."""
    if name != "prior_intents":
        return rng.integers(0, KINDS, len(rank))
    low, high = np.where(rank == 1, RARE_FROM, 0), np.where(rank == 1, KINDS, RARE_FROM)
    return rng.integers(low, high)


def _mixed_content(events: int, users: int, items: int, requests: int, seed: int) -> WorldLog:
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
    user = np.repeat(np.arange(users, dtype=np.int64), _lengths(events, users, 2, rng))
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


def _decoys(name: str, taste: _Taste, user: Array, liked: Array, centres: Array, rng: np.random.Generator) -> Array:
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
    if name in {"weekly_habit", "place_habit"}:  # the taste of another day or place
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


@dataclass(frozen=True, slots=True)
class _LastActions:
    """What a user did last with items of a kind, at any time."""

    moment: Array  # (N,) user, kind and second in one number, ascending
    bought: Array  # (N,)

    @classmethod
    def of(cls, user: Array, time_s: Array, kind: Array, bought: Array) -> _LastActions:
        """Sort events by user and kind."""
        moment = _moment(user, kind, time_s)
        order = np.argsort(moment, kind="stable")
        return cls(moment[order], bought[order])

    def before(self, user: Array, time_s: Array, kind: Array) -> Array:
        """Return 1 bought, 0 viewed, -1 never met, of the last event strictly before each time."""
        place = np.searchsorted(self.moment, _moment(user, kind, time_s)) - 1
        met = (place >= 0) & (self.moment[place] >= _moment(user, kind, np.zeros_like(time_s)))
        return np.where(met, self.bought[place], -1)

    def favourites(self, taste: _Taste, user: Array, time_s: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return one of the user's favourites that was bought last, and the kind of one only viewed last; or any."""
        count = WORLDS["last_action"].favourites
        last = np.stack([self.before(user, time_s, taste.kind(user, j)) for j in range(count)], 1)
        chance = rng.random((2, len(user), count))
        liked = (chance[0] + (last == 1)).argmax(1)
        viewed = (chance[1] + (last == 0)).argmax(1)
        return liked, taste.kind(user, viewed)


def _moment(user: Array, kind: Array, time_s: Array) -> Array:
    return np.asarray(((user.astype(np.int64) * KINDS + kind) << 32) | time_s)


def _is_liked(name: str, taste: _Taste, user: Array, liked: Array, kind: Array) -> Array:
    """Return whether the user likes each kind at the moment whose ruling favourite is `liked`."""
    if name in {"drift", "weekly_habit", "place_habit"}:
        return np.asarray(taste.kind(user, liked) == kind)
    return taste.ranks(user, kind, 3 if name == "action_taste" else WORLDS[name].favourites) >= 0


def _distinct(item: Array, item_kind: Array, first: Array) -> Array:
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


def make_world(
    name: str,
    out: str | Path,
    *,
    events: int = 100_000,
    users: int | None = None,
    items: int | None = None,
    requests: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a world as a log somebody could have: events, exposures, items, `spec.toml`; and its truth.

    `truth.parquet` has the true logit of every row of exposures.parquet, `truth.json` the oracle's AUC. A world
    that has content vectors writes them to `<name>.parquet`, for `sostenuto content build --vectors`.

    Args:
        name:     one of `WORLDS`.
        out:      folder to write into; made when absent.
        events:   behaviours, 1e3 to 1e7.
        users:    see `world_log`; so are items and requests.
        items:    number of items.
        requests: number of exposed lists.
        seed:     the same seed gives the same files.
    Returns:
        The path of spec.toml.
    """
    log = world_log(name, events=events, users=users, items=items, requests=requests, seed=seed)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = pl.Datetime("ms", "UTC")
    actions = pl.Series([VIEW, BUY], dtype=pl.Categorical)
    pl.DataFrame(
        {
            "user": log.event_user,
            "item": log.event_item,
            "time": pl.Series(log.event_time_ms).cast(stamp),
            "action": actions.gather(log.event_action.astype(np.uint32)),
            "value": log.event_value,
            "place": log.event_place,
        }
    ).write_parquet(folder / "events.parquet", compression="lz4")
    pl.DataFrame(
        {
            "item": np.arange(len(log.item_kind), dtype=np.int32),
            "group": _words("group", log.item_group),
            "kind": _words("kind", log.item_kind),
            "name": pl.select(
                pl.format("kind {} item {}", pl.Series(log.item_kind), pl.Series(np.arange(len(log.item_kind))))
            ).to_series(),
            "vector": pl.Series(log.item_vector).arr.to_list(),
        }
    ).write_parquet(folder / "items.parquet")
    request = np.repeat(np.arange(len(log.request_user), dtype=np.int32), CANDIDATES)
    pl.DataFrame(
        {
            "request": request,
            "user": log.request_user[request],
            "time": pl.Series(log.request_time_ms[request]).cast(stamp),
            "place": log.request_place[request],
            "item": log.candidate_item.ravel(),
            "position": np.tile(np.arange(1, CANDIDATES + 1, dtype=np.int8), len(log.request_user)),
            "label": log.label.ravel().astype(np.int8),
        }
    ).write_parquet(folder / "exposures.parquet", compression="lz4")
    pl.DataFrame({"request": request, "item": log.candidate_item.ravel(), "logit": log.logit.ravel()}).write_parquet(
        folder / "truth.parquet", compression="lz4"
    )
    for content, vectors in log.item_content.items():
        pl.DataFrame({"item_id": np.arange(len(vectors), dtype=np.int32), "vector": vectors}).write_parquet(
            folder / f"{content}.parquet"
        )
    truth = _truth(log)
    (folder / "truth.json").write_text(json.dumps(truth, indent=2) + "\n", encoding="utf-8")
    path = folder / "spec.toml"
    path.write_text(_SPEC.format(name=name.replace("_", "-"), title=WORLDS[name].title), encoding="utf-8")
    return path


def _words(stem: str, index: Array) -> pl.Series:
    return pl.select(pl.format(stem + " {}", pl.Series(index))).to_series()


def _truth(log: WorldLog) -> dict[str, object]:
    return {
        "world": log.name,
        "title": WORLDS[log.name].title,
        "seen_by": WORLDS[log.name].seen_by,
        "seed": log.seed,
        "oracle_auc": log.oracle_auc,
        "events": len(log.event_user),
        "users": log.num_users,
        "items": len(log.item_kind),
        "requests": len(log.request_user),
        "newest_without_signal": NEWEST if log.name == "long_range" else 0,
    }


_SPEC = """\
# {title}
name = "{name}"
time_zone = "UTC"
terms = "synthetic, no terms"

[events]
files = "events.parquet"
user = "user"
item = "item"
time = "time"
action = "action"
value = "value"
place = "place"

[exposures]
files = "exposures.parquet"
user = "user"
time = "time"
place = "place"
request = "request"
item = "item"
label = "label"

[items]
files = "items.parquet"
item = "item"
categories = ["group", "kind"]

[items.fields]
name = "text"
vector = {{ kind = "vector", width = 8 }}

[protocol]
name = "exposures"
"""


def world_prepared(
    name: str,
    folder: str | Path,
    *,
    events: int = 20_000,
    users: int | None = None,
    items: int | None = None,
    requests: int | None = None,
    seed: int = 0,
) -> PreparedData:
    """Write a world straight into a prepared folder, without the way through files and `prepare`.

    Requests are split by time: the first 60 % train, then 20 % validation, 20 % test. `truth/<split>.npy` holds the
    true logit of every candidate, aligned with the split's flat candidates; of habits also `<split>.part.npy`.

    Args:
        name:     one of `WORLDS`.
        folder:   prepared folder to write.
        events:   behaviours.
        users:    see `world_log`; so are items and requests.
        items:    number of items.
        requests: number of exposed lists.
        seed:     the same seed gives the same folder.
    """
    log = world_log(name, events=events, users=users, items=items, requests=requests, seed=seed)
    folder = Path(folder)
    count = len(log.request_user)
    cuts = {
        "train": (0, int(count * TRAIN_SHARE)),
        "valid": (int(count * TRAIN_SHARE), int(count * (TRAIN_SHARE + VALID_SHARE))),
        "test": (int(count * (TRAIN_SHARE + VALID_SHARE)), count),
    }
    training = log.event_time_ms < log.request_time_ms[min(cuts["valid"][0], count - 1)]

    # vocabularies: items by training frequency, ties by id
    seen = np.bincount(log.event_item[training], minlength=len(log.item_kind))
    order = np.argsort(-seen, kind="stable")
    index_of = np.empty(len(order), np.int32)
    index_of[order] = np.arange(len(order), dtype=np.int32) + FIRST_KNOWN
    offsets = np.zeros(log.num_users + FIRST_KNOWN + 1, np.int64)
    offsets[FIRST_KNOWN + 1 :] = np.cumsum(np.bincount(log.event_user, minlength=log.num_users))
    behaviours = Behaviours(
        offsets=offsets,
        item=index_of[log.event_item],
        time_ms=log.event_time_ms,
        action=log.event_action.astype(np.int16) + FIRST_KNOWN,
        value=log.event_value,
        place=log.event_place.astype(np.int32) + FIRST_KNOWN,
    )
    write_behaviours(folder, behaviours)

    kind = np.append([0, 1], log.item_kind[order] + FIRST_KNOWN).astype(np.int32)
    group = np.append([0, 1], log.item_group[order] + FIRST_KNOWN).astype(np.int32)
    vector = np.concatenate([np.zeros((2, VECTOR), np.float32), log.item_vector[order]])
    ids = with_specials(pl.Series(order, dtype=pl.Int64))
    pl.DataFrame(
        {
            "item_id": ids,
            "category.group": group,
            "category.kind": kind,
            "field.vector": pl.Series(vector),
            "name": ["", "", *(f"kind {log.item_kind[i]} item {i}" for i in order.tolist())],
        }
    ).write_parquet(folder / "items.parquet")
    write_vocabulary(folder, "item", ids)
    words = {
        "user": map(str, range(log.num_users)),
        "place": map(str, range(PLACES)),
        "action": [VIEW, BUY],
        "group": (f"group {g}" for g in range(GROUPS)),
        "kind": (f"kind {k}" for k in range(KINDS)),
    }
    for word, values in words.items():
        write_vocabulary(folder, word, with_specials(pl.Series(list(values), dtype=pl.String)))

    truth = {}
    spans = {}
    counts = {"events": len(log.event_user), "users": log.num_users, "items": len(order)}
    for split, (begin, end) in cuts.items():
        user = log.request_user[begin:end] + FIRST_KNOWN
        time_ms = log.request_time_ms[begin:end]
        write_requests(
            folder,
            split,
            Requests(
                user=user,
                time_ms=time_ms,
                prefix=prefix_lengths(behaviours, user, time_ms),
                place=log.request_place[begin:end].astype(np.int32) + FIRST_KNOWN,
                offsets=np.arange(end - begin + 1, dtype=np.int64) * CANDIDATES,
                item=index_of[log.candidate_item[begin:end]].ravel(),
                label=log.label[begin:end].ravel(),
                list_id=np.zeros((end - begin) * CANDIDATES, np.uint8),
            ),
        )
        truth[split] = log.logit[begin:end].ravel()
        if name == "habits":
            truth[f"{split}.part"] = log.part[begin:end].ravel()
        counts[f"requests_{split}"] = end - begin
        if end > begin:
            spans[split] = (int(time_ms[0]), int(time_ms[-1]))
    write_arrays(folder / "truth", truth)

    spent = np.log1p(log.event_value[training].astype(np.float64))
    features = FeatureSpec(
        num_items=len(ids),
        num_item_rows=FIRST_KNOWN + int((seen >= 5).sum()),
        categories=(
            Field(name="group", kind="categorical", size=GROUPS + FIRST_KNOWN),
            Field(name="kind", kind="categorical", size=KINDS + FIRST_KNOWN),
        ),
        num_actions=4,
        num_places=PLACES + FIRST_KNOWN,
        item_fields=(Field(name="vector", kind="vector", width=VECTOR),),
        has_value=True,
        value_mean=float(spent.mean()),
        value_std=float(spent.std()),
    )
    write_manifest(
        folder,
        Manifest(
            format_version=FORMAT_VERSION,
            name=name.replace("_", "-"),
            source={"world": _truth(log)},
            time_zone="UTC",
            seed=seed,
            counts=counts,
            features=features,
            protocol=Protocol(name="exposures", version=1, seed=seed, lists=("shown",), splits=spans),
            arrays_hash=arrays_hash(folder),
        ),
    )
    data = PreparedData(folder)
    for content, vectors in log.item_content.items():
        rows = np.concatenate([np.zeros((FIRST_KNOWN, vectors.shape[1]), np.float32), vectors[order]])
        known = np.arange(len(rows)) >= FIRST_KNOWN
        write_content(folder, content, vectors=rows, known=known, encoder="world")
    return data


__all__ = ["WORLDS", "World", "WorldLog", "expected_auc", "make_world", "world_log", "world_prepared"]
