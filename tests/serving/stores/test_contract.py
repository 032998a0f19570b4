"""What every store promises, one by one."""

import dataclasses
import itertools
import math
import threading

import numpy as np
import pytest
from tests.serving.stores.conftest import LAYOUT
from tests.serving.stores.events import event, outcomes, seen

from sostenuto.schema.errors import DataError, SpecError, StoreGone, StreamTrimmed
from sostenuto.schema.events import MOST_ID_BYTES, MOST_TIME_MS
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.stores.packing import MOST_BATCH
from sostenuto.serving.stores.store import NO_FLOOR, CompactionPolicy


def test_an_event_comes_back_as_it_was_sent(store):
    sent = event(3, action="buy", value=2.5, place="shop", fields={"channel": "web", "price": 1.25})
    (answer,) = store.append([sent])
    assert (answer.outcome, answer.sequence, answer.duplicate) == ("new", 1, False)
    history = store.history("ann")
    assert history.time_ms.dtype == history.sequence.dtype == np.int64
    assert history.item.dtype == history.fields["channel"].dtype == np.uint32
    assert history.value.dtype == history.fields["price"].dtype == np.float32
    assert (history.time_ms.tolist(), history.sequence.tolist(), history.value.tolist()) == ([3_000], [1], [2.5])
    names = {kind: ["", *store.names(kind)] for kind in LAYOUT.name_kinds}
    assert names["item"][history.item[0]] == "i3"
    assert names["action"][history.action[0]] == "buy"
    assert names["place"][history.place[0]] == "shop"
    assert names["field.channel"][history.fields["channel"][0]] == "web"
    assert history.fields["price"].tolist() == [1.25]


def test_what_is_missing_is_code_0_or_nan(store):
    store.append([event(1, fields={"channel": ""})])
    history = store.history("ann")
    assert (history.action[0], history.place[0], history.fields["channel"][0]) == (0, 0, 0)
    assert math.isnan(history.value[0])
    assert math.isnan(history.fields["price"][0])


def test_an_unknown_user_is_none(store):
    assert store.head("bob") is None
    assert store.history("bob") is None
    assert store.user_fields("bob") is None
    assert store.state("m", "bob") is None
    assert store.item("i1") is None
    assert store.delete_user("bob") is None
    assert store.user_id(1) is None
    assert store.changes(0, 10) == []
    assert list(store.users()) == []
    assert list(store.all_events()) == []


def test_events_of_any_arrival_stand_in_order_of_time_and_arrival(store):
    store.append([event(5), event(2), event(9)])
    store.append([event(1), event(20, time_ms=5_000), event(7)])
    history = store.history("ann")
    assert history.time_ms.tolist() == [1_000, 2_000, 5_000, 5_000, 7_000, 9_000]
    assert history.sequence.tolist() == [4, 2, 1, 5, 6, 3]


def test_times_before_1970_and_of_any_size_stand_in_order(store):
    times = [-MOST_TIME_MS, -1, 0, 1, MOST_TIME_MS]
    store.append([event(at, time_ms=time) for at, time in reversed(list(enumerate(times)))])
    assert seen(store) == times
    head = store.head("ann")
    assert (head.first_ms, head.last_ms) == (-MOST_TIME_MS, MOST_TIME_MS)


def test_a_duplicate_changes_nothing_and_tells_the_first_ones_sequence(store):
    store.append([event(1), event(2)])
    before = store.head("ann")
    again = store.append([event(2, item="other", time_ms=99), event(1)])
    assert [(answer.duplicate, answer.sequence, answer.revision) for answer in again] == [(True, 2, 2), (True, 1, 2)]
    assert store.head("ann") == before
    assert seen(store) == [1_000, 2_000]
    assert store.last_sequence() == 2


def test_duplicates_inside_one_batch_are_seen(store):
    assert outcomes(store.append([event(1), event(1), event(2), event(1)])) == ["new", "duplicate", "new", "duplicate"]
    assert store.head("ann").count == 2


def test_an_event_id_is_of_its_user(store):
    assert outcomes(store.append([event(1), event(1, user="bob")])) == ["new", "new"]


def test_an_empty_batch_is_nothing(store):
    assert store.append([]) == []
    assert store.last_sequence() == 0


