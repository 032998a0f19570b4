"""Events, requests and labels of a world, drawn from a seed."""

from __future__ import annotations

import numpy as np

from sostenuto.data.protocols.sampling import generator
from sostenuto.data.worlds.items import distinct_items, event_counts, zipf_item
from sostenuto.data.worlds.last_actions import LastActions
from sostenuto.data.worlds.log import WorldLog
from sostenuto.data.worlds.mixed_content import mixed_content_log
from sostenuto.data.worlds.table import (
    CANDIDATES,
    DAY_S,
    DAYS,
    DECOY_SHARE,
    HABIT_EVENTS,
    HABIT_LEAST,
    HABIT_SHARES,
    KINDS,
    LIKED,
    LIKED_SHARE,
    LOYALTY,
    NEWEST,
    OTHER,
    OWN_PLACES,
    PERIOD_DAYS,
    PLACES,
    START,
    VECTOR,
    WORLDS,
)
from sostenuto.data.worlds.taste import Taste, any_kind, current, decoys, habit_part, habits, is_liked_kind, phase
from sostenuto.data.worlds.two_jobs import two_jobs_log
from sostenuto.schema.errors import SpecError, did_you_mean


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
        return mixed_content_log(events, users, items, requests, seed)
    if name == "two_jobs":
        return two_jobs_log(events, users, items, requests, seed)
    rng = generator(seed, "world", name)
    taste = Taste(
        kind_from=rng.integers(0, KINDS, users),
        kind_step=rng.integers(1, KINDS, users),
        place_from=rng.integers(0, PLACES, users),
        place_step=rng.integers(1, PLACES, users),
        phase_s=rng.integers(0, PERIOD_DAYS * DAY_S, users),
        has_rare=name == "prior_intents",
        by_group=name == "phases",
    )
    first = np.linspace(0, items, KINDS + 1).astype(np.int64)  # items of kind k: first[k] .. first[k + 1]
    item_kind = np.repeat(np.arange(KINDS, dtype=np.int16), np.diff(first))
    centres = rng.standard_normal((KINDS, VECTOR))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    item_vector = (centres[item_kind] + 0.1 * rng.standard_normal((items, VECTOR))).astype(np.float32)

    # events: user-major, times ascending inside a user
    lengths = event_counts(events, users, least, rng)
    user = np.repeat(np.arange(users, dtype=np.int64), lengths)
    span = int(DAYS * DAY_S * (0.8 if name == "long_range" else 1.0))
    time_s = np.sort((user << 32) | rng.integers(0, span, events)) & 0xFFFFFFFF
    own = rng.integers(0, OWN_PLACES, events)
    pick = rng.random(events)
    if name == "habits":  # what happens is mostly taste, what is asked about is all three alike
        pick = np.interp(pick, np.cumsum((0.0, *HABIT_SHARES)), np.arange(4) / 3)
    rank = current(name, taste, user, time_s, own, pick)
    starts = np.cumsum(lengths) - lengths
    if name == "phases":
        rank = phase(taste, user, np.arange(events) - starts[user])
    bought = rng.random(events) < 0.5
    if name == "action_taste":  # as many kinds only viewed as bought, met just as often
        rank = np.where(bought, rank, rank + 3)
    loyal = rng.random(events) < LOYALTY
    if name == "long_range":
        loyal &= np.arange(events) < np.repeat(starts + lengths - NEWEST, lengths)
    kind = np.where(loyal, taste.kind(user, rank), any_kind(name, rank, rng))
    event_item = zipf_item(kind, first, rng.random(events))

    # requests, in order of time
    begin = int(span * (1.0 if name == "long_range" else 0.4))
    at_s = np.sort(rng.integers(begin, DAYS * DAY_S, requests))
    who = rng.integers(0, users, requests)
    here = rng.integers(0, OWN_PLACES, requests)
    cell = (requests, CANDIDATES)
    who_c, at_c, here_c = (np.repeat(column, CANDIDATES) for column in (who, at_s, here))
    liked = current(name, taste, who_c, at_c, here_c, rng.random(len(who_c)), 0.5)  # shown: rare as often as common
    if name == "phases":
        before = np.searchsorted((user << 32) | time_s, (who << 32) | at_s) - starts[who]
        liked = np.repeat(phase(taste, who, before), CANDIDATES)
    decoy = decoys(name, taste, who_c, liked, centres, rng)
    last = LastActions.of(user, time_s, kind, bought) if name == "last_action" else None
    if last is not None:
        liked, decoy = last.favourites(taste, who_c, at_c, rng)
    role = rng.random(len(who_c))
    shown = np.where(role < LIKED_SHARE, taste.kind(who_c, liked), any_kind(name, liked, rng))
    shown = np.where((role >= LIKED_SHARE) & (role < LIKED_SHARE + DECOY_SHARE) & (decoy >= 0), decoy, shown)
    item = distinct_items(zipf_item(shown, first, rng.random(len(who_c))).reshape(cell), item_kind, first)
    shown = item_kind[item].astype(np.int64).ravel()
    is_liked = is_liked_kind(name, taste, who_c, liked, shown).reshape(cell)
    if last is not None:
        is_liked = (last.before(who_c, at_c, shown) == 1).reshape(cell)
    part = np.zeros(cell, np.int8)
    if name == "habits":
        kinds = [taste.kind(who_c, ruling) for ruling in habits(taste, who_c, at_c, here_c).T]
        is_liked = np.any([k == item_kind[item].ravel() for k in kinds], axis=0).reshape(cell)
        planted = (role < LIKED_SHARE) | ((role < LIKED_SHARE + DECOY_SHARE) & (decoy >= 0))
        part = np.where(planted, habit_part(liked), 0).reshape(cell).astype(np.int8)
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


__all__ = ["world_log"]
