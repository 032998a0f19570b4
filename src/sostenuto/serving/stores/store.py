"""Store: where a running service keeps what users did, and what was made of it. The promise, and its values.

Three numbers hold everything together:

- a **code** stands for a name (user, item, action, place, value of a categorical field) inside one store. Codes are
  given in order of first use, from 1 on; 0 means missing. A code is never given twice, not even after a deletion.
- a **sequence** counts accepted changes of the whole store. It comes from a counter inside the store, never from a
  clock, grows with every change and is never given twice; there may be gaps.
- the **revision** of a user is the sequence of the last change of her history. So it grows with every change, and no
  user who is deleted and comes back ever has a revision that she had before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from sostenuto.schema.events import MOST_TIME_MS, Event
from sostenuto.serving.stores.layout import TIME_BIAS, RecordLayout

Array = npt.NDArray[Any]

NO_FLOOR = -MOST_TIME_MS - 1  # floor of a user of whom nothing was dropped
MOST_JSON_BYTES = 65_536  # of the fields of one user or item


@dataclass(frozen=True, kw_only=True, slots=True)
class Appended:
    """What became of one event that was sent.

    - new: it is in the store, durably.
    - duplicate: the user has an event of this id already, and that one stays; nothing changed.
    - expired: it is not younger than what compaction has dropped of this user; nothing changed.
    """

    outcome: Literal["new", "duplicate", "expired"]
    sequence: int  # of the event; of the first one with this id where duplicate; 0 where expired
    user: int  # code
    revision: int  # of the user after the whole batch

    @property
    def duplicate(self) -> bool:
        """The event was there already."""
        return self.outcome == "duplicate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What there is of a user, in a few numbers."""

    user: int  # code; a user who was deleted and comes back has another one: key caches by it
    revision: int
    count: int  # events; 0 for a user of whom only fields are known, or all of whose events were dropped
    first_ms: int  # of the oldest event; 0 without one
    last_ms: int  # of the newest event; 0 without one
    last_sequence: int  # of the event that arrived last; 0 without one
    late_sequence: int  # newest event that was older than another when it came: those after it came in order of time
    floor_ms: int  # compaction dropped everything up to and at this time; NO_FLOOR when it dropped nothing
    born: int  # sequence at which the user became known


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredHistory:
    """Events of one user as columns, by (time, sequence); read in one transaction with the head."""

    head: Head  # of the whole history, whatever was asked for
    time_ms: Array  # (L,) int64
    sequence: Array  # (L,) int64
    item: Array  # (L,) uint32 code
    action: Array  # (L,) uint32 code, 0 missing
    place: Array  # (L,) uint32 code, 0 missing
    value: Array  # (L,) float32, NaN missing
    fields: Mapping[str, Array]  # (L,) uint32 codes of categorical, float32 of numeric fields

    def __len__(self) -> int:
        return len(self.time_ms)

    @property
    def revision(self) -> int:
        """Revision of the user at the time of reading."""
        return self.head.revision

    @classmethod
    def of(cls, head: Head, records: Array) -> StoredHistory:
        """Return the columns of (L,) records of a layout; they are copies."""
        return cls(head=head, **_columns(records))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EventBlock:
    """Events of several users as columns: user after user by code, each by (time, sequence)."""

    user: Array  # (N,) uint32 code
    time_ms: Array
    sequence: Array
    item: Array
    action: Array
    place: Array
    value: Array
    fields: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.time_ms)

    @classmethod
    def of(cls, user: Array, records: Array) -> EventBlock:
        """Return the columns of (N,) records and the codes of their users."""
        return cls(user=user, **_columns(records))


