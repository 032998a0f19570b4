"""Popularity of a running service: the events of a store, counted once for all models of a process.

Counted are the codes of the store (`StorePopularity`). What a model calls an item or a place is looked up when it asks
(`ModelPopularity`); only events whose item or place it does not know are counted once more, because it calls them all
by one name.

The count is kept with the store as a snapshot, so that a start reads that and the later changes. It always is what a
count of the events that are now in the store would be: deleted users and dropped events are taken off.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.popularity import Popularity, PopularityIndex
from sostenuto.schema.errors import StoreDamaged, StoreFull, StreamTrimmed
from sostenuto.schema.features import UNKNOWN

if TYPE_CHECKING:
    from sostenuto.serving.stores.store import Change, Snapshot, Store

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)

CHANGES_AT_ONCE = 10_000
NAME = "popularity"  # of the snapshot, and of the cursor that keeps the stream behind it
HEAD = struct.Struct("<8sQ16s")  # format, events, hash of the columns
FORMAT = b"sstpop01"
PART_BYTES = 1 << 20
# a new snapshot is written when so many events are beyond the last one: reading them takes about a second
KEPT_EVENTS, KEPT_SHARE = 50_000, 0.05
KEPT_S = 60.0  # at most so often
ALL_TIMES = np.iinfo(np.int64).max
NO_PLACE = 2**31 - 1  # no store has so many places


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EventRows:
    """N events as columns: what is counted of each, and whose it is."""

    user: Array  # (N,) uint32 code
    item: Array  # (N,) uint32 code
    place: Array  # (N,) uint32 code, 0 missing
    time_ms: Array  # (N,) int64

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: Array | slice) -> EventRows:
        """Return some of them."""
        return EventRows(user=self.user[rows], item=self.item[rows], place=self.place[rows], time_ms=self.time_ms[rows])

    @classmethod
    def joined(cls, parts: Sequence[EventRows]) -> EventRows:
        """Put parts one after another."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        return cls(**columns)


COLUMNS = {"user": "<u4", "item": "<u4", "place": "<u4", "time_ms": "<i8"}
NO_ROWS = EventRows(**{name: np.zeros(0, dtype) for name, dtype in COLUMNS.items()})


