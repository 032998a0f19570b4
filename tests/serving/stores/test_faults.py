"""Stores that are full, gone, damaged, or were taken away: a clean answer, and nothing half-written."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serving.stores.conftest import LAYOUT
from tests.serving.stores.events import event, outcomes, seen
from tests.serving.stores.redis_server import start_redis

from sostenuto.schema.errors import SpecError, StoreBusy, StoreDamaged, StoreFull, StoreGone
from sostenuto.serving.stores.lmdb_store import LmdbStore
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.stores.redis_store import RedisStore, parse_url
from sostenuto.serving.stores.store import CompactionPolicy

MIB = 2**20


@pytest.fixture
def own_redis(tmp_path):
    server = start_redis(tmp_path / "redis")
    yield server
    server.end()


@pytest.fixture(params=["lmdb", "redis"])
def small_store(request, tmp_path):
    """A store with little room."""
    if request.param == "lmdb":
        with LmdbStore(tmp_path / "store", LAYOUT, most_bytes=2 * MIB) as store:
            yield store
    else:
        server = start_redis(tmp_path / "redis")
        with server.client() as client, RedisStore(server.url(), LAYOUT) as store:
            client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 2 * MIB)
            yield store
        server.end()


def fill_up(store):
    """Append until the store is full; return how many events it took."""
    taken = 0
    for start in range(0, 1_000_000, 500):
        try:
            store.append([event(start + at, user=f"u{at % 5}") for at in range(500)])
        except StoreFull:
            return taken
        taken += 500
    raise AssertionError("it never was full")


def test_a_full_store_takes_nothing_half_reads_and_lets_go(small_store):
    store = small_store
    taken = fill_up(store)
    assert taken > 0
    assert store.stats().events == taken == sum(store.head(f"u{at}").count for at in range(5))
    assert store.verify() == []
    with pytest.raises(StoreFull, match="compact"):
        store.append([event(10**7 + at, user="more") for at in range(5_000)])
    assert store.head("more") is None
    assert len(store.history("u0")) == taken // 5
    assert store.delete_user("u0") is not None
    assert store.compact(CompactionPolicy(most_events=100), now_ms=0).events == taken // 5 * 4 - 400
    assert store.verify() == []
    assert outcomes(store.append([event(1, user="more")])) == ["new"]
    assert store.verify() == []


def test_states_of_a_full_store_can_be_dropped(tmp_path):
    with LmdbStore(tmp_path / "store", LAYOUT, most_bytes=2 * MIB) as store:
        store.append([event(1, user=f"u{at}") for at in range(2_000)])
        kept = 0
        with contextlib.suppress(StoreFull):
            for at in range(2_000):
                kept += store.put_state("v1", f"u{at}", revision=2_000, newest_ms=0, blob=bytes(2_000))
        assert 0 < kept < 2_000
        assert store.stats().states == kept
        assert store.drop_states("v1") == kept
        assert store.put_state("v1", "u1", revision=2_000, newest_ms=0, blob=bytes(2_000))
        assert store.verify() == []


def test_a_store_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path):
    script = f"""