def test_the_head_tells_the_history(store):
    store.append([event(5), event(6)])
    head = store.head("ann")
    assert dataclasses.asdict(head) == {
        "user": 1,
        "revision": 2,
        "count": 2,
        "first_ms": 5_000,
        "last_ms": 6_000,
        "last_sequence": 2,
        "late_sequence": 0,
        "floor_ms": NO_FLOOR,
        "born": 1,
    }
    store.append([event(3), event(8)])
    head = store.head("ann")
    assert (head.revision, head.count, head.first_ms, head.last_ms, head.late_sequence) == (4, 4, 3_000, 8_000, 3)
    assert store.history("ann").head == head


def test_an_event_of_the_same_time_as_the_newest_is_not_late(store):
    store.append([event(5), event(50, time_ms=5_000)])
    assert store.head("ann").late_sequence == 0


def test_a_history_is_cut_strictly_before_a_moment(store):
    store.append([event(1), event(2), event(20, time_ms=2_000), event(3)])
    assert seen(store, before_ms=2_000) == [1_000]
    assert seen(store, before_ms=2_001) == [1_000, 2_000, 2_000]
    assert seen(store, before_ms=0) == []
    assert seen(store, before_ms=10**12) == [1_000, 2_000, 2_000, 3_000]


@pytest.mark.parametrize("size", [1, 3, 40, 5_000])
def test_what_came_after_a_sequence_is_read_alone(store, size):
    store.append([event(number) for number in range(10)])
    store.append([event(100 + number) for number in range(size)])
    assert seen(store, after_sequence=10) == [1_000 * (100 + number) for number in range(size)]
    assert seen(store, after_sequence=10 + size) == []
    assert len(store.history("ann", after_sequence=0)) == 10 + size


def test_late_events_are_among_what_came_after_a_sequence(store):
    store.append([event(number) for number in (5, 6, 7)])
    store.append([event(1), event(8), event(2)])
    assert seen(store, after_sequence=3) == [1_000, 2_000, 8_000]
    assert seen(store, after_sequence=4) == [2_000, 8_000]
    assert seen(store, after_sequence=3, before_ms=8_000) == [1_000, 2_000]


def test_names_go_on_from_a_code_and_never_change(store):
    store.append([event(number, item=f"item{number}") for number in range(5)])
    assert store.names("item") == [f"item{number}" for number in range(5)]
    store.append([event(7, item="new"), event(8, item="item0")])
    assert store.names("item", since=5) == ["new"]
    assert store.names("item", since=6) == []
    with pytest.raises(SpecError, match="Did you mean 'item'"):
        store.names("items")


def test_names_of_one_kind_are_not_anothers(store):
    store.append([event(1, item="x", action="x", place="y", fields={"channel": "y"})])
    assert [store.names(kind) for kind in LAYOUT.name_kinds] == [["x"], ["x"], ["y"], ["y"]]


@pytest.mark.parametrize("strange", ["é" * 250, "a\0b", "a" * MOST_ID_BYTES, "../../x", "*", "名前", "1", "\n", " "])
def test_any_text_is_an_id(store, strange):
    store.append([event(1, user=strange, item=strange, action=strange, place=strange, fields={"channel": strange})])
    store.put_items({strange: {"a": 1}})
    assert store.put_state(strange, strange, revision=1, newest_ms=0, blob=b"x")
    store.set_cursor(strange, 1)
    assert list(store.users()) == [strange]
    assert [store.names(kind) for kind in LAYOUT.name_kinds] == [[strange]] * 4
    assert store.item(strange).fields == {"a": 1}
    assert store.state(strange, strange).blob == b"x"
    assert store.stats().cursors == {strange: 1}
    assert store.delete_user(strange) is not None
    assert list(store.users()) == []


def test_a_field_that_the_layout_lacks_is_refused_and_nothing_is_written(store):
    with pytest.raises(DataError, match="Did you mean 'channel'"):
        store.append([event(1), event(2, fields={"chanel": "web"})])
    with pytest.raises(DataError, match="must be text"):
        store.append([event(1, fields={"channel": 3})])
    with pytest.raises(DataError, match="must be a number"):
        store.append([event(1, fields={"price": "3"})])
    with pytest.raises(DataError, match="at most"):
        store.append([event(number) for number in range(MOST_BATCH + 1)])
    assert store.head("ann") is None
    assert store.last_sequence() == 0


def test_a_store_without_fields_holds_events(new_store):
    store = new_store(RecordLayout())
    store.append([event(2, value=1.0), event(1)])
    history = store.history("ann")
    assert history.time_ms.tolist() == [1_000, 2_000]
    assert dict(history.fields) == {}