class _Growing:
    """Rows that others are put behind, without moving all of them each time; what was handed out stays as it is."""

    def __init__(self, rows: EventRows) -> None:
        self._columns = {name: getattr(rows, name) for name in COLUMNS}

    def put(self, count: int, rows: EventRows) -> EventRows:
        """Put rows behind the first `count`, which are all that anybody was handed, and return both."""
        end = count + len(rows)
        for name, column in self._columns.items():
            if end > len(column):
                grown = np.empty(max(end, 2 * len(column)), COLUMNS[name])
                grown[:count] = column[:count]
                self._columns[name] = grown
            self._columns[name][count:end] = getattr(rows, name)
        return EventRows(**{name: column[:end] for name, column in self._columns.items()})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counted:
    """The events of a store up to a sequence, less what was taken away since; a value."""

    sequence: int
    rows: EventRows
    index: PopularityIndex  # of codes
    era: int  # grows when rows are taken off: until then later ones stand behind earlier ones
    removed: int  # sequence of the last change that took something away from the store


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What one look at the stream brought."""

    changes: int = 0
    gone: frozenset[int] = field(default_factory=frozenset)  # codes of deleted users
    anew: bool = False  # the stream no longer told everything: who was deleted is not known


class StorePopularity:
    """Counts the events of a store and follows its stream; one for a process, safe to share between threads.

    Nothing is read before it is asked for.

    Args:
        store: holds the events.
        clock: seconds, for how often a snapshot is written.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._following = threading.Lock()
        self._keeping = threading.Lock()
        self._counted: Counted | None = None
        self._growing = _Growing(NO_ROWS)
        self._kept: tuple[int, int] | None = None  # sequence and events of the last snapshot that is known
        self._kept_at = -KEPT_S

    def counted(self) -> Counted:
        """Return the count as it stands, after reading the snapshot or all events where nothing was read yet."""
        found = self._counted
        if found is None:
            self.follow()
            found = self._counted
            assert found is not None
        return found

    def follow(self) -> Followed:
        """Take later changes in."""
        with self._following:
            if self._counted is None:
                self._counted = self._opened()
            count, gone = 0, set[int]()
            try:
                while changes := self._store.changes(self._counted.sequence, CHANGES_AT_ONCE):
                    self._counted = self._after(self._counted, changes)
                    gone |= {change.user for change in changes if change.kind == "deleted"}
                    count += len(changes)
            except StreamTrimmed:
                self._counted = self._read_all(self._counted.era + 1)
                return Followed(changes=1, anew=True)
            return Followed(changes=count, gone=frozenset(gone))

    def _opened(self) -> Counted:
        try:
            kept = self._store.snapshot(NAME)
        except StoreDamaged:
            kept = None
        rows = None if kept is None else unpacked(kept)
        if kept is None or rows is None or kept.sequence > self._store.last_sequence():
            return self._read_all(0)
        self._kept = (kept.sequence, len(rows))
        return self._indexed(kept.sequence, rows, 0)

    def _read_all(self, era: int) -> Counted:
        until = self._store.last_sequence()
        parts = [NO_ROWS]
        for block in self._store.all_events():
            there = block.sequence <= until
            rows = EventRows(user=block.user, item=block.item, place=block.place, time_ms=block.time_ms)
            parts.append(rows.take(there))
        return self._indexed(until, EventRows.joined(parts), era)

    def _indexed(self, sequence: int, rows: EventRows, era: int) -> Counted:
        self._growing = _Growing(rows)
        return Counted(sequence=sequence, rows=rows, index=_put(PopularityIndex(num_items=1), rows), era=era, removed=0)

    def _after(self, counted: Counted, changes: Sequence[Change]) -> Counted:
        """Return the count after further changes."""
        rows, index, era, removed = counted.rows, counted.index, counted.era, counted.removed
        floors = self._floors(changes)
        new = [(c.user, c.item, c.place, c.time_ms) for c in changes if c.kind == "event"]
        if new:
            columns = zip(COLUMNS.items(), zip(*new, strict=True), strict=True)
            more = EventRows(**{name: np.array(values, dtype) for (name, dtype), values in columns})
            rows, index = self._growing.put(len(rows), more), _put(index, more)
        if floors:
            removed = max(change.sequence for change in changes if change.kind != "event")
            user = np.array(sorted(floors), np.int64)
            floor = np.array([floors[code] for code in user.tolist()], np.int64)
            at = np.minimum(np.searchsorted(user, rows.user), len(user) - 1)
            off = (user[at] == rows.user) & (rows.time_ms <= floor[at])
            if off.any():
                less = rows.take(off)
                index = index.without(less.item, less.time_ms, less.place)
                rows, era = rows.take(~off), era + 1
                self._growing = _Growing(rows)
        return Counted(sequence=changes[-1].sequence, rows=rows, index=index, era=era, removed=removed)

    def _floors(self, changes: Sequence[Change]) -> dict[int, int]:
        """Return up to and at which time nothing is left of users, by their codes.

        A compaction drops whole moments and no event comes back below its floor, so the floor tells all that went. It
        may be that of a later compaction, whose change is still to come: that one then finds nothing more to do.
        """
        floors: dict[int, int] = {}
        for change in changes:
            if change.kind == "event" or change.user in floors:
                continue
            head = None if change.user_id is None else self._store.head(change.user_id)
            floors[change.user] = ALL_TIMES if head is None or head.user != change.user else head.floor_ms
        return floors

    def keep(self, *, ending: bool = False) -> bool:
        """Write a snapshot where the last one is far behind or was taken away; return whether one was written.

        Args:
            ending: of the process: then any later change is worth one.
        """
        with self._keeping:
            counted = self._counted
            if counted is None or not self._is_due(counted, ending=ending):
                return False
            self._kept_at = self._clock()
            try:
                written = self._store.put_snapshot(NAME, counted.sequence, packed(counted.rows))
            except StoreFull as error:
                log.warning("popularity is not kept: %s", error)
                return False
            if written:
                self._store.set_cursor(NAME, counted.sequence)
                self._kept = (counted.sequence, len(counted.rows))
            return written

    def _is_due(self, counted: Counted, *, ending: bool) -> bool:
        if self._kept is None:
            return ending or self._clock() - self._kept_at >= KEPT_S
        sequence, events = self._kept
        if ending:
            return counted.sequence > sequence
        if self._clock() - self._kept_at < KEPT_S:
            return False
        return counted.removed > sequence or len(counted.rows) - events > max(KEPT_EVENTS, KEPT_SHARE * events)


