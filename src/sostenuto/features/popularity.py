"""How popular an item was strictly before a moment: over all time, over 28 days, and at the request's place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.schema.features import Field

Array = npt.NDArray[Any]

WINDOW_MS = 28 * 86_400_000
POPULARITY_FIELDS = (
    Field(name="popularity", kind="numeric", mean=3.0, std=2.0),
    Field(name="popularity_28d", kind="numeric", mean=3.0, std=2.0),
    Field(name="popularity_place", kind="numeric", mean=3.0, std=2.5),
)


def count_before(times: Array, start: Array, end: Array, moment: Array) -> Array:
    """Count, per query, the entries of `times[start:end]` (rising) that are strictly below `moment`.

    A binary search over many segments at once: O(log of the longest) numpy passes over the queries.
    """
    low, high = start.astype(np.int64), end.astype(np.int64)
    while True:
        open_ = low < high
        if not open_.any():
            return low - start
        middle = (low + high) >> 1
        below = times[np.minimum(middle, len(times) - 1)] < moment
        low = np.where(open_ & below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)


class EventTimes:
    """Sorted event times per key: answers "how many events of this key in [from, to)"."""

    def __init__(self, key: Array, time_ms: Array) -> None:
        order = np.lexsort((time_ms, key))
        self.times = np.ascontiguousarray(time_ms[order])
        self.keys, starts = np.unique(key[order], return_index=True)
        self.bounds = np.append(starts, len(order)).astype(np.int64)

    def count(self, key: Array, moment: Array, since: Array | None = None) -> Array:
        """Return (C,) events of `key` with time in [since, moment)."""
        if not len(self.keys):
            return np.zeros(len(key), np.int64)
        at = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        known = self.keys[at] == key
        start, end = self.bounds[at], np.where(known, self.bounds[at + 1], self.bounds[at])
        before = count_before(self.times, start, end, moment)
        return before if since is None else before - count_before(self.times, start, end, since)


class PopularityIndex:
    """Point-in-time popularity of items, from the flat behaviour arrays of all users.

    The unit is log1p(per-million share of the events in the window), so that it does not drift as a log grows.
    """

    def __init__(self, item: Array, time_ms: Array, place: Array, num_items: int) -> None:
        item, time_ms = np.asarray(item, np.int64), np.asarray(time_ms, np.int64)
        place = np.asarray(place, np.int64)
        self.num_items = num_items
        self.by_item = EventTimes(item, time_ms)
        self.by_pair = EventTimes(place * num_items + item, time_ms)
        self.by_place = EventTimes(place, time_ms)
        self.all_times = np.sort(time_ms)

    def features(self, item: Array, time_ms: Array, place: Array) -> dict[str, Array]:
        """Return the columns of POPULARITY_FIELDS for C candidates; everything counts strictly before `time_ms`.

        Args:
            item:     (C,) int64.
            time_ms:  (C,) int64 request time.
            place:    (C,) int64 place of the request; 0 (missing) counts the events without a place.
        """
        since = time_ms - WINDOW_MS
        total = np.searchsorted(self.all_times, time_ms)
        recent_total = total - np.searchsorted(self.all_times, since)
        at_place = self.by_place.count(place, time_ms)
        return {
            "popularity": _log_share(self.by_item.count(item, time_ms), total),
            "popularity_28d": _log_share(self.by_item.count(item, time_ms, since), recent_total),
            "popularity_place": _log_share(self.by_pair.count(place * self.num_items + item, time_ms), at_place),
        }


def _log_share(count: Array, total: Array) -> Array:
    return np.log1p(1e6 * count / np.maximum(total, 1)).astype(np.float32)


__all__ = ["POPULARITY_FIELDS", "EventTimes", "PopularityIndex", "count_before"]