def test_everything_is_there_when_it_is_opened_again(new_location):
    location = new_location()
    with open_store(location, LAYOUT) as store:
        store.append([event(2), event(1)])
        store.set_user_fields("bob", {"age": 3})
        store.put_items({"i": {"a": 1}})
        store.set_cursor("c", 2)
        told = [store.head("ann"), store.summary(), store.changes(0, 10), store.item("i")]
    with open_store(location) as store:
        assert [store.head("ann"), store.summary(), store.changes(0, 10), store.item("i")] == told
        assert seen(store) == [1_000, 2_000]
        assert outcomes(store.append([event(2), event(3)])) == ["duplicate", "new"]


def test_a_store_is_made_only_with_a_layout(new_location):
    with pytest.raises(StoreGone, match="there is none"):
        open_store(new_location())


def test_a_store_that_lacks_fields_is_refused_and_one_that_has_more_is_not(new_location):
    location = new_location()
    open_store(location, LAYOUT).close()
    with open_store(location, RecordLayout(fields=(("price", "numeric"),))) as store:
        assert store.layout == LAYOUT
    for wrong in ("price", "categorical"), ("colour", "categorical"):
        with pytest.raises(SpecError, match="must have the event fields"):
            open_store(location, RecordLayout(fields=(wrong,)))


def test_a_closed_store_says_so(store):
    store.append([event(1)])
    store.close()
    for call in (lambda: store.head("ann"), lambda: store.append([event(2)]), lambda: store.stats()):
        with pytest.raises(StoreGone, match="was closed"):
            call()


def test_the_stream_tells_events_by_arrival(store):
    store.append([event(5, action="buy", place="shop"), event(2, user="bob")])
    first, second = store.changes(0, 10)
    assert (first.sequence, first.kind, first.user, first.user_id, first.time_ms) == (1, "event", 1, "ann", 5_000)
    assert (first.item, first.action, first.place) == (1, 1, 1)
    assert (second.sequence, second.user_id, second.time_ms, second.place) == (2, "bob", 2_000, 0)
    assert store.changes(1, 10) == [second]
    assert store.changes(0, 1) == [first]
    assert store.changes(2, 10) == []
    assert store.changes(0, 0) == []


def test_all_events_are_what_the_histories_are(store):
    store.append([event(number, user=f"u{number % 5}", value=float(number)) for number in reversed(range(50))])
    for batch in (1, 7, 1_000):
        blocks = list(store.all_events(batch))
        assert all(len(block) >= batch for block in blocks[:-1])
        columns = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in ("time_ms", "value")}
        users = np.concatenate([block.user for block in blocks])
        for user in range(5):
            history = store.history(f"u{user}")
            mine = users == history.head.user
            assert columns["time_ms"][mine].tolist() == history.time_ms.tolist()
            assert columns["value"][mine].tolist() == history.value.tolist()
        assert (np.diff(users.astype(int)) >= 0).all()


def test_many_users_are_walked_through_in_pages(store):
    store.append([event(number, user=f"u{number}") for number in range(2_345)])
    assert list(store.users()) == [f"u{number}" for number in range(2_345)]
    assert sum(len(block) for block in store.all_events(100)) == 2_345


def test_user_fields_are_replaced_and_leave_the_history_alone(store):
    store.append([event(1)])
    before = store.head("ann")
    assert store.user_fields("ann") is None
    store.set_user_fields("ann", {"age": 30, "tags": ["a", None], "名": 1.5})
    assert store.user_fields("ann") == {"age": 30, "tags": ["a", None], "名": 1.5}
    store.set_user_fields("ann", {})
    assert store.user_fields("ann") == {}
    assert store.head("ann") == before
    store.set_user_fields("bob", {"age": 1})
    assert store.head("bob").count == 0
    assert seen(store, "bob") == []
    store.append([event(1, user="bob")])
    assert store.user_fields("bob") == {"age": 1}


@pytest.mark.parametrize("wrong", [{"a": math.nan}, {"a": {1}}, {"a": "x" * 70_000}])
def test_fields_that_json_cannot_hold_are_refused(store, wrong):
    with pytest.raises(DataError, match="fields of"):
        store.set_user_fields("ann", wrong)
    with pytest.raises(DataError, match="fields of"):
        store.put_items({"i": wrong})
    assert store.head("ann") is None


