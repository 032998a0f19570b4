"""Parts of a split that a mean hides: short and long histories, rare and new items, first purchases, weeks.

A slice by request (history length, activity, week) keeps whole requests. A slice by candidate (popularity, new, first
purchase) keeps the positives of the slice and *all* negatives of their request: it says how well such positives are
found, which comparing them among themselves would not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np

from sostenuto.evaluation.predictions import Predictions
from sostenuto.evaluation.terms import Array, dense_groups

LENGTH_EDGES = (1, 10, 50, 200, 500, 1000, 2000, 5000, 20000)
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One way to cut rows into parts. `code` is the part of each row, an index into `parts`."""

    name: str
    title: str
    by: Literal["request", "candidate"]
    parts: tuple[str, ...]
    code: Array  # (N,) int64

    def rows(self, part: int, labels: Array) -> Array:
        """(N,) bool rows that GAUC of a part looks at."""
        inside: Array = self.code == part
        return inside if self.by == "request" else inside | (np.asarray(labels) == 0)


def _thousands(number: int) -> str:
    return f"{number:,}"


def _range_names(edges: Array) -> tuple[str, ...]:
    """Names of the whole-number ranges between inclusive lower edges; the last is open."""
    names = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        if high is None:
            names.append(f"{_thousands(int(low))}+")
        elif high - 1 == low:
            names.append(_thousands(int(low)))
        else:
            names.append(f"{_thousands(int(low))}\N{EN DASH}{_thousands(int(high) - 1)}")
    return tuple(names)


def _used(name: str, title: str, by: Literal["request", "candidate"], parts: tuple[str, ...], code: Array) -> Slice:
    """Make a slice of the parts that occur."""
    used, dense = dense_groups(code)
    return Slice(name=name, title=title, by=by, parts=tuple(parts[i] for i in used), code=dense)


def by_history_length(predictions: Predictions, edges: tuple[int, ...] = LENGTH_EDGES) -> Slice:
    """Cut by behaviours strictly before the request."""
    bounds = np.array([0, *edges])
    code = np.searchsorted(bounds, predictions.history_length, side="right") - 1
    return _used("history_length", "History length", "request", _range_names(bounds), code)


def by_activity(predictions: Predictions, parts: int = 4) -> Slice:
    """Cut users into groups of equal size by how many requests they have in the split."""
    users, user = dense_groups(predictions.user)
    pairs = np.unique(user * (int(predictions.request.max(initial=0)) + 1) + predictions.request)
    requests = np.bincount(pairs // (int(predictions.request.max(initial=0)) + 1), minlength=len(users))
    edges = np.unique(np.quantile(requests, np.linspace(0, 1, parts + 1)[:-1], method="higher")) if len(users) else [0]
    edges = np.asarray(edges, np.int64)
    code = np.searchsorted(edges, requests, side="right") - 1
    return _used("activity", "Requests of the user in this split", "request", _range_names(edges), code[user])


def by_popularity(predictions: Predictions, parts: int = 4) -> Slice:
    """Cut candidates at quantiles of the training count of the positives."""
    positives = predictions.item_count[predictions.label == 1]
    if len(positives) == 0:
        positives = predictions.item_count
    inner = np.quantile(positives, np.linspace(0, 1, parts + 1)[1:-1], method="higher") if len(positives) else []
    edges = np.unique(np.concatenate([[0], inner]).astype(np.int64))
    code = np.searchsorted(edges, predictions.item_count, side="right") - 1
    return _used("popularity", "Occurrences of the item in training", "candidate", _range_names(edges), code)


def by_new_item(predictions: Predictions) -> Slice:
    """Cut candidates into those that training saw and those it did not."""
    return _used("new_item", "Item seen in training", "candidate", ("seen", "new"), predictions.is_new_item.astype(int))


def by_repeat(predictions: Predictions) -> Slice:
    """Cut candidates into first meetings and repeats of this user with this item."""
    code = (predictions.prior_count > 0).astype(np.int64)
    return _used("repeat", "First meeting or repeat", "candidate", ("first", "repeat"), code)


def by_week(predictions: Predictions, *, start_ms: int | None = None, time_zone: str = "UTC") -> Slice:
    """Cut by weeks of seven local days, counted from the local midnight of `start_ms` (default: the first request)."""
    time_ms = predictions.time_ms
    if len(time_ms) == 0:
        return Slice(name="week", title="Week", by="request", parts=(), code=np.zeros(0, np.int64))
    zone = ZoneInfo(time_zone)
    first = datetime.fromtimestamp((int(time_ms.min()) if start_ms is None else start_ms) / 1000, zone)
    midnight = first.replace(hour=0, minute=0, second=0, microsecond=0)
    weeks = (int(time_ms.max()) - int(midnight.timestamp() * 1000)) // (7 * DAY_MS) + 2
    starts = [midnight + timedelta(days=7 * week) for week in range(weeks)]  # local days: a clock change keeps midnight
    edges = np.array([int(start.timestamp() * 1000) for start in starts])
    code = np.maximum(np.searchsorted(edges, time_ms, side="right") - 1, 0)
    return _used("week", "Week from", "request", tuple(start.date().isoformat() for start in starts), code)


def standard_slices(
    predictions: Predictions, *, start_ms: int | None = None, time_zone: str = "UTC"
) -> tuple[Slice, ...]:
    """Return all slices of this file."""
    return (
        by_history_length(predictions),
        by_activity(predictions),
        by_week(predictions, start_ms=start_ms, time_zone=time_zone),
        by_popularity(predictions),
        by_new_item(predictions),
        by_repeat(predictions),
    )


__all__ = [
    "LENGTH_EDGES",
    "Slice",
    "by_activity",
    "by_history_length",
    "by_new_item",
    "by_popularity",
    "by_repeat",
    "by_week",
    "standard_slices",
]
