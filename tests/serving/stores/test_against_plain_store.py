"""Whatever is done to a store, in whatever order, it answers as the plain store in memory does."""

import dataclasses
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.serving.stores.conftest import LAYOUT, NUMBERS
from tests.serving.stores.plain_store import PlainStore

from sostenuto.schema.errors import StreamTrimmed
from sostenuto.schema.events import Event
from sostenuto.serving.stores.moving import Backup, backup, fill
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.stores.store import CompactionPolicy

USERS = st.sampled_from(["ann", "bob", "名"])
MODELS = st.sampled_from(["v1", "v2"])
TIMES = st.integers(-3, 12)  # few moments, so that many events share one
EVENTS = st.builds(
    Event,
    event_id=st.integers(0, 25).map(str),
    user_id=USERS,
    item_id=st.sampled_from(["i", "j", "k"]),
    time_ms=TIMES,
    action=st.sampled_from(["", "buy"]),
    place=st.sampled_from(["", "shop"]),
    fields=st.sampled_from([{}, {"channel": "web"}, {"price": 2.0}]),
)
LIMITS = st.none() | st.integers(1, 8)


class StoreMachine(RuleBasedStateMachine):
    new_location = None  # set by the test

    @initialize()
    def make(self):
        self.folder = Path(tempfile.mkdtemp())
        self.location = type(self).new_location(self.folder)
        self.store = open_store(self.location, LAYOUT)
        self.plain = PlainStore()

    def teardown(self):
        if hasattr(self, "store"):
            assert self.store.verify() == []
            self.store.close()
            shutil.rmtree(self.folder)

    @rule(events=st.lists(EVENTS, max_size=12))
    def append(self, events):
        answers = self.store.append(events)
        assert [(a.outcome, a.sequence, a.user, a.revision) for a in answers] == self.plain.append(events)

    @rule(user=USERS, before=st.none() | TIMES, after=st.none() | st.integers(0, 40))
    def read(self, user, before, after):
        history = self.store.history(user, before_ms=before, after_sequence=after)
        wanted = self.plain.history(user, before, after)
        if wanted is None:
            assert history is None
            return
        columns = (history.time_ms, history.sequence, history.item, history.action)
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == wanted
        assert dataclasses.astuple(history.head) == self.plain.head(user)

    @rule(most=LIMITS, age=LIMITS, now=st.integers(-3, 14), trim=st.booleans())
    def compact(self, most, age, now, trim):
        policy = CompactionPolicy(most_events=most, most_age_ms=age, trim_stream=trim)
        done = self.store.compact(policy, now_ms=now)
        assert (done.users, done.events, done.changes) == self.plain.compact(policy, now)

    @rule(user=USERS)
    def delete(self, user):
        gone = self.store.delete_user(user)
        assert (gone and gone.sequence) == self.plain.delete_user(user)

    @rule(user=USERS, fields=st.dictionaries(st.text(max_size=2), st.integers(), max_size=2))
    def tell_user(self, user, fields):
        self.store.set_user_fields(user, fields)
        self.plain.set_user_fields(user, fields)

    @rule(items=st.dictionaries(st.sampled_from("ijk"), st.fixed_dictionaries({"p": st.integers()}), max_size=3))
    def tell_items(self, items):
        assert self.store.put_items(items) == self.plain.put_items(items)

    @rule(model=MODELS, user=USERS, back=st.integers(0, 6), blob=st.binary(max_size=3))
    def put_state(self, model, user, back, blob):
        revision = max(0, self.plain.sequence - back)
        done = self.store.put_state(model, user, revision=revision, newest_ms=0, blob=blob)
        assert done == self.plain.put_state(model, user, revision, blob)

    @rule(model=MODELS)
    def drop_states(self, model):
        assert self.store.drop_states(model) == self.plain.drop_states(model)

    @rule(name=st.sampled_from(["encoder", "popularity"]), at=st.integers(0, 60))
    def move_cursor(self, name, at):
        self.store.set_cursor(name, at)
        self.plain.cursors[name] = at

    @rule()
    def open_again(self):
        self.store.close()
        self.store = open_store(self.location)

    @rule()
    def rewrite(self):
        self.store.rewrite()

    @rule()
    def restore(self):
        """A backup restored into a new store is the same store, but for states and marks of the stream."""
        backup(self.store, self.folder / "backup")
        location = type(self).new_location(self.folder)
        with open_store(location, LAYOUT) as other:
            fill(other, Backup(self.folder / "backup"))
            assert other.verify() == []
            assert other.summary() == self.store.summary()
            assert list(other.items()) == list(self.store.items())
            assert list(other.deletions()) == list(self.store.deletions())
            assert [other.names(kind) for kind in LAYOUT.name_kinds] == [
                self.store.names(kind) for kind in LAYOUT.name_kinds
            ]
            there = [each for page in other.user_pages(5) for each in page]
            wanted = [each for page in self.store.user_pages(1_000) for each in page]
            assert [(u.user_id, u.head, u.fields, u.records.tobytes()) for u in there] == [
                (u.user_id, u.head, u.fields, u.records.tobytes()) for u in wanted
            ]
            trimmed = self.plain.trimmed
            events = [each for each in other.changes(trimmed, 1_000) if each.kind == "event"]
            assert events == [each for each in self.store.changes(trimmed, 1_000) if each.kind == "event"]
        shutil.rmtree(self.folder / "backup")

    @invariant()
    def everything_agrees(self):
        if not hasattr(self, "store"):
            return
        store, plain = self.store, self.plain
        assert store.last_sequence() == plain.sequence
        heads = [store.head(user) for user in ("ann", "bob", "名")]
        assert [head and dataclasses.astuple(head) for head in heads] == [plain.head(u) for u in ("ann", "bob", "名")]
        assert store.changes(plain.trimmed, 1_000) == plain.changes(plain.trimmed, 1_000)
        if plain.trimmed:
            with pytest.raises(StreamTrimmed):
                store.changes(plain.trimmed - 1, 1)
        stats = store.stats()
        assert stats.events == sum(len(user.events) for user in plain.users.values())
        assert (stats.users, stats.items, stats.states) == (len(plain.users), len(plain.items), len(plain.states))
        assert (stats.changes, stats.cursors) == (len(plain.stream), plain.cursors)
        assert list(store.users()) == sorted(plain.users, key=lambda user: plain.users[user].code)
        for kind, names in plain.names.items():
            assert store.names(kind) == names
        for user, known in plain.users.items():
            assert store.user_fields(user) == known.fields
            assert store.user_id(known.code) == user
        for (model, user), (revision, blob) in plain.states.items():
            found = store.state(model, user)
            assert (found.revision, found.blob) == (revision, blob)
        found = [(item.item_id, (item.revision, dict(item.fields))) for item in store.changed_items(0, 10)]
        assert found == sorted(plain.items.items(), key=lambda item: item[1][0])


def run(kind, request, examples, steps):
    server = request.getfixturevalue("redis_server") if kind == "redis" else None

    class Machine(StoreMachine):
        @staticmethod
        def new_location(folder):
            number = next(NUMBERS)
            return str(folder / f"store{number}") if server is None else server.url(f"store{number}")

    # what fails is told as it is: making it smaller would take minutes of waiting for disks
    phases = [Phase.explicit, Phase.generate]
    chosen = settings(max_examples=examples, stateful_step_count=steps, phases=phases)
    run_state_machine_as_test(Machine, settings=chosen)


def test_a_store_is_the_plain_store(kind, request):
    run(kind, request, 4, 12)


@pytest.mark.slow
def test_a_store_is_the_plain_store_over_many_histories(kind, request):
    run(kind, request, 40, 30)
