"""The worlds there are, and the sizes that all of them share."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

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
PHASE_EVENTS = 4  # of phases: behaviours of one group, before the next group's turn
RARE_FROM = -(-KINDS * (GROUPS - 1) // GROUPS)  # prior_intents: kinds from this on, the last group, are the rare intent
RARE_SHARE = 0.06  # of its events
NEW_SHARE = 0.3  # of the items of mixed_content: they come up after the training requests
CIRCLES = 4  # of kinds in two_jobs
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
            name="phases",
            title=f"Everybody goes round the groups, {PHASE_EVENTS} events each, and likes one kind in each",
            seen_by="which group's turn it is, and whose is next",
            favourites=GROUPS,
        ),
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
            name="two_jobs",
            title=f"Kinds lie in {CIRCLES} circles and speak for or against them; the last three events of a "
            "candidate's circle decide",
            seen_by="which behaviours matter and what they say, each by itself",
            favourites=0,
        ),
        World(
            name="weekly_habit",
            title="The liked kind depends on the weekday; those of other days are decoys",
            seen_by="the weekday of behaviours and of the request",
            favourites=7,
        ),
    )
}


__all__ = [
    "BUY",
    "CANDIDATES",
    "CIRCLES",
    "CONTENT",
    "DAYS",
    "DAY_S",
    "DECOY_SHARE",
    "GROUPS",
    "HABIT_EVENTS",
    "HABIT_LEAST",
    "HABIT_SHARES",
    "KINDS",
    "LIKED",
    "LIKED_SHARE",
    "LOYALTY",
    "NEWEST",
    "NEW_SHARE",
    "OTHER",
    "OWN_PLACES",
    "PERIOD_DAYS",
    "PHASE_EVENTS",
    "PLACES",
    "RARE_FROM",
    "RARE_SHARE",
    "START",
    "TRAIN_SHARE",
    "VALID_SHARE",
    "VECTOR",
    "VIEW",
    "WORLDS",
    "World",
]
