"""How popular an item was strictly before a moment: over all time, over 28 days, and at the request's place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sostenuto.ops.sorted_search import lower_bounds
from sostenuto.schema.features import Field

Array = npt.NDArray[Any]

WINDOW_MS = 28 * 86_400_000
FEW = 16  # searches
MOST = np.iinfo(np.int64).max
POPULARITY_FIELDS = (
    Field(name="popularity", kind="numeric", mean=3.0, std=2.0),
    Field(name="popularity_28d", kind="numeric", mean=3.0, std=2.0),
    Field(name="popularity_place", kind="numeric", mean=3.0, std=2.5),
)


class EventTimes:
    """Sorted event times per key: answers "how many events of this key in [from, to)".

    Key and time are one number, so that one binary search answers: rank of the key times the span of all times, plus
    the time. It stays among the events of the key, and the search for the rank among keys that begin alike. Where that
    number would not fit into 63 bits (one time is far from the others) a time stands as its rank among the times.
    """

    def __init__(self, key: Array, time_ms: Array) -> None:
        self.first_ms = int(time_ms.min()) if len(time_ms) else 0
        self.span = (int(time_ms.max()) - self.first_ms + 1 if len(time_ms) else 0) + 1
        self.moments: Array | None = None  # every time, rising, where times stand as ranks
        least, most = (int(key.min()), int(key.max())) if len(key) else (0, 0)
        if least >= 0 and (most + 1) * self.span <= MOST:  # sorting once is quicker than ranking, then sorting
            key, since = np.divmod(np.sort(key * self.span + self._since(time_ms)), self.span)
            first = np.flatnonzero(np.diff(key, prepend=-1))
            self.keys, events = key[first], np.diff(first, append=len(key))
            self.joint = np.repeat(np.arange(len(first)), events) * self.span + since
        else:
            self.keys, rank, events = np.unique(key, return_inverse=True, return_counts=True)
            if len(self.keys) * self.span > MOST:
                self.moments = np.unique(time_ms)
                self.span = len(self.moments) + 1
            self.joint = np.sort(rank.reshape(-1) * self.span + self._since(time_ms))
        self.starts = np.concatenate(([0], np.cumsum(events)))
        self._head()

    def _head(self) -> None:
        """Say where keys begin that begin alike."""
        self.last_key = int(self.keys[-1]) if len(self.keys) else 0
        self.shift = max(0, self.last_key.bit_length() - (2 * len(self.keys)).bit_length())
        self.heads = np.searchsorted(self.keys, np.arange((self.last_key >> self.shift) + 2) << self.shift)

    def _since(self, moment: Array) -> Array:
        """Return where (C,) moments stand in the span: events before a moment stand before it."""
        if self.moments is not None:
            return np.asarray(np.searchsorted(self.moments, moment))
        return np.asarray(np.minimum(np.maximum(moment - self.first_ms, 0), self.span - 1))

    def find(self, key: Array) -> tuple[Array, Array]:
        """Return (C,) ranks of keys, and whether they have events; `before` takes the two."""
        if not len(self.keys):
            return np.zeros(len(key), np.int64), np.zeros(len(key), np.bool_)
        inside = np.minimum(np.maximum(key, 0), self.last_key)
        head = inside >> self.shift
        rank = _bounds(self.keys, inside, self.heads[head], self.heads[head + 1])
        return rank, self.keys[rank] == key

    def before(self, found: tuple[Array, Array], moment: Array) -> Array:
        """Return (C,) events before a moment of keys that `find` has found."""
        rank, known = found
        if not len(self.keys):
            return rank
        low, since = self.starts[rank], self._since(moment)
        if len(since) and int(since.min()) == self.span - 1:  # every event lies before
            return np.asarray((self.starts[rank + 1] - low) * known)
        return (_bounds(self.joint, rank * self.span + since, low, self.starts[rank + 1]) - low) * known

    def events(self) -> tuple[Array, Array]:
        """Return key and time of every event, ordered by key, then by time."""
        rank, since = np.divmod(self.joint, self.span)
        return self.keys[rank], self._times(since)

    def _times(self, since: Array) -> Array:
        return since + self.first_ms if self.moments is None else self.moments[since]

    def without(self, key: Array, time_ms: Array) -> tuple[EventTimes, Array]:
        """Return the event times less (N,) events, and (N,) bool: those that were here and were taken off."""
        rank, here = self.find(key)
        since = self._since(time_ms)
        if len(self.keys):
            inside = since < self.span - 1
            here = here & inside & (self._times(np.where(inside, since, 0)) == time_ms)
        row = np.flatnonzero(here)
        joint = rank[row] * self.span + since[row]
        row = row[np.argsort(joint, kind="stable")]
        joint.sort()
        # of equal events as many go as are asked for and are there
        low, first = np.searchsorted(self.joint, joint), np.searchsorted(joint, joint)
        position = low + np.arange(len(joint)) - first
        taken = position < np.searchsorted(self.joint, joint, side="right")
        less = copy.copy(self)
        less.joint = np.delete(self.joint, position[taken])
        gone = np.bincount(rank[row[taken]], minlength=len(self.keys))
        less.starts = self.starts - np.concatenate(([0], np.cumsum(gone)))
        off = np.zeros(len(key), np.bool_)
        off[row[taken]] = True
        return less, off

    def rekeyed(self, keys: Array) -> EventTimes:
        """Return the same events under other keys, which must rise as the old ones do."""
        changed = copy.copy(self)
        changed.keys = keys
        changed._head()
        return changed

    def __len__(self) -> int:
        return len(self.joint)


class GrowingEventTimes:
    """Event times per key that later events can join; a value. Each of a few levels is sorted.

    A small level joins the next: n events one after another cost O(n log n) in all, and a question as many searches as
    there are levels.
    """

    def __init__(self, levels: tuple[EventTimes, ...] = ()) -> None:
        self.levels = levels

    def joined(self, key: Array, time_ms: Array) -> GrowingEventTimes:
        """Return the event times with further events, in any order of time."""
        kept = list(self.levels)
        while kept and len(kept[-1]) <= 2 * len(key):
            old_key, old_ms = kept.pop().events()
            key, time_ms = np.concatenate([old_key, key]), np.concatenate([old_ms, time_ms])
        return GrowingEventTimes((*kept, EventTimes(key, time_ms)) if len(key) else tuple(kept))

    def without(self, key: Array, time_ms: Array) -> GrowingEventTimes:
        """Return the event times less (N,) events, all of which must be there."""
        kept = []
        for level in self.levels:
            less, off = level.without(key, time_ms)
            key, time_ms = key[~off], time_ms[~off]
            kept += [less] if len(less) else []
        assert not len(key), "events that are taken off must be there"
        return GrowingEventTimes(tuple(kept))

    def rekeyed(self, change: Callable[[Array], Array]) -> GrowingEventTimes:
        """Return the same events under keys that rise as the old ones do."""
        return GrowingEventTimes(tuple(level.rekeyed(change(level.keys)) for level in self.levels))

    def compacted(self) -> GrowingEventTimes:
        """Return the same in one level: the quickest to ask."""
        if len(self.levels) < 2:
            return self
        parts = [level.events() for level in self.levels]
        return GrowingEventTimes().joined(*(np.concatenate([part[k] for part in parts]) for k in range(2)))

    def find(self, key: Array) -> list[tuple[Array, Array]]:
        """Find (C,) keys; `before` takes the answer."""
        return [level.find(key) for level in self.levels]

    def before(self, found: list[tuple[Array, Array]], moment: Array) -> Array:
        """Return (C,) events before a moment of keys that `find` has found."""
        counts = [level.before(at, moment) for level, at in zip(self.levels, found, strict=True)]
        return np.sum(counts, axis=0) if counts else np.zeros(len(moment), np.int64)

    def count(self, key: Array, moment: Array, since: Array | None = None) -> Array:
        """Return (C,) events of `key` with time in [since, moment)."""
        found = self.find(key)
        end = self.before(found, moment)
        return end if since is None else np.maximum(end - self.before(found, since), 0)

    def __len__(self) -> int:
        return sum(len(level) for level in self.levels)


NO_EVENTS = GrowingEventTimes()


class Popularity(Protocol):
    """What is asked about the events of all users: how many there are strictly before moments."""

    @property
    def events(self) -> int:
        """How many there are, of whatever time."""

    def of_all(self, moment: Array, since: Array | None = None) -> Array:
        """Return (B,) events with time in [since, moment)."""

    def at_place(self, place: Array, moment: Array) -> Array:
        """Return (B,) events of places; place 0 are those without one."""

    def of_item(self, item: Array, moment: Array, since: Array) -> tuple[Array, Array]:
        """Return (C,) events of items before a moment, and of these the ones with time in [since, moment)."""

    def of_pair(self, place: Array, item: Array, moment: Array, since: Array | None = None) -> Array:
        """Return (C,) events of items at places with time in [since, moment)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularityIndex:
    """Events of all users counted by item, place and both; a value that events can join and leave."""

    num_items: int  # items are below
    by_item: GrowingEventTimes = NO_EVENTS
    by_pair: GrowingEventTimes = NO_EVENTS  # place * num_items + item
    by_place: GrowingEventTimes = NO_EVENTS
    all: GrowingEventTimes = NO_EVENTS

    def joined(self, item: Array, time_ms: Array, place: Array) -> PopularityIndex:
        """Return the index with (N,) further events, in any order of time."""
        item, time_ms, place = (np.asarray(column, np.int64) for column in (item, time_ms, place))
        return PopularityIndex(
            num_items=self.num_items,
            by_item=self.by_item.joined(item, time_ms),
            by_pair=self.by_pair.joined(place * self.num_items + item, time_ms),
            by_place=self.by_place.joined(place, time_ms),
            all=self.all.joined(np.zeros(len(time_ms), np.int64), time_ms),
        )

    def without(self, item: Array, time_ms: Array, place: Array) -> PopularityIndex:
        """Return the index less (N,) events that are in it."""
        item, time_ms, place = (np.asarray(column, np.int64) for column in (item, time_ms, place))
        return PopularityIndex(
            num_items=self.num_items,
            by_item=self.by_item.without(item, time_ms),
            by_pair=self.by_pair.without(place * self.num_items + item, time_ms),
            by_place=self.by_place.without(place, time_ms),
            all=self.all.without(np.zeros(len(time_ms), np.int64), time_ms),
        )

    def widened(self, num_items: int) -> PopularityIndex:
        """Return the same for more items."""

        def wide(pair: Array) -> Array:
            place, item = np.divmod(pair, self.num_items)
            return place * num_items + item

        return replace(self, num_items=num_items, by_pair=self.by_pair.rekeyed(wide))

    def compacted(self) -> PopularityIndex:
        """Return the same with everything in one level."""
        return PopularityIndex(
            num_items=self.num_items,
            by_item=self.by_item.compacted(),
            by_pair=self.by_pair.compacted(),
            by_place=self.by_place.compacted(),
            all=self.all.compacted(),
        )

    @property
    def events(self) -> int:
        """How many events it has."""
        return len(self.all)

    def of_all(self, moment: Array, since: Array | None = None) -> Array:
        """See `Popularity`."""
        return self.all.count(np.zeros(len(moment), np.int64), moment, since)

    def at_place(self, place: Array, moment: Array) -> Array:
        """See `Popularity`."""
        return self.by_place.count(place, moment)

    def of_item(self, item: Array, moment: Array, since: Array) -> tuple[Array, Array]:
        """See `Popularity`."""
        found = self.by_item.find(item)
        ever = self.by_item.before(found, moment)
        return ever, np.maximum(ever - self.by_item.before(found, since), 0)

    def of_pair(self, place: Array, item: Array, moment: Array, since: Array | None = None) -> Array:
        """See `Popularity`."""
        return self.by_pair.count(place * self.num_items + item, moment, since)


