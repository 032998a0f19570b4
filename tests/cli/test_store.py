"""`sostenuto store` on small stores."""

import json
import subprocess
import sys

import pytest
from tests.serving.small_bundles import exported, write_whole
from tests.serving.stores.events import event
from tests.serving.stores.redis_server import start_redis

from sostenuto.serving.bundle_manifest import VERSION_DIGITS, read_manifest
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.warming import warm_up


@pytest.fixture
def folder(tmp_path):
    with open_store(tmp_path / "store", RecordLayout()) as store:
        store.append([event(at, user=f"u{at % 3}") for at in range(30)])
        store.set_cursor("encoder", 10)
    return tmp_path / "store"


def test_a_store_is_counted_and_verified(call, folder):
    told = json.loads(call("store", "stats", folder, "--json").stdout)
    assert (told["users"], told["events"], told["cursors"]) == (3, 30, {"encoder": 10})
    assert "encoder: 20 behind" in call("store", "stats", f"lmdb:{folder}").stdout
    assert json.loads(call("store", "verify", folder, "--json").stdout) == {"problems": []}
    assert "none" in call("store", "verify", folder).stdout


def test_a_store_is_compacted(call, folder):
    told = json.loads(call("store", "compact", folder, "--most-events", 4, "--rewrite", "--json").stdout)
    assert told == {"users": 3, "events": 18, "changes": 0, "rewritten": True}
    assert json.loads(call("store", "compact", folder, "--most-days", 1, "--json").stdout)["events"] == 12


def test_a_backup_is_restored_without_the_deleted(call, folder, tmp_path):
    assert json.loads(call("store", "backup", folder, tmp_path / "backup", "--json").stdout)["events"] == 30
    with open_store(folder) as store:
        store.delete_user("u1")
    answer = call("store", "restore", tmp_path / "backup", tmp_path / "new", code=2)
    assert "--deletions STORE_OR_BACKUP" in answer.stderr
    told = call("store", "restore", tmp_path / "backup", tmp_path / "new", "--deletions", folder, "--json").stdout
    assert json.loads(told)["left_out"] == 1
    call("store", "backup", folder, tmp_path / "later")
    told = call("store", "restore", tmp_path / "backup", tmp_path / "new2", "--deletions", tmp_path / "later", "--json")
    assert json.loads(told.stdout)["users"] == 2
    assert "30" in call("store", "restore", tmp_path / "backup", tmp_path / "new3", "--no-deletions").stdout
    answer = call("store", "restore", tmp_path / "backup", tmp_path / "new3", "--no-deletions", code=1)
    assert "must be empty" in answer.stderr


def test_a_store_migrates_to_a_server_and_back(call, folder, tmp_path):
    server = start_redis(tmp_path / "redis")
    try:
        assert json.loads(call("store", "migrate", folder, server.url(), "--json").stdout)["events"] == 30
        assert json.loads(call("store", "stats", server.url(), "--json").stdout)["kind"] == "redis"
        call("store", "migrate", server.url(), tmp_path / "back")
    finally:
        server.end()
    assert json.loads(call("store", "stats", tmp_path / "back", "--json").stdout)["events"] == 30


def test_a_store_that_is_not_there_is_one_line(call, tmp_path):
    assert "there is none" in call("store", "stats", tmp_path / "nowhere", code=1).stderr
    assert "must be one of" in call("store", "stats", "ftp://x", code=2).stderr


def test_a_prepared_log_warms_a_store_up_once(call, tmp_path):
    data = write_whole(tmp_path / "prepared")
    exported(data, "sdim", tmp_path / "bundle")
    arguments = (
        "store",
        "warm-up",
        tmp_path / "store",
        "--data",
        data.folder,
        "--bundle",
        tmp_path / "bundle",
        "--json",
    )
    told = json.loads(call(*arguments).stdout)
    events = len(data.behaviours.item)
    assert (told["new_events"], told["events"]) == (events, events)
    assert list(told["states"].values()) == [told["users"]]
    again = json.loads(call(*arguments).stdout)
    assert (again["new_events"], again["events"]) == (0, events)
    early = json.loads(
        call("store", "warm-up", tmp_path / "early", "--data", data.folder, "--until", "2017-07-20", "--json").stdout
    )
    assert 0 < early["events"] < events


def test_an_encoder_of_its_own_catches_up(call, tmp_path):
    data = write_whole(tmp_path / "prepared")
    exported(data, "sdim", tmp_path / "bundle")
    call("store", "warm-up", tmp_path / "store", "--data", data.folder)
    told = call("store", "encode", tmp_path / "store", "--bundle", tmp_path / "bundle", "--once").stderr
    version = read_manifest(tmp_path / "bundle").hash[:VERSION_DIGITS]
    assert f"states-{version}: 1," in told  # more than a thousand events
    assert f"states-{version}: 0 changes behind at the end" in told
    with open_store(tmp_path / "store") as store:
        user = next(iter(store.users()))
        assert store.state(version, user).revision == store.head(user).revision
        assert store.stats().states == store.stats().users


def test_an_encoder_ends_on_a_signal(tmp_path):
    data = write_whole(tmp_path / "prepared")
    exported(data, "repeat", tmp_path / "bundle")
    with open_store(tmp_path / "store", RecordLayout.of(data.features.behaviour_fields)) as store:
        warm_up(store, data)
    command = [sys.executable, "-m", "sostenuto", "store", "encode", str(tmp_path / "store")]
    process = subprocess.Popen([*command, "--bundle", str(tmp_path / "bundle")], stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        assert "behind" in process.stderr.readline()
        process.terminate()
        assert process.wait(60) == 0
