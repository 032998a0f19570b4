"""What a request protocol is given and what it gives back.

`prepare` reads the log into a `Core` (every event, items, vocabularies), asks the protocol which events training may
see, orders the item vocabulary by them, and asks the same protocol for the requests. A protocol is chosen by name,
carries a version, and records every number it used.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sostenuto.data import prepared
from sostenuto.data.prepared import Array, Behaviours, Requests
from sostenuto.schema.features import FeatureSpec, Field


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """A log as `prepare` sees it before requests exist.

    `is_training` gets a core whose item indices are still provisional and whose `features` may lack statistics;
    `make_requests` gets the final one. User, place and action indices are final in both.
    """

    name: str
    time_zone: str  # IANA zone of local hours, days and weeks
    behaviours: Behaviours  # user-major, inside a user by time
    items: pl.DataFrame  # row = item index: `item_id`, `category.<level>`, `field.<name>`
    features: FeatureSpec
    vocabularies: Mapping[str, pl.Series]  # "item", "user", "place", "action", field names: raw ids (text) by index
    source_folder: Path | None = None  # where further tables of the source lie (promotions ...)
    session: Array | None = None  # (N,) int32 number of the session within its user, where the log names sessions
    exposures: Path | None = None  # parquet of true impressions, format of the protocol `exposures`


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeRequests:
    """What a protocol made: requests by split, the columns they carry beside the item, and counts worth recording."""

    protocol: prepared.Protocol
    requests: Mapping[str, Requests]  # by split: train, valid, test
    candidate_fields: tuple[Field, ...] = ()
    context_fields: tuple[Field, ...] = ()  # context columns that models may read; others are identifiers only
    counts: Mapping[str, int] = field(default_factory=dict)


class RequestProtocol(typing.Protocol):
    """Turns a log into requests with candidates and labels; named, versioned, seeded."""

    name: str
    version: int

    def is_training(self, core: Core, *, settings: Mapping[str, Any]) -> Array:
        """Return (N,) bool over behaviours: which events vocabularies, filters and statistics may use."""
        ...

    def make_requests(self, core: Core, folder: Path, *, seed: int, settings: Mapping[str, Any]) -> MadeRequests:
        """Return the requests of every split.

        May write candidate universes into `folder / "pools"`; writes the vocabulary of each new categorical column.
        """
        ...


def event_users(behaviours: Behaviours, start: int = 0, stop: int | None = None) -> Array:
    """Return (stop - start,) int32, the user index of the events start .. stop; all of them where nothing is said."""
    offsets = behaviours.offsets
    stop = len(behaviours.item) if stop is None else stop
    first = max(int(np.searchsorted(offsets, start, side="right")) - 1, 0)
    last = max(int(np.searchsorted(offsets, stop)), first)
    edges = np.clip(offsets[first : last + 1], start, stop)
    return np.repeat(np.arange(first, last, dtype=np.int32), np.diff(edges))


def prefix_lengths(behaviours: Behaviours, user: Array, time_ms: Array) -> Array:
    """Return (R,) int32, how many behaviours of `user` lie strictly before `time_ms`.

    A binary search inside each user's slice, all requests at once: O(R log longest history), any time range.
    """
    start = behaviours.offsets[user].astype(np.int64)
    low, high = start.copy(), behaviours.offsets[np.asarray(user) + 1].astype(np.int64)
    times = behaviours.time_ms
    while (open_ := low < high).any():
        middle = (low[open_] + high[open_]) >> 1
        before = times[middle] < time_ms[open_]
        low[open_] = np.where(before, middle + 1, low[open_])
        high[open_] = np.where(before, high[open_], middle)
    return (low - start).astype(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """The distinct (user, time) pairs of a log, in its order; moment m holds events first[m] .. first[m + 1]."""

    user: Array  # (M,) int32
    time_ms: Array  # (M,) int64
    first: Array  # (M + 1,) int64 event rows

    def __len__(self) -> int:
        return len(self.user)


def moments(behaviours: Behaviours) -> Moments:
    """Group events of one user and one time: they have no order among themselves and are one moment."""
    users = event_users(behaviours)
    times = np.asarray(behaviours.time_ms)
    starts = np.ones(len(users), bool)
    starts[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
    first = np.flatnonzero(starts)
    return Moments(user=users[first], time_ms=times[first], first=np.append(first, len(users)).astype(np.int64))


def local_days(time_ms: Array, time_zone: str) -> Array:
    """Return (N,) int64 local calendar days since 1970-01-01 in `time_zone` of epoch milliseconds."""
    local = pl.Series(np.asarray(time_ms, np.int64)).cast(pl.Datetime("ms", "UTC")).dt.convert_time_zone(time_zone)
    return local.dt.date().cast(pl.Int32).to_numpy().astype(np.int64)


__all__ = [
    "Core",
    "MadeRequests",
    "Moments",
    "RequestProtocol",
    "event_users",
    "local_days",
    "moments",
    "prefix_lengths",
]