def _columns(records: Array) -> dict[str, Any]:
    own = [name for name in records.dtype.names or () if name.startswith("field.")]
    plain = {name: np.ascontiguousarray(records[name]) for name in ("item", "action", "place", "value")}
    return {
        "time_ms": records["time"].astype(np.int64) - TIME_BIAS,
        "sequence": records["sequence"].astype(np.int64),
        **plain,
        "fields": {name.removeprefix("field."): np.ascontiguousarray(records[name]) for name in own},
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One entry of the stream.

    - event: an event was accepted, and is still there: compaction and deletion take the entries of their events along.
    - compacted: old events of the user were dropped.
    - deleted: the user was deleted. Only her code is told, which now stands for nothing.
    """

    sequence: int
    kind: Literal["event", "compacted", "deleted"]
    user: int  # code
    user_id: str | None  # None when she was deleted, by this change or a later one
    time_ms: int = 0  # of the event, and so on
    item: int = 0
    action: int = 0
    place: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredState:
    """A user's encoded state as some model version made it."""

    revision: int  # of the history that was encoded
    newest_ms: int  # time of the newest behaviour in it
    blob: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredItem:
    """What was told about an item."""

    item_id: str
    revision: int  # counts changes of items, over the whole store
    fields: Mapping[str, Any]  # JSON-like


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What a consumer of the stream has made of it, so that it need not read everything again."""

    sequence: int  # of the last change that is in it
    parts: Sequence[bytes]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredUser:
    """Everything of one user that a backup holds."""

    user_id: str
    head: Head
    fields: Mapping[str, Any] | None  # as told by `set_user_fields`; None when nothing was
    records: Array  # (L,) of `RecordLayout.dtype`, by (time, sequence)


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletion:
    """Trace of a deleted user in the list that keeps old backups from bringing her back: a salted hash, no id."""

    user_hash: bytes  # 16 bytes
    sequence: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSummary:
    """What a store needs beside its names, users and items in order to go on somewhere else."""

    layout: RecordLayout
    salt: bytes  # of the hashes of deleted users; the same in all copies of one store, and says which are
    last_sequence: int
    trimmed: int  # changes up to this sequence are no longer in the stream
    next_user: int  # code of the next new user
    item_revision: int
    cursors: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactionPolicy:
    """What of a user's history is kept. Whole moments go or stay, so that no event can ever come back.

    The newest `most_events` are kept, and the rest of the moment in which the cut falls; of those, events of the last
    `most_age_ms` before `now_ms`. None means no limit.
    """

    most_events: int | None = None
    most_age_ms: int | None = None
    trim_stream: bool = True  # drop changes that every named cursor has passed

    def __post_init__(self) -> None:
        for name in ("most_events", "most_age_ms"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"CompactionPolicy.{name} must be at least 1 or None, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """What a compaction did."""

    users: int  # of whom something was dropped
    events: int  # dropped
    changes: int  # dropped from the stream


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreStats:
    """Counts of a store."""

    kind: str  # lmdb or redis
    location: str  # without passwords
    users: int
    events: int
    items: int  # with fields of their own
    states: int
    changes: int  # in the stream
    deleted: int  # users in the list of deletions
    last_sequence: int
    bytes: int  # in use: of the file, or of the server's memory
    most_bytes: int | None  # the limit; None = no limit is set
    cursors: Mapping[str, int] = field(default_factory=dict)


class Store(Protocol):
    """Events, user and item fields, encoded states and the stream of changes. Safe to share between threads.

    Every write is one transaction: all of it or nothing, and on the disk before the method returns. Several processes
    may use one store. Any method may raise `StoreGone` and `StoreDamaged`, a writing one `StoreFull` too.
    """

    layout: RecordLayout

    def append(self, events: Sequence[Event]) -> list[Appended]:
        """Accept events, durably: one transaction for all, one answer each, in order.

        An unknown user or name is taken in at once. Events of any age are put where their time says.

        Raises:
            DataError: an event has a field that the layout does not know, or of the wrong kind; nothing is written.
        """

    def check(self, events: Sequence[Event]) -> None:
        """Raise what `append` would raise about the events themselves, without touching the store."""

    def head(self, user_id: str) -> Head | None:
        """Return what is known of a user, None for an unknown one. Cheap: for every request."""

    def history(
        self, user_id: str, *, before_ms: int | None = None, after_sequence: int | None = None
    ) -> StoredHistory | None:
        """Return the events of a user, None for an unknown one.

        Args:
            user_id: as in the events.
            before_ms: only events strictly before this moment.
            after_sequence: only events that arrived after this one. Costs what it returns where they came in order.
        """

    def names(self, kind: str, since: int = 0) -> list[str]:
        """Return the names of codes since + 1, since + 2, ... of a kind of `layout.name_kinds`.

        They never change, so that whoever maps codes to indices only ever has to extend the map.
        """

    def user_id(self, user: int) -> str | None:
        """Return the id of a user's code, None when she was deleted."""

    def user_fields(self, user_id: str) -> Mapping[str, Any] | None:
        """Return what `set_user_fields` was told, None when nothing was."""

    def set_user_fields(self, user_id: str, fields: Mapping[str, Any]) -> None:
        """Replace the fields of a user, who need not be known. Her history and revision stay as they are."""

    def put_items(self, items: Mapping[str, Mapping[str, Any]]) -> int:
        """Replace the fields of items by raw id; return the last item revision."""

    def item(self, item_id: str) -> StoredItem | None:
        """Return what was told about an item."""

    def changed_items(self, after: int, limit: int) -> list[StoredItem]:
        """Return items by revision, those beyond `after`; an item counts with its last change only."""

    def put_state(self, model: str, user_id: str, *, revision: int, newest_ms: int, blob: bytes) -> bool:
        """Keep the state that a model version made of a user's history at `revision`.

        Returns:
            Whether it was written. It is not where a state of a later revision is there, and where the user is unknown
            or was deleted after that revision: a state that comes late brings nobody back.
        """

    def state(self, model: str, user_id: str) -> StoredState | None:
        """Return the state of a model version, of whatever revision; compare it with the head's."""

    def drop_states(self, model: str) -> int:
        """Forget all states of a model version; return how many."""

    def last_sequence(self) -> int:
        """Return the newest sequence given; 0 in a new store."""

    def changes(self, after: int, limit: int) -> list[Change]:
        """Return changes by sequence, those beyond `after`, at most `limit`.

        Raises:
            StreamTrimmed: changes beyond `after` were trimmed; take `last_sequence`, then read `all_events`.
        """

    def cursor(self, name: str) -> int:
        """Return how far a named consumer has come; 0 when it never said."""

    def set_cursor(self, name: str, sequence: int) -> None:
        """Say how far a named consumer has come; the stream is never trimmed beyond the slowest."""

    def drop_cursor(self, name: str) -> None:
        """Forget a consumer."""

    def put_snapshot(self, name: str, sequence: int, parts: Sequence[bytes]) -> bool:
        """Keep what a consumer has made of all changes up to a sequence, in place of what it kept before.

        Deleting a user and dropping events take all snapshots away, for they may hold what is to go. So nothing of it
        needs to be looked for in them. Each part (some MB at most) is a transaction; readers see all parts or none.

        Returns:
            Whether it was kept. It is not when something was taken away after `sequence`.
        """

    def snapshot(self, name: str) -> Snapshot | None:
        """Return what a consumer has kept, None where there is nothing or it is not whole."""

    def users(self) -> Iterator[str]:
        """Yield user ids by code, in pages: users that come or go meanwhile may or may not be among them."""

    def all_events(self, batch: int = 100_000) -> Iterator[EventBlock]:
        """Yield all events, user after user, in blocks of at least `batch` events but the last."""

    def delete_user(self, user_id: str) -> Deletion | None:
        """Take everything of a user away: events, their ids and changes, fields, states, her name.

        What stays is a `deleted` change with a code that stands for nothing, and a salted hash in the list of
        deletions. Bytes on the disk are gone after `rewrite`. Works in a full store. None for an unknown user.
        """

    def deletions(self) -> Iterator[Deletion]:
        """Yield the list of deletions."""

    def compact(self, policy: CompactionPolicy, *, now_ms: int) -> Compacted:
        """Drop old events, user after user, each in a transaction of its own. Works in a full store."""

    def rewrite(self) -> None:
        """Write everything anew, so that no byte of what was deleted is left on the disk.

        Raises:
            StoreBusy: another process has the store open (LMDB).
        """

    def stats(self) -> StoreStats:
        """Count."""

    def verify(self) -> list[str]:
        """Return what is wrong with the contents, a sentence each; [] when all is well. Reads everything."""

    def close(self) -> None:
        """Let go of it. Further calls raise `StoreGone`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    # what backup, restore and migration are made of

    def summary(self) -> StoreSummary:
        """Return counters and cursors."""

    def user_pages(self, batch: int) -> Iterator[list[StoredUser]]:
        """Yield all users by code, in pages of at least `batch` events but the last."""

    def items(self) -> Iterator[StoredItem]:
        """Yield all items that have fields, by revision."""

    def start_load(self, summary: StoreSummary) -> None:
        """Take over another store's counters. Until `finish_load` the store can be opened by nobody else.

        Raises:
            StoreError: this store is not empty, or has another layout.
        """

    def load_names(self, kind: str, names: Sequence[str]) -> None:
        """Give the next codes to names, in order."""

    def load_users(self, users: Sequence[StoredUser]) -> None:
        """Write users as they are, codes and sequences included; the stream has their events behind what is trimmed."""

    def load_items(self, items: Sequence[StoredItem]) -> None:
        """Write items as they are."""

    def load_deletions(self, deletions: Sequence[Deletion]) -> None:
        """Write a list of deletions as it is."""

    def finish_load(self) -> None:
        """Make the store an ordinary one."""


__all__ = [
    "MOST_JSON_BYTES",
    "NO_FLOOR",
    "Appended",
    "Change",
    "Compacted",
    "CompactionPolicy",
    "Deletion",
    "EventBlock",
    "Head",
    "Snapshot",
    "Store",
    "StoreStats",
    "StoreSummary",
    "StoredHistory",
    "StoredItem",
    "StoredState",
    "StoredUser",
]