def test_items_come_by_revision_once_each(store):
    assert store.put_items({"a": {"p": 1}, "b": {"p": 2}}) == 2
    assert store.put_items({"a": {"p": 3}}) == 3
    assert [(item.item_id, item.revision, dict(item.fields)) for item in store.changed_items(0, 10)] == [
        ("b", 2, {"p": 2}),
        ("a", 3, {"p": 3}),
    ]
    assert [item.item_id for item in store.changed_items(2, 10)] == ["a"]
    assert [item.item_id for item in store.changed_items(0, 1)] == ["b"]
    assert store.changed_items(3, 10) == []
    assert store.put_items({}) == 3
    assert [item.item_id for item in store.items()] == ["b", "a"]


def test_a_state_is_kept_unless_a_newer_one_is_there(store):
    store.append([event(1), event(2), event(3)])
    assert store.put_state("v1", "ann", revision=2, newest_ms=2_000, blob=b"two")
    assert not store.put_state("v1", "ann", revision=1, newest_ms=1_000, blob=b"one")
    assert (store.state("v1", "ann").revision, store.state("v1", "ann").blob) == (2, b"two")
    assert store.put_state("v1", "ann", revision=2, newest_ms=2_000, blob=b"again")
    assert store.put_state("v1", "ann", revision=3, newest_ms=-5, blob=b"\0" * 100_000)
    assert dataclasses.astuple(store.state("v1", "ann")) == (3, -5, b"\0" * 100_000)
    assert store.state("v2", "ann") is None


def test_states_of_a_version_are_dropped_together(store):
    store.append([event(1, user=f"u{user}") for user in range(30)])
    for user, model in itertools.product(range(30), ("v1", "v2")):
        assert store.put_state(model, f"u{user}", revision=30, newest_ms=0, blob=b"x")
    assert store.stats().states == 60
    assert store.drop_states("v1") == 30
    assert store.drop_states("v1") == 0
    assert store.drop_states("never") == 0
    assert store.state("v1", "u1") is None
    assert store.state("v2", "u1") is not None
    assert store.stats().states == 30


def test_a_state_of_nobody_is_not_kept(store):
    assert not store.put_state("v1", "ann", revision=1, newest_ms=0, blob=b"x")
    assert store.stats().states == 0


def test_a_deleted_user_leaves_nothing(store):
    store.append([event(1), event(2, user="bob"), event(3)])
    store.set_user_fields("ann", {"a": 1})
    store.put_state("v1", "ann", revision=3, newest_ms=0, blob=b"x")
    code = store.head("ann").user
    gone = store.delete_user("ann")
    assert gone.sequence == 4
    assert store.head("ann") is None
    assert store.history("ann") is None
    assert store.user_fields("ann") is None
    assert store.state("v1", "ann") is None
    assert store.user_id(code) is None
    assert list(store.users()) == ["bob"]
    assert [(c.sequence, c.kind, c.user, c.user_id) for c in store.changes(0, 10)] == [
        (2, "event", 2, "bob"),
        (4, "deleted", code, None),
    ]
    assert list(store.deletions()) == [gone]
    stats = store.stats()
    assert (stats.users, stats.events, stats.states, stats.deleted) == (1, 1, 0, 1)
    assert store.verify() == []
    assert store.delete_user("ann") is None


def test_a_user_who_comes_back_is_a_new_one(store):
    store.append([event(1), event(2)])
    before = store.head("ann")
    late_state = {"revision": before.revision, "newest_ms": 0, "blob": b"of before"}
    store.delete_user("ann")
    assert outcomes(store.append([event(1)])) == ["new"]
    after = store.head("ann")
    assert after.user != before.user
    assert after.revision > before.revision
    assert after.count == 1
    assert not store.put_state("v1", "ann", **late_state)  # an encoder that was too slow
    assert store.state("v1", "ann") is None


def test_compaction_keeps_the_newest_and_whole_moments(store):
    store.append([event(at, time_ms=time) for at, time in enumerate([1, 2, 2, 2, 3, 4])])
    done = store.compact(CompactionPolicy(most_events=3), now_ms=0)
    assert (done.users, done.events) == (1, 1)
    assert seen(store) == [2, 2, 2, 3, 4]
    head = store.head("ann")
    assert (head.floor_ms, head.count, head.first_ms, head.revision) == (1, 5, 2, 7)
    assert store.compact(CompactionPolicy(most_events=3), now_ms=0).events == 0
    assert store.compact(CompactionPolicy(most_events=2), now_ms=0).events == 3
    assert seen(store) == [3, 4]
    assert [change.kind for change in store.changes(0, 10)] == ["event", "event", "compacted", "compacted"]
    assert store.verify() == []