def _put(index: PopularityIndex, rows: EventRows) -> PopularityIndex:
    most = int(rows.item.max(initial=0))
    if most >= index.num_items:
        index = index.widened(2 << most.bit_length())
    return index.joined(rows.item, rows.time_ms, rows.place)


def packed(rows: EventRows) -> list[bytes]:
    """Return the parts of a snapshot."""
    whole = b"".join(getattr(rows, name).astype(dtype).tobytes() for name, dtype in COLUMNS.items())
    head = HEAD.pack(FORMAT, len(rows), hashlib.blake2b(whole, digest_size=16).digest())
    return [head, *(whole[at : at + PART_BYTES] for at in range(0, len(whole), PART_BYTES))]


def unpacked(snapshot: Snapshot) -> EventRows | None:
    """Return the rows of a snapshot; None where it is damaged or of another format."""
    if not snapshot.parts or len(snapshot.parts[0]) != HEAD.size:
        return None
    form, count, digest = HEAD.unpack(snapshot.parts[0])
    whole = b"".join(snapshot.parts[1:])
    width = sum(np.dtype(dtype).itemsize for dtype in COLUMNS.values())
    if form != FORMAT or len(whole) != count * width or hashlib.blake2b(whole, digest_size=16).digest() != digest:
        return None
    columns, at = {}, 0
    for name, dtype in COLUMNS.items():
        columns[name] = np.frombuffer(whole, dtype, count, at)
        at += columns[name].nbytes
    return EventRows(**columns)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelPopularity:
    """The count of a store as a model reads it: asked by indices of items and places, of which 1 is the unknown.

    Implements `features.popularity.Popularity`.
    """

    counts: PopularityIndex  # of codes, all events
    unknown: PopularityIndex  # of indices, the events of which the model does not know the item or the place
    item_code: Array  # (I,) int64 code of each item; 0 = the store has not met it
    place_code: Array | None  # (P,) the same of places, NO_PLACE = not met; None = the model knows no places: all are 0

    @property
    def events(self) -> int:
        """See `Popularity`."""
        return self.counts.events

    def of_all(self, moment: Array, since: Array | None = None) -> Array:
        """See `Popularity`."""
        return self.counts.of_all(moment, since)

    def at_place(self, place: Array, moment: Array) -> Array:
        """See `Popularity`."""
        if self.place_code is None:
            return self.counts.of_all(moment)
        found = self.counts.at_place(self.place_code[place], moment)
        lumped = place == UNKNOWN
        return np.where(lumped, self.unknown.at_place(place, moment), found) if lumped.any() else found

    def of_item(self, item: Array, moment: Array, since: Array) -> tuple[Array, Array]:
        """See `Popularity`."""
        ever, recent = self.counts.of_item(self.item_code[item], moment, since)
        lumped = item == UNKNOWN
        if lumped.any():
            other = self.unknown.of_item(item, moment, since)
            ever, recent = (np.where(lumped, a, b) for a, b in zip(other, (ever, recent), strict=True))
        return ever, recent

    def of_pair(self, place: Array, item: Array, moment: Array, since: Array | None = None) -> Array:
        """See `Popularity`."""
        if self.place_code is None:
            ever, recent = self.of_item(item, moment, moment if since is None else since)
            return ever if since is None else recent
        found = self.counts.of_pair(self.place_code[place], self.item_code[item], moment, since)
        lumped = (item == UNKNOWN) | (place == UNKNOWN)
        return np.where(lumped, self.unknown.of_pair(place, item, moment, since), found) if lumped.any() else found


NOTHING_COUNTED: Popularity = PopularityIndex(num_items=1)

__all__ = [
    "NOTHING_COUNTED",
    "Counted",
    "EventRows",
    "Followed",
    "ModelPopularity",
    "StorePopularity",
    "packed",
    "unpacked",
]
