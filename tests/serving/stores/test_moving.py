"""Backup, restore and migration: the same store elsewhere, without those who were deleted."""

import json
import re
import shutil

import pytest
from tests.serving.stores.conftest import LAYOUT, NUMBERS
from tests.serving.stores.events import event, outcomes, seen

from sostenuto.schema.errors import SpecError, StoreDamaged, StoreError
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.lmdb_store import LmdbStore
from sostenuto.serving.stores.moving import Backup, backup, fill
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.stores.redis_store import RedisStore
from sostenuto.serving.stores.store import CompactionPolicy


def put_something(store):
    store.append([event(at, user=f"u{at % 4}", value=float(at), fields={"channel": f"c{at % 3}"}) for at in range(40)])
    store.append([event(100, user="u1", time_ms=5), event(101, user="u2")])
    store.set_user_fields("u1", {"age": 7})
    store.set_user_fields("only-fields", {"名": [1, None]})
    store.put_items({"i1": {"p": 1}, "i2": {"p": 2}})
    store.put_items({"i1": {"p": 3}})
    store.put_state("v1", "u1", revision=40, newest_ms=0, blob=b"x")
    store.set_cursor("encoder", 30)
    store.delete_user("u3")
    store.compact(CompactionPolicy(most_events=8), now_ms=0)


def told(store):
    """Everything that a copy must have."""
    trimmed = store.summary().trimmed
    return (
        [(user.user_id, user.head, user.fields, user.records.tobytes()) for p in store.user_pages(10) for user in p],
        [store.names(kind) for kind in store.layout.name_kinds],
        list(store.items()),
        list(store.deletions()),
        store.summary(),
        [each for each in store.changes(trimmed, 1_000) if each.kind == "event"],
        store.stats().events,
    )


@pytest.fixture
def other_kind(kind, request, tmp_path):
    """A function that makes an empty store of the other kind."""
    made = []

    def store():
        number = next(NUMBERS)
        if kind == "redis":
            made.append(LmdbStore(tmp_path / f"other{number}", LAYOUT))
        else:
            made.append(RedisStore(request.getfixturevalue("redis_server").url(f"other{number}"), LAYOUT))
        return made[-1]

    yield store
    for each in made:
        each.close()


def test_a_store_migrates_to_the_other_kind_and_back(store, other_kind, new_store):
    put_something(store)
    there, back = other_kind(), new_store()
    moved = fill(there, store)
    assert (moved.users, moved.left_out) == (4, 0)
    assert moved.events == store.stats().events
    assert told(there) == told(store)
    assert there.verify() == []
    assert there.state("v1", "u1") is None  # states are made again
    fill(back, there)
    assert told(back) == told(store)
    # both go on alike
    sent = [event(39, user="u3"), event(38, user="u2"), event(500, user="new", item="new"), event(0, user="u0")]
    assert back.append(sent) == store.append(sent)


def test_a_backup_is_the_store(store, other_kind, tmp_path):
    put_something(store)
    written = backup(store, tmp_path / "backup")
    assert (written.users, written.events, written.items) == (4, store.stats().events, 2)
    copy = other_kind()
    assert fill(copy, Backup(tmp_path / "backup")) == written
    assert told(copy) == told(store)
    assert copy.verify() == []


def test_an_empty_store_has_a_backup(store, other_kind, tmp_path):
    backup(store, tmp_path / "backup")
    copy = other_kind()
    fill(copy, Backup(tmp_path / "backup"))
    assert told(copy) == told(store)
    assert copy.append([event(1)])[0].sequence == 1


def test_a_backup_brings_nobody_back_who_was_deleted_since(store, other_kind, tmp_path):
    put_something(store)
    backup(store, tmp_path / "old")
    store.delete_user("u1")
    store.delete_user("only-fields")
    store.append([event(7, user="u1")])  # she came back: a new user, who is not in the old backup
    store.delete_user("u2")
    backup(store, tmp_path / "new")
    copies = [other_kind() for _ in range(3)]
    fill(copies[0], Backup(tmp_path / "old"))
    assert seen(copies[0], "u1") is not None  # nobody told
    for copy, knows in zip(copies[1:], (store, Backup(tmp_path / "new")), strict=True):
        moved = fill(copy, Backup(tmp_path / "old"), deletions_of=[knows])
        assert (moved.users, moved.left_out) == (1, 3)
        assert list(copy.users()) == ["u0"]
        assert copy.names("item") == Backup(tmp_path / "old").names("item")
        assert list(copy.deletions()) == sorted(store.deletions(), key=lambda each: each.user_hash)
        assert copy.append([event(1, user="u1")])[0].sequence > max(each.sequence for each in store.deletions())
        assert copy.verify() == []


def test_a_restored_user_who_comes_back_is_not_deleted_by_the_next_restore(store, other_kind, tmp_path):
    put_something(store)
    backup(store, tmp_path / "old")
    store.delete_user("u1")
    copy, again = other_kind(), other_kind()
    fill(copy, Backup(tmp_path / "old"), deletions_of=[store])
    copy.append([event(9, user="u1")])
    backup(copy, tmp_path / "later")
    fill(again, Backup(tmp_path / "later"), deletions_of=[store, copy])
    assert seen(again, "u1") == [9_000]