def test_compaction_by_age_may_leave_nothing(store):
    store.append([event(1), event(2), event(3, user="bob")])
    assert store.compact(CompactionPolicy(most_age_ms=1_000), now_ms=3_000).events == 1
    assert seen(store) == [2_000]
    assert store.compact(CompactionPolicy(most_age_ms=1_000), now_ms=10_000).users == 2
    head = store.head("ann")
    assert (head.count, head.first_ms, head.last_ms, head.last_sequence, head.floor_ms) == (0, 0, 0, 0, 2_000)
    assert seen(store) == []
    assert store.stats().events == 0
    assert store.verify() == []
    assert outcomes(store.append([event(2), event(4)])) == ["expired", "new"]


def test_what_compaction_dropped_never_comes_back(store):
    events = [event(number) for number in range(10)]
    store.append(events)
    store.compact(CompactionPolicy(most_events=4), now_ms=0)
    head = store.head("ann")
    again = store.append([*events, event(100, time_ms=4_500), event(101, time_ms=5_500)])
    assert outcomes(again) == ["expired"] * 6 + ["duplicate"] * 4 + ["expired", "new"]
    assert again[0].sequence == 0
    assert store.head("ann").floor_ms == head.floor_ms == 5_000
    assert seen(store) == [5_500, 6_000, 7_000, 8_000, 9_000]


def test_a_clock_that_goes_back_drops_nothing_and_moves_no_sequence_back(store, monkeypatch):
    import time

    store.append([event(1), event(2)])
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert store.compact(CompactionPolicy(most_age_ms=1), now_ms=-(10**9)).events == 0
    (answer,) = store.append([event(0)])  # an event that is older than those before it
    assert answer.sequence == answer.revision == 3
    assert store.head("ann").revision == 3
    assert seen(store) == [0, 1_000, 2_000]


def test_the_stream_is_trimmed_to_the_slowest_consumer(store):
    store.append([event(number) for number in range(10)])
    keep = CompactionPolicy()
    assert store.compact(keep, now_ms=0).changes == 0  # nobody said how far he is
    store.set_cursor("fast", 9)
    store.set_cursor("slow", 4)
    assert store.cursor("slow") == 4
    assert store.cursor("never") == 0
    assert store.compact(CompactionPolicy(trim_stream=False), now_ms=0).changes == 0
    assert store.compact(keep, now_ms=0).changes == 4
    assert [change.sequence for change in store.changes(4, 100)] == list(range(5, 11))
    with pytest.raises(StreamTrimmed, match="all_events"):
        store.changes(3, 100)
    store.drop_cursor("slow")
    assert store.compact(keep, now_ms=0).changes == 5
    assert len(store.history("ann")) == 10
    assert store.delete_user("ann") is not None
    assert store.verify() == []


def test_a_rewritten_store_is_the_same(store):
    store.append([event(number, user=f"u{number % 3}") for number in range(30)])
    store.delete_user("u1")
    before = [store.head("u0"), store.summary(), store.changes(0, 100), list(store.deletions())]
    store.rewrite()
    assert [store.head("u0"), store.summary(), store.changes(0, 100), list(store.deletions())] == before
    assert store.verify() == []
    assert outcomes(store.append([event(0, user="u0"), event(100)])) == ["duplicate", "new"]


def test_threads_append_and_read_at_once(store):
    errors = []
    revisions = []

    def write(user):
        try:
            for number in range(40):
                store.append([event(number, user=user), event(number, user="all")])
        except Exception as error:
            errors.append(error)

    def read():
        try:
            while len(revisions) < 10_000 and any(thread.is_alive() for thread in writers):
                history = store.history("all")
                if history is not None:
                    assert len(history) == history.head.count  # head and events of one transaction
                    revisions.append(history.revision)
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(f"u{at}",)) for at in range(4)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in [*writers, *readers]:
        thread.start()
    for thread in [*writers, *readers]:
        thread.join()
    assert errors == []
    assert [store.head(f"u{at}").count for at in range(4)] == [40] * 4
    assert store.head("all").count == 40
    sequences = [change.sequence for change in store.changes(0, 1_000)]
    assert sequences == list(range(1, 201))
    assert store.verify() == []
