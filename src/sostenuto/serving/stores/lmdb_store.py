"""LmdbStore: the store inside the process, one folder, made for one machine and several processes.

Databases of the file, keys big-endian so that they sort as numbers do:

    meta         counters, layout, salt
    users        user id -> head                         user_ids     user code -> user id
    codes        kind, name -> code                      names        kind, code -> name
    events       user code, time, sequence -> records in order, a page of them (`lmdb_histories.py`)
    ids          user code -> (hash of event id, sequence), sorted duplicates
    stream       sequence -> change                      cursors      name -> sequence
    user_fields  user code -> JSON                       states       model code, user code -> state
    items        item id -> revision, JSON               item_stream  item revision -> item id
    deleted      salted hash of a user id -> sequence
    snapshots    name -> sequence, parts                name, sequence, part -> bytes
"""

from __future__ import annotations

import contextlib
import json
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from sostenuto.schema.errors import (
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreGone,
)
from sostenuto.schema.events import Event, check_id
from sostenuto.serving.stores.consistency import problems_of_user
from sostenuto.serving.stores.layout import ACTION, ITEM, PLACE, RecordLayout
from sostenuto.serving.stores.lmdb_file import LmdbFile
from sostenuto.serving.stores.lmdb_histories import Histories
from sostenuto.serving.stores.packing import (
    CHANGE,
    CODE,
    EVENT_START,
    HASH_BYTES,
    MOST_BATCH,
    NUMBER,
    STATE,
    biased,
    check_events,
    event_hash,
    json_bytes,
    numeric_field,
    pack_head,
    text_field,
    unpack_change,
    unpack_head,
    unpack_state,
    user_hash,
)
from sostenuto.serving.stores.shared_steps import (
    change_of,
    check_empty,
    check_kind,
    check_layout,
    check_snapshot_name,
    check_trimmed,
    cut_records,
    event_blocks,
    events_to_drop,
    head_after_dropping,
    item_pages,
    may_drop,
)
from sostenuto.serving.stores.store import (
    NO_FLOOR,
    Appended,
    Change,
    Compacted,
    CompactionPolicy,
    Deletion,
    EventBlock,
    Head,
    Snapshot,
    StoredHistory,
    StoredItem,
    StoredState,
    StoredUser,
    StoreStats,
    StoreSummary,
)

if TYPE_CHECKING:
    from lmdb import Transaction

Array = npt.NDArray[Any]
Result = TypeVar("Result")

FORMAT = 1
MOST_BYTES = 64 * 2**30  # address space, not disk: the file has what was written
PAGE = 1_000  # users, names or changes of one transaction of a long walk
DATABASES = (
    *("meta", "users", "user_ids", "codes", "names", "events", "ids", "stream", "cursors"),
    *("user_fields", "states", "items", "item_stream", "deleted", "snapshots"),
)
ID = struct.Struct(f">{HASH_BYTES}sQ")
STATE_KEY = struct.Struct(">II")
SNAPSHOT = struct.Struct(">QI")  # sequence, number of parts; after a name and a zero byte: sequence, part
MODEL = "model"  # kind of names for model versions, beside those of the layout