def test_deletions_of_a_store_of_another_origin_are_refused(store, new_store, other_kind, tmp_path):
    put_something(store)
    backup(store, tmp_path / "backup")
    with pytest.raises(SpecError, match="from the store that the backup is of"):
        fill(other_kind(), Backup(tmp_path / "backup"), deletions_of=[new_store()])


class Busy:
    """A store in which something happens while it is read: before the second page of users."""

    def __init__(self, store, happens):
        self.store, self.happens = store, happens

    def __getattr__(self, name):
        return getattr(self.store, name)

    def user_pages(self, batch):
        for at, page in enumerate(self.store.user_pages(1)):
            if at == 1:
                self.happens()
            yield page


def test_a_backup_holds_what_was_there_when_it_began(store, other_kind, tmp_path):
    put_something(store)
    before = told(store)
    late = [event(900, user="u2", time_ms=1), event(901, user="u2"), event(902, user="fresh", item="fresh")]
    backup(Busy(store, lambda: store.append(late)), tmp_path / "backup")
    copy = other_kind()
    fill(copy, Backup(tmp_path / "backup"))
    assert copy.verify() == []
    users, names, items, deletions, summary, changes, events = told(copy)
    assert [(user, fields, records) for user, _, fields, records in users] == [
        (user, fields, records) for user, _, fields, records in before[0]
    ]
    assert (items, deletions, summary, changes, events) == before[2:]
    assert names == [store.names(kind) for kind in LAYOUT.name_kinds]
    assert outcomes(copy.append(late)) == ["expired", "new", "new"]


@pytest.mark.parametrize("deleted", ["u0", "u2"])  # copied before it, and not yet
def test_who_is_deleted_while_a_store_is_copied_is_not_in_the_copy(store, other_kind, tmp_path, deleted):
    put_something(store)
    busy = Busy(store, lambda: store.delete_user(deleted))
    copy = other_kind()
    moved = fill(copy, busy)
    assert deleted not in list(copy.users())
    assert len(list(copy.users())) == 3
    assert moved.left_out == (deleted == "u0")
    assert copy.verify() == []


def test_who_is_deleted_while_a_backup_is_written_does_not_come_back(store, other_kind, tmp_path):
    put_something(store)
    backup(Busy(store, lambda: store.delete_user("u0")), tmp_path / "backup")
    copy = other_kind()
    fill(copy, Backup(tmp_path / "backup"))
    assert sorted(copy.users()) == ["only-fields", "u1", "u2"]


def test_a_store_that_holds_something_is_not_filled(store, other_kind):
    put_something(store)
    full = other_kind()
    full.append([event(1)])
    with pytest.raises(StoreError, match="must be empty"):
        fill(full, store)
    only_items = other_kind()
    only_items.put_items({"i": {}})
    with pytest.raises(StoreError, match="must be empty"):
        fill(only_items, store)


def test_a_store_of_another_layout_is_not_filled(store, new_store):
    with pytest.raises(SpecError, match="must have the event fields"):
        fill(new_store(RecordLayout()), store)


def test_a_store_whose_filling_broke_off_is_refused(store, new_location):
    put_something(store)
    location = new_location()

    def broken():
        raise KeyboardInterrupt

    with open_store(location, LAYOUT) as half, pytest.raises(KeyboardInterrupt):
        fill(half, Busy(store, broken))
    with pytest.raises(StoreDamaged, match="broken off"):
        open_store(location)


def test_a_backup_is_written_into_a_new_folder(store, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(SpecError, match="new folder"):
        backup(store, tmp_path / "there")


@pytest.fixture
def backup_folder(tmp_path):
    with LmdbStore(tmp_path / "source", LAYOUT) as source:
        put_something(source)
        backup(source, tmp_path / "backup")
    return tmp_path / "backup"


FILES = ["users-00000.jsonl", "events-00000.npy", "names.jsonl", "items.jsonl", "deletions.jsonl"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_backup_that_is_not_whole_is_refused(backup_folder, name, how):
    file = backup_folder / name
    content = file.read_bytes()
    if how == "changed":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    with pytest.raises(StoreDamaged, match=re.escape(name)):
        Backup(backup_folder)


def test_what_is_no_backup_is_refused(backup_folder, tmp_path):
    with pytest.raises(StoreDamaged, match="whole backup"):
        Backup(tmp_path / "nowhere")
    told = json.loads((backup_folder / "backup.json").read_text())
    (backup_folder / "backup.json").write_text(json.dumps(told | {"format": 99}))
    with pytest.raises(SpecError, match="format 1"):
        Backup(backup_folder)
    (backup_folder / "backup.json").write_text("{")
    with pytest.raises(StoreDamaged, match="whole backup"):
        Backup(backup_folder)
    shutil.copy(backup_folder / "names.jsonl", tmp_path / "names.jsonl")
    outside = {"../names.jsonl": told["files"]["names.jsonl"]}
    (backup_folder / "backup.json").write_text(json.dumps(told | {"files": outside}))
    with pytest.raises(StoreDamaged, match=r"names\.jsonl"):
        Backup(backup_folder)
