"""Popularity of a running service always is what a count of the store's events is, whatever happened to them."""

import random
from collections import Counter

import numpy as np
import pytest
from tests.serving.small_bundles import exported, write_whole
from tests.serving.stores.redis_server import place_of

from sostenuto.features.popularity import PopularityIndex, popularity_features
from sostenuto.schema.errors import StoreFull, StreamTrimmed
from sostenuto.schema.events import Event
from sostenuto.serving import popularity as module
from sostenuto.serving.bundle import open_bundle
from sostenuto.serving.live_model import LiveModel
from sostenuto.serving.popularity import NAME, EventRows, StorePopularity, packed, unpacked
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.stores.store import CompactionPolicy, Snapshot

ITEMS = ["i1", "i2", "i3", "i4", "of another shop", "not sold yet"]
PLACES = ["", "harbour", "hill", "moon", "mars"]
DAY_MS = 86_400_000
TIMES = [*range(0, 40 * DAY_MS, 3 * DAY_MS), -(2**50), 2**50]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    exported(write_whole(folder / "prepared"), "repeat", folder / "repeat")
    return open_bundle(folder / "repeat")


@pytest.fixture(params=["lmdb", "redis"])
def location(request, tmp_path):
    with place_of(request.param, tmp_path) as place:
        yield place


@pytest.fixture
def opened(location, bundle):
    """A function that opens the store, which is closed in the end and whenever it is opened again."""
    stores = []

    def again():
        while stores:
            stores.pop().close()
        stores.append(open_store(location, RecordLayout.of(bundle.features.behaviour_fields)))
        return stores[-1]

    yield again
    while stores:
        stores.pop().close()


def some(chance, count, users=5):
    return [
        Event(
            event_id=str(chance.randrange(10**9)),
            user_id=f"user {chance.randrange(users)}",
            item_id=chance.choice(ITEMS),
            time_ms=chance.choice(TIMES),
            place=chance.choice(PLACES),
        )
        for _ in range(count)
    ]


def rows_of(store):
    """Return the events of a store, counted by what popularity tells apart."""
    found = Counter()
    for block in store.all_events():
        found.update(
            zip(*(getattr(block, name).tolist() for name in ("user", "item", "place", "time_ms")), strict=True)
        )
    return found


def told(popularity):
    rows = popularity.counted().rows
    return Counter(zip(*(getattr(rows, name).tolist() for name in ("user", "item", "place", "time_ms")), strict=True))


def features_of(popularity, bundle):
    """Ask about every item and place of a bundle, before, among and after all events."""
    items, places = len(bundle.vocabularies["item"]), len(bundle.vocabularies["place"])
    item = np.tile(np.arange(min(items, 12)), 4 * places)
    row = np.repeat(np.arange(4 * places), min(items, 12))
    moment = np.repeat(np.array([-(2**51), 20 * DAY_MS, 41 * DAY_MS, 2**51]), places)
    return popularity_features(popularity, item, row, moment, np.tile(np.arange(places), 4))


def counted_anew(store, bundle):
    """Return the popularity of a store's events as training counts them: by what the bundle calls items and places."""
    index = PopularityIndex(num_items=bundle.features.num_items)
    names = {kind: ["", *store.names(kind)] for kind in ("item", "place")}
    for block in store.all_events():
        item, place = (
            bundle.vocabularies[kind].indices([names[kind][code] for code in getattr(block, kind)])
            for kind in ("item", "place")
        )
        index = index.joined(item, block.time_ms, place)
    return index


def check_equal(model, bundle):
    wanted = features_of(counted_anew(model.store, bundle), bundle)
    found = features_of(model.assembler.popularity, bundle)
    for name, column in wanted.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)
    assert told(model.popularity) == rows_of(model.store)


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_a_count_of_what_is_there_after_whatever_happens(seed, opened, bundle, monkeypatch):
    chance = random.Random(seed)
    monkeypatch.setattr(module, "CHANGES_AT_ONCE", chance.choice([3, 10_000]))
    monkeypatch.setattr(module, "KEPT_S", 0.0)
    monkeypatch.setattr(module, "KEPT_EVENTS", 4)
    store = opened()
    store.append(some(chance, 30))
    model = LiveModel(bundle, store)
    check_equal(model, bundle)
    acts = [*["append"] * 16, *["delete", "compact", "trim", "keep", "restart"] * 5]
    chance.shuffle(acts)
    for act in acts:
        if act == "append":
            store.append(some(chance, chance.randrange(1, 12)))
        elif act == "delete":
            store.delete_user(f"user {chance.randrange(5)}")
        elif act == "compact":
            store.compact(CompactionPolicy(most_events=chance.randrange(2, 9), trim_stream=False), now_ms=0)
        elif act == "trim":
            store.set_cursor("another", store.last_sequence())
            store.compact(CompactionPolicy(), now_ms=0)
        elif act == "keep":
            model.popularity.keep(ending=chance.random() < 0.5)
        elif act == "restart":
            store = opened()
            model = LiveModel(bundle, store)
        if chance.random() < 0.6:
            model.follow()
            check_equal(model, bundle)
    model.follow()
    check_equal(model, bundle)


def test_models_share_one_count_and_each_reads_it_by_its_own_names(opened, bundle):
    store = opened()
    chance = random.Random(3)
    store.append(some(chance, 50))
    shared = StorePopularity(store)
    models = [LiveModel(bundle, store, shared) for _ in range(2)]
    store.append(some(chance, 50))
    for model in models:
        model.follow()
    first, second = (model.assembler.popularity for model in models)
    assert first.counts is second.counts
    assert 0 < first.unknown.events < first.events == 100  # only what the bundle does not know is counted once more
    check_equal(models[0], bundle)