import resource
from sostenuto.schema.errors import StoreFull
from sostenuto.serving.stores.lmdb_store import LmdbStore
from tests.serving.stores.conftest import LAYOUT
from tests.serving.stores.events import event
with LmdbStore({str(tmp_path / "store")!r}, LAYOUT) as store:
    store.append([event(1)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({2 * MIB}, hard))
    try:
        for start in range(10, 200_000, 1_000):
            store.append([event(start + at) for at in range(1_000)])
            taken = start + 1_000
    except StoreFull as error:
        assert "must have room" in str(error), error
    else:
        raise AssertionError("never full")
    assert store.head("ann").count == taken - 9, (store.head("ann"), taken)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.append([event(10**6 + at) for at in range(5_000)])
    assert store.verify() == []
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_server_that_is_gone_is_told_and_comes_back_with_everything(own_redis):
    with RedisStore(own_redis.url(), LAYOUT) as store:
        store.append([event(1), event(2)])
        own_redis.kill()
        for call in (lambda: store.head("ann"), lambda: store.append([event(3)]), lambda: store.delete_user("ann")):
            with pytest.raises(StoreGone, match="must answer"):
                call()
        with pytest.raises(StoreGone, match="must answer"):
            RedisStore(own_redis.url(), LAYOUT)
        own_redis.start()
        assert seen(store) == [1_000, 2_000]
        assert outcomes(store.append([event(2), event(3)])) == ["duplicate", "new"]


def test_a_store_that_was_removed_from_its_server_says_so(own_redis):
    with RedisStore(own_redis.url(), LAYOUT) as store, own_redis.client() as client:
        client.flushall()
        with pytest.raises(StoreGone, match="was removed"):
            store.last_sequence()


@pytest.mark.parametrize(
    ("name", "value"), [("appendfsync", "everysec"), ("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")]
)
def test_a_server_that_may_lose_events_is_refused_or_warned_of(own_redis, name, value):
    with own_redis.client() as client:
        client.config_set(name, value)
    with pytest.raises(SpecError, match=f"needs {name} "):
        RedisStore(own_redis.url(), LAYOUT)
    with pytest.warns(UserWarning, match=f"needs {name} "):
        RedisStore(own_redis.url(), LAYOUT, weak="warn").close()


def test_no_password_is_told():
    url = "redis://me:secret@localhost:1/0?name=shop"
    assert parse_url(url) == ("redis://me:secret@localhost:1/0", "shop", "redis://localhost:1/0?name=shop")
    with pytest.raises(StoreGone) as refused:
        RedisStore(url, LAYOUT)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("location", ["redis://h/x?name=a*", "redis://h:port/0", "http://h/", "redis://h?nope=1"])
def test_a_location_that_cannot_be_is_refused(location):
    with pytest.raises((SpecError, StoreGone)):
        open_store(location, LAYOUT)


@pytest.mark.parametrize("folder", ["/proc/nowhere", "FILE/store"])
def test_a_folder_that_cannot_be_written_is_told(folder, tmp_path):
    (tmp_path / "FILE").write_text("")
    with pytest.raises(StoreGone, match="must be a folder that can be written"):
        LmdbStore(folder.replace("FILE", str(tmp_path / "FILE")), LAYOUT)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_told(tmp_path):
    LmdbStore(tmp_path / "store", LAYOUT).close()
    (tmp_path / "store").chmod(0o500)
    (tmp_path / "store" / "data.mdb").chmod(0o400)
    with pytest.raises(StoreGone):
        LmdbStore(tmp_path / "store", LAYOUT)
    (tmp_path / "store").chmod(0o700)


@pytest.fixture
def closed_store(tmp_path):
    """The folder of a store of some megabytes that is closed."""
    with LmdbStore(tmp_path / "store", LAYOUT) as store:
        for start in range(0, 10_000, 5_000):
            store.append([event(start + at, user=f"u{at % 50}") for at in range(5_000)])
    return tmp_path / "store"


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_file_that_was_cut_is_refused(closed_store, share):
    file = closed_store / "data.mdb"
    os.truncate(file, int(file.stat().st_size * share) // 4_096 * 4_096)
    with pytest.raises(StoreDamaged, match="restore a backup"):
        LmdbStore(closed_store)


@pytest.mark.parametrize("content", [b"", b"no store", os.urandom(10_000)])
def test_a_file_that_is_no_store_is_refused(tmp_path, content):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "data.mdb").write_bytes(content)
    with pytest.raises((StoreDamaged, StoreGone)):
        LmdbStore(tmp_path / "store")


def test_pages_that_were_overwritten_are_found(closed_store):
    file = closed_store / "data.mdb"
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 2 // 4_096 * 4_096)
        opened.write(os.urandom(8 * 4_096))
    try:
        with LmdbStore(closed_store) as store:
            assert store.verify() != []
    except StoreDamaged:
        pass  # seen already when it was opened


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda client: client.delete("sostenuto:e:1"), "the head counts 3 events, there are 0"),
        (lambda client: client.setrange("sostenuto:e:1", 0, (2**52 + 10**9).to_bytes(8, "big")), "not in order"),
        (lambda client: client.hdel("sostenuto:i:1", *client.hkeys("sostenuto:i:1")[:1]), "ids of events do not fit"),
        (lambda client: client.hset("sostenuto:meta", "sequence", 1), "sequences beyond"),
        (lambda client: client.hset("sostenuto:user_ids", "1", "bob"), "a code and no head"),
        (lambda client: client.append("sostenuto:e:1", b"x"), "records are not whole"),
    ],
)
def test_what_contradicts_itself_is_found(own_redis, break_it, told):
    with RedisStore(own_redis.url(), LAYOUT) as store, own_redis.client() as client:
        store.append([event(1), event(2), event(3)])
        assert store.verify() == []
        break_it(client)
        assert any(told in problem for problem in store.verify()), store.verify()


