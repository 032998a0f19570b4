"""How popular an item was strictly before a moment: over all time, over 28 days, and at the request's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.ops.sorted_search import lower_bounds
from sostenuto.schema.errors import DataError
from sostenuto.schema.features import Field

Array = npt.NDArray[Any]

WINDOW_MS = 28 * 86_400_000
FEW = 16  # searches
POPULARITY_FIELDS = (
    Field(name="popularity", kind="numeric", mean=3.0, std=2.0),
    Field(name="popularity_28d", kind="numeric", mean=3.0, std=2.0),
    Field(name="popularity_place", kind="numeric", mean=3.0, std=2.5),
)


class EventTimes:
    """Sorted event times per key: answers "how many events of this key in [from, to)".

    Key and time are one number, so that one binary search answers: rank of the key times the span of all times, plus
    the time. It stays among the events of the key, and the search for the rank among keys that begin alike.
    """

    def __init__(self, key: Array, time_ms: Array) -> None:
        self.first_ms = int(time_ms.min()) if len(time_ms) else 0
        self.span = (int(time_ms.max()) - self.first_ms + 1 if len(time_ms) else 0) + 1
        self.keys, rank, events = np.unique(key, return_inverse=True, return_counts=True)
        self.starts = np.concatenate(([0], np.cumsum(events)))
        self.last_key = int(self.keys[-1]) if len(self.keys) else 0
        self.shift = max(0, self.last_key.bit_length() - (2 * len(self.keys)).bit_length())
        self.heads = np.searchsorted(self.keys, np.arange((self.last_key >> self.shift) + 2) << self.shift)
        if len(self.keys) * self.span > np.iinfo(np.int64).max:
            raise DataError(
                f"keys times milliseconds of the log must be below 2 ** 63, got {len(self.keys)} keys over "
                f"{self.span} ms; look for times far outside the log's years"
            )
        self.joint = np.sort(rank.reshape(-1) * self.span + (time_ms - self.first_ms))

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
        if len(moment) and int(moment.min()) - self.first_ms >= self.span - 1:  # every event lies before
            return (self.starts[rank + 1] - self.starts[rank]) * known
        inside = np.minimum(np.maximum(moment - self.first_ms, 0), self.span - 1)
        low = self.starts[rank]
        return (_bounds(self.joint, rank * self.span + inside, low, self.starts[rank + 1]) - low) * known

    def events(self) -> tuple[Array, Array]:
        """Return key and time of every event, ordered by key, then by time."""
        rank, since = np.divmod(self.joint, self.span)
        return self.keys[rank], since + self.first_ms

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


NO_EVENTS = GrowingEventTimes()


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularityIndex:
    """Point-in-time popularity of items, from the events of all users; a value that later events can join.

    The unit is log1p(per-million share of the events in the window), so that it does not drift as a log grows.
    """

    num_items: int
    by_item: GrowingEventTimes = NO_EVENTS
    by_pair: GrowingEventTimes = NO_EVENTS
    by_place: GrowingEventTimes = NO_EVENTS
    all: GrowingEventTimes = NO_EVENTS

    def joined(self, item: Array, time_ms: Array, place: Array) -> PopularityIndex:
        """Return the index with (N,) further events, in any order of time."""
        item, time_ms = np.asarray(item, np.int64), np.asarray(time_ms, np.int64)
        place = np.asarray(place, np.int64)
        return PopularityIndex(
            num_items=self.num_items,
            by_item=self.by_item.joined(item, time_ms),
            by_pair=self.by_pair.joined(place * self.num_items + item, time_ms),
            by_place=self.by_place.joined(place, time_ms),
            all=self.all.joined(np.zeros(len(time_ms), np.int64), time_ms),
        )

    def compacted(self) -> PopularityIndex:
        """Return the same with everything in one level."""
        return PopularityIndex(
            num_items=self.num_items,
            by_item=self.by_item.compacted(),
            by_pair=self.by_pair.compacted(),
            by_place=self.by_place.compacted(),
            all=self.all.compacted(),
        )

    def features(self, item: Array, row: Array, time_ms: Array, place: Array) -> dict[str, Array]:
        """Return the columns of POPULARITY_FIELDS for C candidates; everything counts strictly before the request.

        Args:
            item:     (C,) int64.
            row:      (C,) int64 request of each candidate.
            time_ms:  (B,) int64 request time.
            place:    (B,) int64 place of the request; 0 (missing) counts the events without a place.
        """
        since = time_ms - WINDOW_MS
        everything = np.zeros(len(time_ms), np.int64)
        total = self.all.count(everything, time_ms)
        recent_total = self.all.count(everything, time_ms, since)
        at_place = self.by_place.count(place, time_ms)
        moment, pair = time_ms[row], place[row] * self.num_items + item
        items = self.by_item.find(item)
        ever = self.by_item.before(items, moment)
        recent = np.maximum(ever - self.by_item.before(items, since[row]), 0)
        return {
            "popularity": _log_share(ever, total[row]),
            "popularity_28d": _log_share(recent, recent_total[row]),
            "popularity_place": _log_share(self.by_pair.count(pair, moment), at_place[row]),
        }


def _bounds(values: Array, bound: Array, low: Array, high: Array) -> Array:
    """Return `lower_bounds`; of few bounds without the twin, whose call would cost more than the searches."""
    if len(bound) < FEW:
        return np.searchsorted(values, bound)
    return lower_bounds(values, bound, low, high)


def _log_share(count: Array, total: Array) -> Array:
    return np.log1p(1e6 * count / np.maximum(total, 1)).astype(np.float32)


__all__ = ["POPULARITY_FIELDS", "EventTimes", "GrowingEventTimes", "PopularityIndex"]