class LmdbStore:
    """The promise of `Store`, kept by LMDB in a folder."""

    layout: RecordLayout

    def __init__(
        self,
        folder: str | Path,
        layout: RecordLayout | None = None,
        *,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """Open a store, or make one where there is none.

        Args:
            folder: of the store.
            layout: fields that must be there; what a new store is made with. None: there must be a store.
            most_bytes: limit of the file, then `StoreFull`. The same for all processes that write.

        Raises:
            SpecError: the store lacks fields of `layout`, or the limit is too small.
            StoreGone: there is no store, or it cannot be opened.
            StoreDamaged: the file is no whole store.
            StoreBusy: it is being rewritten, or this process has it open already.
        """
        self.folder = Path(folder)
        if not (self.folder / "data.mdb").is_file() and layout is None:
            raise StoreGone(f"a store must be at {self.folder}, there is none; name its folder, or make one by serving")
        self._file = LmdbFile(self.folder, DATABASES, fixed=("ids",), most_bytes=most_bytes)
        try:
            self._begin_or_check(layout)
        except BaseException:
            self._file.close()
            raise

    def _begin_or_check(self, layout: RecordLayout | None) -> None:
        with self._writing() as txn:
            told = self._get(txn, "format")
            if told is None:
                if layout is None or self._count(txn, "users"):
                    raise StoreDamaged(f"{self.folder} must hold a store, it holds something else; name another folder")
                self._put(txn, "format", FORMAT)
                self._put(txn, "layout", layout.to_json())
                self._put(txn, "salt", secrets.token_hex(16))
                self._put(txn, "sequence", 0)
                self._put(txn, "trimmed", 0)
                self._put(txn, "next_user", 1)
                self._put(txn, "item_revision", 0)
                told = FORMAT
            if told != FORMAT:
                raise StoreError(
                    f"{self.folder} must be of format {FORMAT}, it is of {told}; use the version of Sostenuto that "
                    "made it, or back it up there and restore it here"
                )
            if self._get(txn, "loading"):
                raise StoreDamaged(
                    f"{self.folder} must be whole, filling it was broken off; delete it and restore or migrate again"
                )
            self.layout = RecordLayout.from_json(self._get(txn, "layout"))
            self._salt = bytes.fromhex(self._get(txn, "salt"))
        self._kinds = {kind: bytes([at]) for at, kind in enumerate((*self.layout.name_kinds, MODEL))}
        own = "".join("I" if kind == "categorical" else "f" for _, kind in self.layout.fields)
        self._histories = Histories(self.layout.dtype.itemsize)
        self._event_end = struct.Struct(f"<IIIf{own}")
        check_layout(self.layout, layout, str(self.folder))

    def close(self) -> None:
        """Let go of it. Further calls raise `StoreGone`."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reading(self) -> contextlib.AbstractContextManager[Transaction[memoryview]]:
        return self._file.transaction()

    def _writing(self) -> contextlib.AbstractContextManager[Transaction[memoryview]]:
        return self._file.transaction(write=True)

    @property
    def _db(self) -> dict[str, Any]:
        return self._file.db

    # small things in meta

    def _get(self, txn: Transaction[memoryview], name: str) -> Any:
        found = txn.get(name.encode(), db=self._db["meta"])
        return None if found is None else json.loads(bytes(found))

    def _put(self, txn: Transaction[memoryview], name: str, value: Any) -> None:
        txn.put(name.encode(), json.dumps(value).encode(), db=self._db["meta"])

    def _count(self, txn: Transaction[memoryview], database: str) -> int:
        return txn.stat(self._db[database])["entries"]

    # names

    def _code(self, txn: Transaction[memoryview], kind: str, name: str, given: dict[tuple[str, str], int]) -> int:
        """Return the code of a name, a new one where it has none. `given`: those this transaction met."""
        if not name:
            return 0
        found = given.get((kind, name))
        if found is not None:
            return found
        key = self._kinds[kind] + name.encode()
        packed = txn.get(key, db=self._db["codes"])
        if packed is not None:
            code = int(CODE.unpack(packed)[0])
        else:
            code = self._last_code(txn, kind) + 1
            txn.put(key, CODE.pack(code), db=self._db["codes"])
            txn.put(self._kinds[kind] + CODE.pack(code), name.encode(), db=self._db["names"])
        given[kind, name] = code
        return code

    def _last_code(self, txn: Transaction[memoryview], kind: str) -> int:
        """Return the newest code of a kind: names are never removed, so it is the last key."""
        with txn.cursor(self._db["names"]) as cursor:
            there = cursor.set_range(bytes([self._kinds[kind][0] + 1]))
            there = cursor.prev() if there else cursor.last()
            if not there or bytes(cursor.key()[:1]) != self._kinds[kind]:
                return 0
            return int(CODE.unpack(cursor.key()[1:])[0])

    def _known_code(self, txn: Transaction[memoryview], kind: str, name: str) -> int:
        """Return the code of a name, 0 where it has none."""
        packed = txn.get(self._kinds[kind] + name.encode(), db=self._db["codes"])
        return 0 if packed is None else int(CODE.unpack(packed)[0])

    def names(self, kind: str, since: int = 0) -> list[str]:
        """Return the names of codes since + 1, since + 2, ... of a kind."""
        check_kind(self.layout, kind)
        found: list[str] = []
        start = self._kinds[kind] + CODE.pack(since + 1)
        with self._reading() as txn, txn.cursor(self._db["names"]) as cursor:
            if cursor.set_range(start):
                for key, value in cursor.iternext():
                    if key[0] != start[0]:
                        break
                    found.append(str(value, "utf-8"))
        return found

    def user_id(self, user: int) -> str | None:
        """Return the id of a user's code."""
        with self._reading() as txn:
            return self._id_of(txn, user)

    def _id_of(self, txn: Transaction[memoryview], user: int) -> str | None:
        found = txn.get(CODE.pack(user), db=self._db["user_ids"])
        return None if found is None else str(found, "utf-8")

    # users

    def _head(self, txn: Transaction[memoryview], user_id: str) -> Head | None:
        packed = txn.get(user_id.encode(), db=self._db["users"])
        return None if packed is None else unpack_head(packed)

    def _put_head(self, txn: Transaction[memoryview], user_id: str, head: Head) -> None:
        txn.put(user_id.encode(), pack_head(head), db=self._db["users"])

    def _new_user(self, txn: Transaction[memoryview], user_id: str, sequence: int) -> Head:
        code = int(self._get(txn, "next_user"))
        self._put(txn, "next_user", code + 1)
        txn.put(CODE.pack(code), user_id.encode(), db=self._db["user_ids"])
        return Head(
            user=code,
            revision=sequence,
            count=0,
            first_ms=0,
            last_ms=0,
            last_sequence=0,
            late_sequence=0,
            floor_ms=NO_FLOOR,
            born=sequence,
        )

    def head(self, user_id: str) -> Head | None:
        """Return what is known of a user."""
        check_id("user_id", user_id)
        with self._reading() as txn:
            return self._head(txn, user_id)

    def user_fields(self, user_id: str) -> Mapping[str, Any] | None:
        """Return what `set_user_fields` was told."""
        check_id("user_id", user_id)
        with self._reading() as txn:
            head = self._head(txn, user_id)
            return None if head is None else self._fields_of(txn, head.user)

    def _fields_of(self, txn: Transaction[memoryview], user: int) -> Mapping[str, Any] | None:
        packed = txn.get(CODE.pack(user), db=self._db["user_fields"])
        return None if packed is None else json.loads(bytes(packed))

    def set_user_fields(self, user_id: str, fields: Mapping[str, Any]) -> None:
        """Replace the fields of a user."""
        check_id("user_id", user_id)
        packed = json_bytes("a user", fields)
        with self._writing() as txn:
            head = self._head(txn, user_id)
            if head is None:
                sequence = self._get(txn, "sequence") + 1
                self._put(txn, "sequence", sequence)
                head = self._new_user(txn, user_id, sequence)
                self._put_head(txn, user_id, head)
            txn.put(CODE.pack(head.user), packed, db=self._db["user_fields"])

    # events

    def check(self, events: Sequence[Event]) -> None:
        """Raise what `append` would raise about the events themselves."""
        check_events(self.layout, events)

    def append(self, events: Sequence[Event]) -> list[Appended]:
        """Accept events, durably, in one transaction."""
        self.check(events)
        hashes = [event_hash(event.event_id) for event in events]
        answers: list[tuple[str, int]] = []  # outcome, sequence
        heads: dict[str, _Growing] = {}
        given: dict[tuple[str, str], int] = {}
        db = self._db
        with self._writing() as txn:
            first = sequence = int(self._get(txn, "sequence"))
            ids = txn.cursor(db["ids"])
            for event, hashed in zip(events, hashes, strict=True):
                grown = heads.get(event.user_id)
                if grown is None:
                    head = self._head(txn, event.user_id)
                    if head is None:
                        head = self._new_user(txn, event.user_id, sequence + 1)
                    grown = heads[event.user_id] = _Growing(head)
                key = grown.key
                if ids.set_range_dup(key, hashed) and ids.value()[:HASH_BYTES] == hashed:
                    answers.append(("duplicate", int(ID.unpack(ids.value())[1])))
                    continue
                if event.time_ms <= grown.floor_ms:
                    answers.append(("expired", 0))
                    continue
                sequence += 1
                codes = [
                    self._code(txn, ITEM, event.item_id, given),
                    self._code(txn, ACTION, event.action, given),
                    self._code(txn, PLACE, event.place, given),
                ]
                own = [
                    self._code(txn, f"field.{name}", text_field(event, name), given)
                    if kind == "categorical"
                    else numeric_field(event, name)
                    for name, kind in self.layout.fields
                ]
                record = EVENT_START.pack(biased(event.time_ms), sequence, hashed)
                grown.records.append(record + self._event_end.pack(*codes, event.value, *own))
                txn.put(key, ID.pack(hashed, sequence), db=db["ids"])
                item, action, place = codes
                change = CHANGE.pack(0, grown.user, event.time_ms, item, action, place)
                txn.put(NUMBER.pack(sequence), change, append=True, db=db["stream"])
                grown.add(event.time_ms, sequence)
                answers.append(("new", sequence))
            if sequence == first:
                txn.abort()  # nothing new: nothing to wait for
            else:
                for user_id, grown in heads.items():
                    self._histories.insert(txn, db["events"], grown.user, grown.records)
                    self._put_head(txn, user_id, grown.head())
                self._put(txn, "sequence", sequence)
        return [
            Appended(
                outcome=outcome,  # type: ignore[arg-type]
                sequence=given_sequence,
                user=heads[event.user_id].user,
                revision=heads[event.user_id].revision,
            )
            for event, (outcome, given_sequence) in zip(events, answers, strict=True)
        ]

    def _records(self, txn: Transaction[memoryview], user: int) -> Array:
        """Return (L,) records of a user, in order; a copy."""
        return np.frombuffer(self._histories.read(txn, self._db["events"], user), self.layout.dtype)

    def history(
        self, user_id: str, *, before_ms: int | None = None, after_sequence: int | None = None
    ) -> StoredHistory | None:
        """Return the events of a user."""
        check_id("user_id", user_id)
        with self._reading() as txn:
            head = self._head(txn, user_id)
            if head is None:
                return None
            if after_sequence is not None and after_sequence >= head.late_sequence:
                packed = self._histories.read_newest(txn, self._db["events"], head.user, after_sequence)
            else:
                packed = self._histories.read(txn, self._db["events"], head.user)
        records = np.frombuffer(packed, self.layout.dtype)
        return StoredHistory.of(head, cut_records(records, before_ms, after_sequence))

    def user_pages(self, batch: int) -> Iterator[list[StoredUser]]:
        """Yield all users by code, in pages of at least `batch` events but the last."""
        after = 0
        while True:
            page: list[StoredUser] = []
            num_events = 0
            with self._reading() as txn, txn.cursor(self._db["user_ids"]) as cursor:
                there = cursor.set_range(CODE.pack(after + 1))
                while there and num_events < batch and len(page) < PAGE:
                    user_id = str(cursor.value(), "utf-8")
                    head = self._head(txn, user_id)
                    if head is None:
                        raise StoreDamaged(f"{self.folder} must know every user's head, one is gone; restore a backup")
                    records = self._records(txn, head.user)
                    fields = self._fields_of(txn, head.user)
                    page.append(StoredUser(user_id=user_id, head=head, fields=fields, records=records))
                    num_events += len(records)
                    after = head.user
                    there = cursor.next()
            if not page:
                return
            yield page

    def all_events(self, batch: int = 100_000) -> Iterator[EventBlock]:
        """Yield all events, user after user."""
        yield from event_blocks(self.user_pages(batch), self.layout, batch)

    def users(self) -> Iterator[str]:
        """Yield user ids by code."""
        after = 0
        while True:
            page: list[str] = []
            with self._reading() as txn, txn.cursor(self._db["user_ids"]) as cursor:
                if cursor.set_range(CODE.pack(after + 1)):
                    for key, value in cursor.iternext():
                        page.append(str(value, "utf-8"))
                        after = CODE.unpack(key)[0]
                        if len(page) == PAGE:
                            break
            if not page:
                return
            yield from page

    # the stream

    def last_sequence(self) -> int:
        """Return the newest sequence given."""
        self._file.check_there()
        with self._reading() as txn:
            return int(self._get(txn, "sequence"))

    def changes(self, after: int, limit: int) -> list[Change]:
        """Return changes by sequence, those beyond `after`."""
        found: list[Change] = []
        ids: dict[int, str | None] = {}
        with self._reading() as txn, txn.cursor(self._db["stream"]) as cursor:
            check_trimmed(after, int(self._get(txn, "trimmed")))
            if limit > 0 and cursor.set_range(NUMBER.pack(after + 1)):
                for key, value in cursor.iternext():
                    user = CHANGE.unpack(value)[1]
                    if user not in ids:
                        ids[user] = self._id_of(txn, user)
                    found.append(unpack_change(NUMBER.unpack(key)[0], value, ids[user]))
                    if len(found) >= limit:
                        break
        return found

    def cursor(self, name: str) -> int:
        """Return how far a named consumer has come."""
        check_id("cursor", name)
        with self._reading() as txn:
            found = txn.get(name.encode(), db=self._db["cursors"])
            return 0 if found is None else int(NUMBER.unpack(found)[0])

    def set_cursor(self, name: str, sequence: int) -> None:
        """Say how far a named consumer has come."""
        check_id("cursor", name)
        with self._writing() as txn:
            txn.put(name.encode(), NUMBER.pack(sequence), db=self._db["cursors"])

    def drop_cursor(self, name: str) -> None:
        """Forget a consumer."""
        check_id("cursor", name)
        with self._writing() as txn:
            txn.delete(name.encode(), db=self._db["cursors"])

    def _cursors(self, txn: Transaction[memoryview]) -> dict[str, int]:
        with txn.cursor(self._db["cursors"]) as cursor:
            return {str(name, "utf-8"): int(NUMBER.unpack(at)[0]) for name, at in cursor.iternext()}

    def put_snapshot(self, name: str, sequence: int, parts: Sequence[bytes]) -> bool:
        """Keep what a consumer has made of the stream."""
        check_snapshot_name(name)
        key, db = name.encode(), self._db["snapshots"]
        try:
            for at, part in enumerate(parts):
                with self._writing() as txn:
                    if int(self._get(txn, "removed") or 0) > sequence:
                        txn.abort()
                        return False
                    txn.put(key + b"\0" + SNAPSHOT.pack(sequence, at), part, db=db)
            with self._writing() as txn:
                there = [bytes(each) for each in self._snapshot_keys(txn, key)]
                kept = {key + b"\0" + SNAPSHOT.pack(sequence, at) for at in range(len(parts))}
                if int(self._get(txn, "removed") or 0) > sequence or not kept <= set(there):
                    txn.abort()
                    return False
                for each in there:
                    if each not in kept:
                        txn.delete(each, db=db)
                txn.put(key, SNAPSHOT.pack(sequence, len(parts)), db=db)
        except StoreFull:
            self._file.even_if_full(self._drop_snapshots)  # events need the room more
            raise
        return True

    def _snapshot_keys(self, txn: Transaction[memoryview], key: bytes) -> Iterator[memoryview]:
        """Yield the keys of the parts of a snapshot, those that are not in use among them."""
        prefix = key + b"\0"
        with txn.cursor(self._db["snapshots"]) as cursor:
            if cursor.set_range(prefix):
                for each in cursor.iternext(values=False):
                    if each[: len(prefix)] != prefix:
                        return
                    yield each

    def _drop_snapshots(self, txn: Transaction[memoryview]) -> None:
        txn.drop(self._db["snapshots"], delete=False)

    def snapshot(self, name: str) -> Snapshot | None:
        """Return what a consumer has kept."""
        check_snapshot_name(name)
        key, db = name.encode(), self._db["snapshots"]
        with self._reading() as txn:
            packed = txn.get(key, db=db)
            if packed is None or len(packed) != SNAPSHOT.size:
                return None
            sequence, count = SNAPSHOT.unpack(packed)
            parts = [txn.get(key + b"\0" + SNAPSHOT.pack(sequence, at), db=db) for at in range(count)]
            whole = [bytes(part) for part in parts if part is not None]
            return Snapshot(sequence=sequence, parts=whole) if len(whole) == count else None

    # items

    def put_items(self, items: Mapping[str, Mapping[str, Any]]) -> int:
        """Replace the fields of items."""
        packed = {}
        for item_id, fields in items.items():
            check_id("item_id", item_id)
            packed[item_id.encode()] = json_bytes("an item", fields)
        with self._writing() as txn:
            revision = int(self._get(txn, "item_revision"))
            for key, value in packed.items():
                revision += 1
                self._put_item(txn, key, revision, value)
            self._put(txn, "item_revision", revision)
        return revision

    def _put_item(self, txn: Transaction[memoryview], key: bytes, revision: int, packed: bytes) -> None:
        before = txn.get(key, db=self._db["items"])
        if before is not None:
            txn.delete(bytes(before[: NUMBER.size]), db=self._db["item_stream"])
        txn.put(key, NUMBER.pack(revision) + packed, db=self._db["items"])
        txn.put(NUMBER.pack(revision), key, db=self._db["item_stream"])

    def _item(self, txn: Transaction[memoryview], key: bytes) -> StoredItem | None:
        packed = txn.get(key, db=self._db["items"])
        if packed is None:
            return None
        fields = json.loads(bytes(packed[NUMBER.size :]))
        return StoredItem(item_id=key.decode(), revision=NUMBER.unpack_from(packed)[0], fields=fields)

    def item(self, item_id: str) -> StoredItem | None:
        """Return what was told about an item."""
        check_id("item_id", item_id)
        with self._reading() as txn:
            return self._item(txn, item_id.encode())

    def changed_items(self, after: int, limit: int) -> list[StoredItem]:
        """Return items by revision, those beyond `after`."""
        found: list[StoredItem] = []
        with self._reading() as txn, txn.cursor(self._db["item_stream"]) as cursor:
            there = cursor.set_range(NUMBER.pack(after + 1))
            while there and len(found) < limit:
                item = self._item(txn, bytes(cursor.value()))
                if item is not None:
                    found.append(item)
                there = cursor.next()
        return found

    def items(self) -> Iterator[StoredItem]:
        """Yield all items that have fields, by revision."""
        yield from item_pages(self)

    # states

    def put_state(self, model: str, user_id: str, *, revision: int, newest_ms: int, blob: bytes) -> bool:
        """Keep a user's state."""
        check_id("model", model)
        check_id("user_id", user_id)
        with self._writing() as txn:
            head = self._head(txn, user_id)
            if head is None or revision < head.born:
                txn.abort()
                return False
            key = STATE_KEY.pack(self._code(txn, MODEL, model, {}), head.user)
            there = txn.get(key, db=self._db["states"])
            if there is not None and STATE.unpack_from(there)[0] > revision:
                txn.abort()
                return False
            txn.put(key, STATE.pack(revision, newest_ms) + blob, db=self._db["states"])
        return True

    def state(self, model: str, user_id: str) -> StoredState | None:
        """Return the state of a model version."""
        check_id("model", model)
        check_id("user_id", user_id)
        with self._reading() as txn:
            head = self._head(txn, user_id)
            if head is None:
                return None
            key = STATE_KEY.pack(self._known_code(txn, MODEL, model), head.user)
            packed = txn.get(key, db=self._db["states"])
            return None if packed is None else unpack_state(packed)

    def drop_states(self, model: str) -> int:
        """Forget all states of a model version."""
        check_id("model", model)

        def some(txn: Transaction[memoryview]) -> int:
            code = self._known_code(txn, MODEL, model)
            done = 0
            with txn.cursor(self._db["states"]) as cursor:
                there = bool(code) and cursor.set_range(STATE_KEY.pack(code, 0))
                while there and done < PAGE and STATE_KEY.unpack(cursor.key())[0] == code:
                    cursor.delete()
                    done += 1
                    there = bool(cursor.key())
            return done

        total = 0
        while done := self._file.even_if_full(some):
            total += done
        return total

    # taking away

    def delete_user(self, user_id: str) -> Deletion | None:
        """Take everything of a user away."""
        check_id("user_id", user_id)

        def step(txn: Transaction[memoryview]) -> Deletion | None:
            head = self._head(txn, user_id)
            if head is None:
                txn.abort()
                return None
            key = CODE.pack(head.user)
            for sequence in self._records(txn, head.user)["sequence"]:
                txn.delete(NUMBER.pack(int(sequence)), db=self._db["stream"])
            self._histories.drop_oldest(txn, self._db["events"], head.user, head.count)
            for name in ("ids", "user_fields", "user_ids"):
                txn.delete(key, db=self._db[name])
            for model in range(1, self._last_code(txn, MODEL) + 1):
                txn.delete(STATE_KEY.pack(model, head.user), db=self._db["states"])
            txn.delete(user_id.encode(), db=self._db["users"])
            sequence = self._mark(txn, 2, head.user)
            gone = Deletion(user_hash=user_hash(self._salt, user_id), sequence=sequence)
            txn.put(gone.user_hash, NUMBER.pack(gone.sequence), db=self._db["deleted"])
            return gone

        return self._file.even_if_full(step)

    def _mark(self, txn: Transaction[memoryview], kind: int, user: int) -> int:
        """Give a sequence to a change that takes something away; no snapshot may hold it any longer."""
        sequence = int(self._get(txn, "sequence")) + 1
        self._put(txn, "sequence", sequence)
        self._put(txn, "removed", sequence)
        self._drop_snapshots(txn)
        txn.put(NUMBER.pack(sequence), CHANGE.pack(kind, user, 0, 0, 0, 0), append=True, db=self._db["stream"])
        return sequence

    def deletions(self) -> Iterator[Deletion]:
        """Yield the list of deletions."""
        with self._reading() as txn, txn.cursor(self._db["deleted"]) as cursor:
            found = [
                Deletion(user_hash=bytes(key), sequence=NUMBER.unpack(value)[0]) for key, value in cursor.iternext()
            ]
        yield from found

    def compact(self, policy: CompactionPolicy, *, now_ms: int) -> Compacted:
        """Drop old events, user after user."""
        users = events = 0
        if policy.most_events is not None or policy.most_age_ms is not None:
            for user_id in self.users():
                dropped = self._file.even_if_full(partial(self._compact_user, user_id, policy, now_ms))
                users += dropped > 0
                events += dropped
        return Compacted(users=users, events=events, changes=self._trim() if policy.trim_stream else 0)

    def _compact_user(self, user_id: str, policy: CompactionPolicy, now_ms: int, txn: Transaction[memoryview]) -> int:
        head = self._head(txn, user_id)
        if head is None or not may_drop(head, policy, now_ms):
            txn.abort()
            return 0
        records = self._records(txn, head.user)
        count = events_to_drop(records, policy, now_ms)
        if not count:
            txn.abort()
            return 0
        key = CODE.pack(head.user)
        self._histories.drop_oldest(txn, self._db["events"], head.user, count)
        for record in records[:count]:
            sequence = int(record["sequence"])
            txn.delete(key, ID.pack(record["id_hash"].tobytes(), sequence), db=self._db["ids"])
            txn.delete(NUMBER.pack(sequence), db=self._db["stream"])
        self._put_head(txn, user_id, head_after_dropping(head, records, count, self._mark(txn, 1, head.user)))
        return count

    def _trim(self) -> int:
        total = 0
        while done := self._file.even_if_full(self._trim_some):
            total += done
        return total

    def _trim_some(self, txn: Transaction[memoryview]) -> int:
        cursors = self._cursors(txn)
        until = min(cursors.values(), default=0)
        done = 0
        with txn.cursor(self._db["stream"]) as cursor:
            there = cursor.first()
            while there and done < MOST_BATCH and NUMBER.unpack(cursor.key())[0] <= until:
                last = NUMBER.unpack(cursor.key())[0]
                cursor.delete()
                done += 1
                there = bool(cursor.key())
        if done:
            self._put(txn, "trimmed", max(last, int(self._get(txn, "trimmed"))))
        else:
            txn.abort()
        return done

    def rewrite(self) -> None:
        """Write the file anew, without what was deleted."""
        self._file.rewrite()

    # looking at it as a whole

    def stats(self) -> StoreStats:
        """Count."""
        env = self._file.env
        with self._reading() as txn:
            page = txn.stat()["psize"]
            pages = env.info()["last_pgno"] + 1
            return StoreStats(
                kind="lmdb",
                location=str(self.folder),
                users=self._count(txn, "users"),
                events=self._count(txn, "ids"),
                items=self._count(txn, "items"),
                states=self._count(txn, "states"),
                changes=self._count(txn, "stream"),
                deleted=self._count(txn, "deleted"),
                last_sequence=int(self._get(txn, "sequence")),
                bytes=page * pages,
                most_bytes=self._file.most_bytes,
                cursors=self._cursors(txn),
            )

    def verify(self) -> list[str]:
        """Walk through the file, then through what it holds."""
        with self._writing() as txn:  # the file stands still meanwhile
            problems = self._file.problems()
            if problems:
                return problems
            last, next_user = int(self._get(txn, "sequence")), int(self._get(txn, "next_user"))
            known = [self._last_code(txn, kind) for kind in (ITEM, ACTION, PLACE)]
            seen = 0
            with txn.cursor(self._db["users"]) as users, txn.cursor(self._db["ids"]) as ids:
                for key, packed in users.iternext():
                    head = unpack_head(packed)
                    found: dict[bytes, int] = {}
                    if ids.set_key(CODE.pack(head.user)):
                        found = dict(ID.unpack(each) for each in ids.iternext_dup())
                    records = self._records(txn, head.user)
                    user_id = str(key, "utf-8")
                    user = StoredUser(user_id=user_id, head=head, fields=None, records=records)
                    problems += problems_of_user(user, found, last_sequence=last, next_user=next_user, num_names=known)
                    if self._id_of(txn, head.user) != user_id:
                        problems.append(f"user {head.user}: her code stands for another one")
                    seen += len(records)
            there = self._histories.count(txn, self._db["events"])
            if there != seen or self._count(txn, "ids") != seen:
                problems.append(f"users have {seen} events, there are {there} and {self._count(txn, 'ids')} ids")
            if self._count(txn, "users") != self._count(txn, "user_ids"):
                problems.append("users and codes of users differ in number")
            if self._count(txn, "items") != self._count(txn, "item_stream"):
                problems.append("items and revisions of items differ in number")
            txn.abort()
        return problems

    # backup, restore, migration

    def summary(self) -> StoreSummary:
        """Return counters and cursors."""
        with self._reading() as txn:
            return StoreSummary(
                layout=self.layout,
                salt=self._salt,
                last_sequence=int(self._get(txn, "sequence")),
                trimmed=int(self._get(txn, "trimmed")),
                next_user=int(self._get(txn, "next_user")),
                item_revision=int(self._get(txn, "item_revision")),
                cursors=self._cursors(txn),
            )

    def start_load(self, summary: StoreSummary) -> None:
        """Take over another store's counters."""
        with self._writing() as txn:
            check_empty(
                self.layout, summary, int(self._get(txn, "sequence")) + self._count(txn, "items"), str(self.folder)
            )
            self._put(txn, "loading", True)
            self._put(txn, "salt", summary.salt.hex())
            self._put(txn, "sequence", summary.last_sequence)
            self._put(txn, "trimmed", summary.trimmed)
            self._put(txn, "next_user", summary.next_user)
            self._put(txn, "item_revision", summary.item_revision)
            for name, at in summary.cursors.items():
                txn.put(name.encode(), NUMBER.pack(at), db=self._db["cursors"])
        self._salt = summary.salt

    def load_names(self, kind: str, names: Sequence[str]) -> None:
        """Give the next codes to names."""
        given: dict[tuple[str, str], int] = {}
        with self._writing() as txn:
            for name in names:
                self._code(txn, kind, name, given)

    def load_users(self, users: Sequence[StoredUser]) -> None:
        """Write users as they are."""
        db = self._db
        with self._writing() as txn:
            trimmed = int(self._get(txn, "trimmed"))
            for user in users:
                key = CODE.pack(user.head.user)
                self._put_head(txn, user.user_id, user.head)
                txn.put(key, user.user_id.encode(), db=db["user_ids"])
                if user.fields is not None:
                    txn.put(key, json_bytes("a user", user.fields), db=db["user_fields"])
                whole = user.records.tobytes()
                width = user.records.dtype.itemsize
                records = [whole[start : start + width] for start in range(0, len(whole), width)]
                starts = [EVENT_START.unpack_from(record) for record in records]
                self._histories.insert(txn, db["events"], user.head.user, records)
                with txn.cursor(db["ids"]) as ids:
                    ids.putmulti((key, ID.pack(hashed, sequence)) for _, sequence, hashed in starts)
                for (_, sequence, _), record in zip(starts, user.records, strict=True):
                    if sequence > trimmed:
                        txn.put(NUMBER.pack(sequence), change_of(user.head.user, record), db=db["stream"])

    def load_items(self, items: Sequence[StoredItem]) -> None:
        """Write items as they are."""
        with self._writing() as txn:
            for item in items:
                self._put_item(txn, item.item_id.encode(), item.revision, json_bytes("an item", item.fields))

    def load_deletions(self, deletions: Sequence[Deletion]) -> None:
        """Write a list of deletions as it is."""
        with self._writing() as txn:
            for each in deletions:
                txn.put(each.user_hash, NUMBER.pack(each.sequence), db=self._db["deleted"])

    def finish_load(self) -> None:
        """Make the store an ordinary one."""
        with self._writing() as txn:
            self._put(txn, "loading", False)


class _Growing:
    """A head that grows event by event inside one transaction."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self.user, self.key, self.floor_ms = head.user, CODE.pack(head.user), head.floor_ms
        self.revision, self._count, self._late = head.revision, head.count, head.late_sequence
        self.records: list[bytes] = []
        self._first_ms, self._last_ms, self._last_sequence = head.first_ms, head.last_ms, head.last_sequence

    def add(self, time_ms: int, sequence: int) -> None:
        """Count an event in."""
        if not self._count:
            self._first_ms = self._last_ms = time_ms
        elif time_ms < self._last_ms:
            self._late = sequence
        self._first_ms, self._last_ms = min(self._first_ms, time_ms), max(self._last_ms, time_ms)
        self.revision = self._last_sequence = sequence
        self._count += 1

    def head(self) -> Head:
        """Return the head as it is now."""
        return Head(
            user=self.user,
            revision=self.revision,
            count=self._count,
            first_ms=self._first_ms,
            last_ms=self._last_ms,
            last_sequence=self._last_sequence,
            late_sequence=self._late,
            floor_ms=self.floor_ms,
            born=self._head.born,
        )


__all__ = ["FORMAT", "MOST_BYTES", "LmdbStore"]