def test_values_of_another_kind_are_damage(own_redis):
    with RedisStore(own_redis.url(), LAYOUT) as store, own_redis.client() as client:
        client.delete("sostenuto:users")
        client.set("sostenuto:users", "x")
        with pytest.raises(StoreDamaged, match="whole store"):
            store.head("ann")


def test_a_process_opens_a_folder_once(tmp_path):
    with LmdbStore(tmp_path / "store", LAYOUT), pytest.raises(StoreBusy, match="open already"):
        LmdbStore(tmp_path / "store", LAYOUT)
    LmdbStore(tmp_path / "store").close()


def in_another_process(code, folder):
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    start = (
        "import sys\nfrom sostenuto.serving.stores.lmdb_store import LmdbStore\n"
        "from tests.serving.stores.conftest import LAYOUT\nfrom tests.serving.stores.events import event\n"
        f"store = LmdbStore({str(folder)!r}, LAYOUT)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", start + code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_processes_share_a_folder_and_none_rewrites_under_another(tmp_path):
    folder = tmp_path / "store"
    with LmdbStore(folder, LAYOUT) as store:
        store.append([event(1)])
        other = in_another_process(
            "print(store.append([event(1), event(2)])[1].sequence, flush=True)\nsys.stdin.readline()\nstore.close()",
            folder,
        )
        assert other.stdout.readline() == "2\n"
        assert seen(store) == [1_000, 2_000]
        with pytest.raises(StoreBusy, match="open nowhere else"):
            store.rewrite()
        assert outcomes(store.append([event(3)])) == ["new"]
        other.communicate("\n")
        store.rewrite()
        assert seen(store) == [1_000, 2_000, 3_000]


def test_a_map_that_another_process_outgrew_is_followed(tmp_path):
    folder = tmp_path / "store"
    with LmdbStore(folder, LAYOUT, most_bytes=MIB) as store:
        store.append([event(1)])
        other = in_another_process("store.append([event(10 + at) for at in range(9_000)])\nprint('done')", folder)
        assert other.communicate()[0] == "done\n"
        assert store.head("ann").count == 9_001
        assert len(store.history("ann")) == 9_001


def test_what_a_killed_rewrite_left_is_removed(tmp_path):
    folder = tmp_path / "store"
    LmdbStore(folder, LAYOUT).close()
    (folder / "rewriting").mkdir()
    shutil.copy(folder / "data.mdb", folder / "rewriting")
    LmdbStore(folder).close()
    assert not (folder / "rewriting").exists()


def test_after_a_rewrite_no_byte_of_a_deleted_user_is_on_the_disk(kind, tmp_path):
    server = start_redis(tmp_path / "place") if kind == "redis" else None
    location = server.url() if server else str(tmp_path / "place")
    try:
        with open_store(location, LAYOUT) as store:
            store.append([event(at, user="Ann-Perkins-7291") for at in range(200)] + [event(1, user="bob")])
            store.set_user_fields("Ann-Perkins-7291", {"town": "Pawnee-5512"})
            store.put_state("v1", "Ann-Perkins-7291", revision=200, newest_ms=0, blob=b"state-of-ann-8263")
            hashed = store.history("Ann-Perkins-7291").head
            assert hashed.count == 200
            told = on_disk(tmp_path)
            assert all(word in told for word in (b"Ann-Perkins-7291", b"Pawnee-5512", b"state-of-ann-8263"))
            store.delete_user("Ann-Perkins-7291")
            store.rewrite()
            told = on_disk(tmp_path)
            assert not any(word in told for word in (b"Ann-Perkins-7291", b"Pawnee-5512", b"state-of-ann-8263"))
            assert b"bob" in told
    finally:
        if server:
            server.end()


def on_disk(folder):
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())