def popularity_features(
    popularity: Popularity, item: Array, row: Array, time_ms: Array, place: Array
) -> dict[str, Array]:
    """Return the columns of POPULARITY_FIELDS for C candidates; everything counts strictly before the request.

    The unit is log1p(per-million share of the events in the window), so that it does not drift as a log grows.

    Args:
        popularity: counts.
        item:     (C,) int64.
        row:      (C,) int64 request of each candidate.
        time_ms:  (B,) int64 request time.
        place:    (B,) int64 place of the request; 0 (missing) counts the events without a place.
    """
    since = time_ms - WINDOW_MS
    total, recent_total = popularity.of_all(time_ms), popularity.of_all(time_ms, since)
    at_place = popularity.at_place(place, time_ms)
    moment = time_ms[row]
    ever, recent = popularity.of_item(item, moment, since[row])
    return {
        "popularity": _log_share(ever, total[row]),
        "popularity_28d": _log_share(recent, recent_total[row]),
        "popularity_place": _log_share(popularity.of_pair(place[row], item, moment), at_place[row]),
    }


def _bounds(values: Array, bound: Array, low: Array, high: Array) -> Array:
    """Return `lower_bounds`; of few bounds without the twin, whose call would cost more than the searches."""
    if len(bound) < FEW:
        return np.searchsorted(values, bound)
    return lower_bounds(values, bound, low, high)


def _log_share(count: Array, total: Array) -> Array:
    return np.log1p(1e6 * count / np.maximum(total, 1)).astype(np.float32)


__all__ = [
    "POPULARITY_FIELDS",
    "EventTimes",
    "GrowingEventTimes",
    "Popularity",
    "PopularityIndex",
    "popularity_features",
]
