"""Backup, restore, migration: one way for all stores, while they are in use.

A backup is a folder of JSON lines and `.npy` files that any store can be filled from:

    users-00000.jsonl, events-00000.npy   users in pages: id, head, fields; and their records, user after user
    names.jsonl, items.jsonl, deletions.jsonl
    backup.json                            counters, layout, bytes and sha256 of every file; written last

It holds all events up to the sequence at which it was begun, and none beyond. Encoded states are not in it: they are
made again. Whoever was deleted after that is left out when it is restored: stores keep a list of salted hashes for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sostenuto.schema.errors import SpecError, StoreDamaged
from sostenuto.serving.stores.layout import TIME_BIAS, RecordLayout
from sostenuto.serving.stores.packing import user_hash
from sostenuto.serving.stores.store import Deletion, Head, Store, StoredItem, StoredUser, StoreSummary

FORMAT = 1
EVENTS_A_PAGE = 50_000
LINES_A_STEP = 1_000


class Contents(Protocol):
    """What a store can be filled from: another store, or a backup."""

    def summary(self) -> StoreSummary:
        """Return counters and cursors."""

    def user_pages(self, batch: int) -> Iterator[list[StoredUser]]:
        """Yield all users by code."""

    def names(self, kind: str, since: int = 0) -> list[str]:
        """Return the names of a kind beyond a code."""

    def items(self) -> Iterator[StoredItem]:
        """Yield all items by revision."""

    def deletions(self) -> Iterator[Deletion]:
        """Yield the list of deletions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What was written."""

    users: int
    events: int
    items: int
    left_out: int  # users who were deleted since
    last_sequence: int


def backup(store: Store, folder: str | Path) -> Moved:
    """Write a store into a new folder.

    Raises:
        SpecError: the folder is there already.
    """
    target = Path(folder)
    if target.exists():
        raise SpecError(f"a backup must go into a new folder, {target} is there; name another")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)
    summary = store.summary()
    users = events = items = 0
    for at, page in enumerate(_until(store.user_pages(EVENTS_A_PAGE), summary.last_sequence)):
        _write_lines(partial / f"users-{at:05d}.jsonl", (_user_line(user) for user in page))
        packed = b"".join(user.records.tobytes() for user in page)  # joined as bytes: numpy would turn their order
        records = np.frombuffer(packed, np.uint8).reshape(-1, store.layout.dtype.itemsize)
        np.save(partial / f"events-{at:05d}.npy", records)
        users, events = users + len(page), events + len(records)
    # names last: every code that an event holds has its name by now
    _write_lines(
        partial / "names.jsonl",
        ({"kind": kind, "name": name} for kind in store.layout.name_kinds for name in store.names(kind)),
    )
    items = _write_lines(
        partial / "items.jsonl",
        ({"id": item.item_id, "revision": item.revision, "fields": item.fields} for item in store.items()),
    )
    _write_lines(
        partial / "deletions.jsonl",
        ({"hash": each.user_hash.hex(), "sequence": each.sequence} for each in store.deletions()),
    )
    files = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(partial.iterdir())}
    told = {"format": FORMAT, "summary": _summary_json(summary), "users": users, "events": events, "files": files}
    (partial / "backup.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    for file in (*partial.iterdir(), partial):
        _sync(file)
    partial.rename(target)
    _sync(target.parent)
    return Moved(users=users, events=events, items=items, left_out=0, last_sequence=summary.last_sequence)


class Backup:
    """A backup on the disk, checked whole before anything of it is used."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            told = json.loads((self.folder / "backup.json").read_text(encoding="utf-8"))
            if told["format"] != FORMAT:
                raise SpecError(
                    f"{self.folder} must be a backup of format {FORMAT}, it is of {told['format']}; restore it with "
                    "the version of Sostenuto that made it"
                )
            self._files: Mapping[str, Any] = told["files"]
            self._summary = _summary_of(told["summary"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, SpecError):
                raise
            raise StoreDamaged(
                f"{self.folder} must be a whole backup, its backup.json is not to be read; take another one"
            ) from error
        for name, wanted in self._files.items():
            file = self.folder / name
            if Path(name).name != name or not file.is_file() or file.stat().st_size != wanted["bytes"]:
                raise StoreDamaged(f"backup {self.folder} must hold {name} whole, it does not; take another one")
            if _sha256(file) != wanted["sha256"]:
                raise StoreDamaged(f"backup {self.folder} must be as it was written, {name} is not; take another one")

    def summary(self) -> StoreSummary:
        """Return counters and cursors."""
        return self._summary

    def user_pages(self, batch: int) -> Iterator[list[StoredUser]]:
        """Yield all users in the pages in which they were written."""
        dtype = self._summary.layout.dtype
        for name in sorted(name for name in self._files if name.startswith("users-")):
            packed = np.load(self.folder / name.replace("users-", "events-").replace(".jsonl", ".npy"))
            records = np.ascontiguousarray(packed).reshape(-1).view(dtype)
            start = 0
            page = []
            for line in self._lines(name):
                head = Head(**line["head"])
                end = start + head.count
                user = StoredUser(user_id=line["id"], head=head, fields=line["fields"], records=records[start:end])
                page.append(user)
                start = end
            if start != len(records):
                raise StoreDamaged(f"backup {self.folder} must have as many events as its users, {name} does not")
            yield page

    def names(self, kind: str, since: int = 0) -> list[str]:
        """Return the names of a kind beyond a code."""
        return [line["name"] for line in self._lines("names.jsonl") if line["kind"] == kind][since:]

    def items(self) -> Iterator[StoredItem]:
        """Yield all items by revision."""
        for line in self._lines("items.jsonl"):
            yield StoredItem(item_id=line["id"], revision=line["revision"], fields=line["fields"])

    def deletions(self) -> Iterator[Deletion]:
        """Yield the list of deletions."""
        for line in self._lines("deletions.jsonl"):
            yield Deletion(user_hash=bytes.fromhex(line["hash"]), sequence=line["sequence"])

    def _lines(self, name: str) -> Iterator[Any]:
        with (self.folder / name).open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def fill(target: Store, source: Contents, *, deletions_of: Sequence[Contents] = ()) -> Moved:
    """Fill an empty store from another one or from a backup; codes and sequences stay as they are.

    Args:
        target: an empty store of the same layout.
        source: what to fill it from. A store may be in use: what it held when this began is taken.
        deletions_of: stores and backups of the same origin that know who was deleted since.

    Raises:
        SpecError: another layout, or a list of deletions of a store of another origin.
        StoreError: the target is not empty.
    """
    summary = source.summary()
    for other in deletions_of:
        if other.summary().salt != summary.salt:
            raise SpecError(
                "lists of deletions must come from the store that the backup is of, or from a copy of it, one does "
                "not; leave it out"
            )
    gone = _gone_since(summary.last_sequence, source, *deletions_of)
    last = max([summary.last_sequence, *gone.values()])
    target.start_load(dataclasses.replace(summary, last_sequence=last))
    users = events = items = left_out = 0
    for page in _until(source.user_pages(EVENTS_A_PAGE), summary.last_sequence):
        kept = [user for user in page if user_hash(summary.salt, user.user_id) not in gone]
        target.load_users(kept)
        users, events = users + len(kept), events + sum(len(user.records) for user in kept)
        left_out += len(page) - len(kept)
    for kind in summary.layout.name_kinds:
        names = source.names(kind)
        for start in range(0, len(names), LINES_A_STEP):
            target.load_names(kind, names[start : start + LINES_A_STEP])
    step: list[StoredItem] = []
    for item in source.items():
        step.append(item)
        items += 1
        if len(step) == LINES_A_STEP:
            target.load_items(step)
            step = []
    target.load_items(step)
    known = {each.user_hash: each for other in (source, *deletions_of) for each in other.deletions()}
    for each in (each for other in (source, *deletions_of) for each in other.deletions()):
        if each.sequence > known[each.user_hash].sequence:
            known[each.user_hash] = each
    target.load_deletions(list(known.values()))
    # who was deleted while this ran may have been copied before
    late = _gone_since(summary.last_sequence, source, *deletions_of).keys() - gone.keys()
    for user_id in list(target.users()) if late else ():
        if user_hash(summary.salt, user_id) in late:
            target.delete_user(user_id)
            left_out += 1
    target.finish_load()
    return Moved(users=users, events=events, items=items, left_out=left_out, last_sequence=last)


def _gone_since(sequence: int, *sources: Contents) -> dict[bytes, int]:
    """Return who was deleted after a sequence: salted hash -> sequence."""
    return {
        each.user_hash: each.sequence for source in sources for each in source.deletions() if each.sequence > sequence
    }


def _until(pages: Iterable[list[StoredUser]], sequence: int) -> Iterator[list[StoredUser]]:
    """Yield pages of users as they were at a sequence, but for what was dropped since."""
    for page in pages:
        yield [_user_until(user, sequence) for user in page if user.head.born <= sequence]


def _user_until(user: StoredUser, sequence: int) -> StoredUser:
    head = user.head
    if max(head.revision, head.last_sequence, head.late_sequence) <= sequence:
        return user
    sequences = user.records["sequence"].astype(np.int64)
    records = user.records[sequences <= sequence]
    times = records["time"].astype(np.int64) - TIME_BIAS
    there = len(records) > 0
    changed = dataclasses.replace(
        head,
        revision=min(head.revision, sequence),
        count=len(records),
        first_ms=int(times[0]) if there else 0,
        last_ms=int(times[-1]) if there else 0,
        last_sequence=int(records["sequence"].max()) if there else 0,
        late_sequence=min(head.late_sequence, sequence),
    )
    return dataclasses.replace(user, head=changed, records=records)


def _user_line(user: StoredUser) -> dict[str, Any]:
    return {"id": user.user_id, "head": dataclasses.asdict(user.head), "fields": user.fields}


def _summary_json(summary: StoreSummary) -> dict[str, Any]:
    told = {field.name: getattr(summary, field.name) for field in dataclasses.fields(summary)}
    return told | {"layout": summary.layout.to_json(), "salt": summary.salt.hex(), "cursors": dict(summary.cursors)}


def _summary_of(told: Mapping[str, Any]) -> StoreSummary:
    changed = {"layout": RecordLayout.from_json(told["layout"]), "salt": bytes.fromhex(told["salt"])}
    return StoreSummary(**{**told, **changed})


def _write_lines(file: Path, values: Iterable[Any]) -> int:
    count = 0
    with file.open("w", encoding="utf-8") as written:
        for value in values:
            written.write(json.dumps(value, ensure_ascii=False) + "\n")
            count += 1
    return count


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


__all__ = ["Backup", "Contents", "Moved", "backup", "fill"]