def test_a_start_reads_the_snapshot_and_the_later_stream_alone(opened, bundle, monkeypatch):
    store = opened()
    chance = random.Random(1)
    store.append(some(chance, 200))
    before = StorePopularity(store)
    before.follow()
    assert before.keep()
    assert not before.keep()
    assert store.cursor(NAME) == 200  # the stream stays as long as a start needs it
    store.append(some(chance, 20))
    store = opened()
    monkeypatch.setattr(type(store), "all_events", lambda *_: pytest.fail("all events were read"))
    after = StorePopularity(store)
    followed = after.follow()
    assert followed.changes == 20
    monkeypatch.undo()
    assert told(after) == rows_of(store)


@pytest.mark.parametrize("take", ["delete", "compact"])
def test_what_is_taken_away_takes_the_snapshot_along_and_an_older_one_is_not_kept_after_it(opened, take):
    store = opened()
    store.append(some(random.Random(2), 100, users=3))
    popularity = StorePopularity(store)
    popularity.follow()
    assert popularity.keep()
    assert store.snapshot(NAME) is not None
    if take == "delete":
        store.delete_user("user 1")
    else:
        store.compact(CompactionPolicy(most_events=10, trim_stream=False), now_ms=0)
    assert store.snapshot(NAME) is None
    old = popularity.counted()
    assert not store.put_snapshot(NAME, old.sequence, packed(old.rows))  # made before, arrives after
    assert store.snapshot(NAME) is None
    popularity.follow()
    assert popularity.keep(ending=True)
    kept = store.snapshot(NAME)
    rows = unpacked(kept)
    assert Counter(rows.user.tolist()) == Counter(user for user, *_ in rows_of(store).elements())


DAMAGE = {
    "no parts": lambda parts: [],
    "a part is gone": lambda parts: parts[:-1],
    "a byte differs": lambda parts: [parts[0], b"\x01" + parts[1][1:], *parts[2:]],
    "another format": lambda parts: [b"sstpop00" + parts[0][8:], *parts[1:]],
    "a short head": lambda parts: [parts[0][:7], *parts[1:]],
    "some other thing": lambda parts: [b"hello"],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_snapshot_that_cannot_be_read_is_counted_anew(opened, damage):
    store = opened()
    store.append(some(random.Random(5), 60))
    popularity = StorePopularity(store)
    parts = packed(popularity.counted().rows)
    assert store.put_snapshot(NAME, 60, DAMAGE[damage](parts))
    assert told(StorePopularity(store)) == rows_of(store)


def test_a_snapshot_of_a_later_time_than_the_store_is_counted_anew(opened):
    store = opened()
    store.append(some(random.Random(5), 60))
    strange = EventRows(
        user=np.ones(3, np.uint32), item=np.ones(3, np.uint32), place=np.zeros(3, np.uint32), time_ms=np.arange(3)
    )
    assert store.put_snapshot(NAME, 61, packed(strange))
    assert told(StorePopularity(store)) == rows_of(store)


def test_large_snapshots_have_parts_and_a_later_one_replaces_them_all(opened, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 64)
    store = opened()
    chance = random.Random(5)
    for count in (60, 40):
        store.append(some(chance, count))
        popularity = StorePopularity(store)
        popularity.follow()
        assert popularity.keep(ending=True)
        kept = store.snapshot(NAME)
        assert len(kept.parts) > 2
        assert len(unpacked(kept)) == len(popularity.counted().rows)
    assert unpacked(Snapshot(sequence=1, parts=kept.parts)).user.tolist() == popularity.counted().rows.user.tolist()


def test_who_was_deleted_is_told_and_where_the_stream_was_cut_it_is_said_so(opened):
    store = opened()
    store.append(some(random.Random(5), 60, users=2))
    one, other = StorePopularity(store), StorePopularity(store)
    for each in (one, other):
        each.follow()
    code = store.head("user 1").user
    store.delete_user("user 1")
    assert one.follow().gone == {code}
    store.set_cursor("another", store.last_sequence())
    store.compact(CompactionPolicy(), now_ms=0)
    with pytest.raises(StreamTrimmed):
        store.changes(60, 10)
    assert other.follow().anew
    assert told(other) == told(one) == rows_of(store)
    assert not other.follow().changes


def test_a_store_that_fails_half_way_leaves_the_count_as_it_was(opened, monkeypatch):
    store = opened()
    store.append(some(random.Random(5), 30, users=2))
    popularity = StorePopularity(store)
    popularity.follow()
    store.append(some(random.Random(6), 30, users=2))
    store.compact(CompactionPolicy(most_events=5, trim_stream=False), now_ms=0)
    with monkeypatch.context() as broken:
        broken.setattr(store, "head", lambda user_id: (_ for _ in ()).throw(StoreFull("away")))
        with pytest.raises(StoreFull):
            popularity.follow()
    popularity.follow()
    assert told(popularity) == rows_of(store)
    with monkeypatch.context() as broken:
        broken.setattr(store, "put_snapshot", lambda *_: (_ for _ in ()).throw(StoreFull("full")))
        assert not popularity.keep(ending=True)  # a full store is no reason to fail
    assert popularity.keep(ending=True)


def test_encoding_counts_nothing(opened, bundle, monkeypatch):
    store = opened()
    store.append(some(random.Random(5), 30))
    monkeypatch.setattr(StorePopularity, "_opened", lambda self: pytest.fail("events were counted"))
    model = LiveModel(bundle, store)
    assert len(model.history(store.history("user 1"))[1].time_ms)
