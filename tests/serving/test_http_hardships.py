"""Stores that go away or are full, damaged bundles, clocks that go back, clients that leave: a real server lives on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serving.live_server import live_server
from tests.serving.server_process import ROOT, Running
from tests.serving.small_bundles import exported, trained_on, write_whole
from tests.serving.stores.redis_server import start_redis

from sostenuto.serving.bundle_manifest import MANIFEST
from sostenuto.serving.exporting import export_bundle
from sostenuto.serving.stores.opening import open_store

pytestmark = pytest.mark.slow

RANK = {"user_id": "ann", "candidates": ["i1", "i2", "i3"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("bundles"))
    data = write_whole(folder / "prepared")
    exported(data, "sdim", folder / "bundles" / "sdim")
    export_bundle(trained_on(data, "sdim", seed=2), data, folder / "bundles" / "again")
    return folder / "bundles"


@pytest.fixture
def bundles(made: Path, tmp_path: Path) -> Path:
    """Bundles that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "bundles"))


class Away:
    """A store that a test takes away and brings back."""

    def __init__(self, kind: str, folder: Path, *options: str) -> None:
        self.folder = folder / "store"
        self.redis = start_redis(folder / "redis", *options) if kind == "redis" else None
        self.location = f"lmdb:{self.folder}" if self.redis is None else self.redis.url()

    def leave(self) -> None:
        if self.redis is None:
            self.folder.rename(self.folder.with_name("elsewhere"))
        else:
            self.redis.kill()

    def come_back(self) -> None:
        if self.redis is None:
            self.folder.with_name("elsewhere").rename(self.folder)
        else:
            self.redis.start()


@pytest.fixture(params=["lmdb", "redis"])
def away(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Away]:
    one = Away(request.param, tmp_path)
    yield one
    if one.redis is not None:
        one.redis.end()


def memory_mb(server: Running) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS"))


def check_refused(answer: httpx.Response, status: int) -> None:
    """A problem document with nothing of the inside; one that passes says when to come again."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert not [word for word in ("/tmp", "redis", "lmdb", "Traceback", ".py") if word in answer.text]
    assert status != 503 or int(answer.headers["retry-after"]) >= 1


def soon(what: Callable[[], Any], patience_s: float = 60.0) -> None:
    until = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_store_that_goes_away_under_load_loses_nothing_and_is_taken_up_again(away, bundles, tmp_path):
    waiting = [[f"e{at}-{n}" for n in range(8)] for at in range(400)]
    statuses: Counter[tuple[str, int]] = Counter()
    ended, lock = threading.Event(), threading.Lock()

    def send(server: Running) -> None:
        with server.client() as client:
            while True:
                with lock:
                    if not waiting:
                        return
                    batch = waiting.pop()
                rows = [{"event_id": e, "user_id": "ann", "item_id": "i1", "time_ms": 1_000} for e in batch]
                answer = client.post("/v1/events", json=rows)
                with lock:
                    statuses["events", answer.status_code] += 1
                    if answer.status_code != 200:
                        check_refused(answer, 503)
                        waiting.append(batch)
                if answer.status_code != 200:
                    time.sleep(0.05)

    def rank(server: Running) -> None:
        with server.client() as client:
            while not ended.is_set():
                answer = client.post("/v1/rank", json=RANK)
                statuses["rank", answer.status_code] += 1
                if answer.status_code != 200:
                    check_refused(answer, 503)

    with live_server(tmp_path / "server", store=away.location, bundle=bundles / "sdim") as server:
        before = memory_mb(server)
        threads = [threading.Thread(target=f, args=(server,)) for f in (send, send, rank)]
        for thread in threads:
            thread.start()
        with server.client() as client:
            soon(lambda: statuses["events", 200] > 20)
            away.leave()
            soon(lambda: statuses["events", 503] > 5)
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 503
            event = {"event_id": "late", "user_id": "ann", "item_id": "i1"}
            check_refused(client.post("/v1/events", json=event), 503)
            check_refused(client.delete("/v1/users/ann"), 503)
            away.come_back()
            for thread in threads[:2]:
                thread.join(120)
            ended.set()
            threads[2].join(20)
            assert not waiting
            assert client.get("/readyz").status_code == 200
            assert client.post("/v1/rank", json=RANK).json()["history_length"] >= 3_200
            assert client.get("/v1/users/ann").json()["count"] in {3_200, 3_201}  # "late" was refused, not denied
        assert memory_mb(server) < before + 150
    assert {status for kind, status in statuses} == {200, 503}
    with open_store(away.location) as store:
        assert store.verify() == []
        assert store.stats().events in {3_200, 3_201}


def test_what_would_go_into_a_removed_folder_is_never_acknowledged(bundles, tmp_path):
    store = tmp_path / "store"
    with live_server(tmp_path / "server", store=str(store), bundle=bundles / "sdim") as server:
        with server.client() as client:
            event = {"user_id": "ann", "item_id": "i1"}
            assert client.post("/v1/events", json=event).status_code == 200
            shutil.rmtree(store)
            for _ in range(3):
                check_refused(client.post("/v1/events", json=event), 503)
            check_refused(client.put("/v1/users/ann", json={"fields": {}}), 503)
            check_refused(client.delete("/v1/users/ann"), 503)
            assert client.get("/readyz").status_code == 503
            assert client.get("/healthz").status_code == 200
        server.end()
        assert "Traceback" not in server.errors.read_text()
    assert not store.exists()


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_a_full_store_refuses_events_and_does_all_else(kind, bundles, tmp_path):
    store = Away(kind, tmp_path, "--maxmemory", "5mb", "--maxmemory-policy", "noeviction")
    try:
        options = {"store_mb": 2} if kind == "lmdb" else {}
        server = live_server(tmp_path / "server", store=store.location, bundle=bundles / "sdim", **options)
        with server as running, running.client() as client:
            for n in range(400):
                rows = [
                    {"event_id": f"{n}-{m}", "user_id": f"u{n}", "item_id": "i1", "time_ms": 1_000 + m}
                    for m in range(200)
                ]
                answer = client.post("/v1/events", json=rows)
                if answer.status_code != 200:
                    break
            check_refused(answer, 507)
            check_refused(client.post("/v1/events", json=rows), 507)  # and stays so
            assert client.get(f"/v1/users/u{n}").status_code == 404  # nothing of the batch is there
            assert client.post("/v1/rank", json={**RANK, "user_id": "u0"}).json()["history_length"] == 200
            assert client.get("/v1/users/u0").json()["count"] == 200
            assert client.get("/readyz").status_code == 200
            for gone in range(n // 2):
                assert client.delete(f"/v1/users/u{gone}").json()["events"] == 200
            soon(lambda: client.post("/v1/events", json=rows).status_code == 200)
            assert client.get(f"/v1/users/u{n}").json()["count"] == 200
    finally:
        if store.redis is not None:
            store.redis.end()


def test_a_redis_that_says_nothing_holds_nobody_up(bundles, tmp_path):
    store = Away("redis", tmp_path)
    try:
        limits = {"request_timeout_s": 2.0}
        with (
            live_server(tmp_path / "server", store=store.location, bundle=bundles / "sdim", limits=limits) as server,
            server.client() as client,
        ):
            assert client.post("/v1/rank", json=RANK).status_code == 200
            store.redis.process.send_signal(signal.SIGSTOP)
            try:
                for _ in range(2):
                    began = time.monotonic()
                    check_refused(client.post("/v1/rank", json=RANK), 503)
                    check_refused(client.post("/v1/events", json={"user_id": "a", "item_id": "i1"}), 503)
                    assert time.monotonic() - began < 10
                assert client.get("/healthz").status_code == 200
            finally:
                store.redis.process.send_signal(signal.SIGCONT)
            soon(lambda: client.post("/v1/rank", json=RANK).status_code == 200, 90)
            soon(lambda: client.post("/v1/events", json={"user_id": "a", "item_id": "i1"}).status_code == 200, 90)
    finally:
        store.redis.end()


DAMAGES = {
    "cut": lambda folder: os.truncate(folder / "model" / "weights.safetensors", 100),
    "changed": lambda folder: (folder / "items.parquet").write_bytes(b"PAR1" * 300),
    "manifest": lambda folder: (folder / MANIFEST).write_text("[" * 100_000),
    "other format": lambda folder: (folder / MANIFEST).write_text('{"format_version": 99}'),
    "files gone": lambda folder: shutil.rmtree(folder / "vocab"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_starts_no_server_and_says_why(damage, bundles, tmp_path):
    DAMAGES[damage](bundles / "sdim")
    command = [sys.executable, "-m", "sostenuto", "serve", str(bundles / "sdim"), "--store", str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode not in {0, -signal.SIGBUS}
    assert "Traceback" not in done.stderr
    assert "sdim" in done.stderr
    assert not (tmp_path / "store").exists()


def test_damaged_bundles_are_refused_while_others_answer_and_a_damaged_canary_leaves_the_main_alone(bundles, tmp_path):
    store = f"lmdb:{tmp_path / 'store'}"
    for name, damage in DAMAGES.items():
        damage(Path(shutil.copytree(bundles / "again", bundles / name)))

    def answers(client: httpx.Client) -> dict[str, str]:
        """Return who answers which user."""
        asked = {f"u{n}": client.post("/v1/rank", json={**RANK, "user_id": f"u{n}"}) for n in range(20)}
        assert {answer.status_code for answer in asked.values()} == {200}
        return {user: answer.json()["version"] for user, answer in asked.items()}

    with live_server(tmp_path / "server", store=store, bundle=bundles / "sdim") as server, server.client() as client:
        for name in DAMAGES:
            check_refused(client.post("/v1/models", json={"bundle": name}), 422)
        main = client.get("/v1/models").json()["traffic"]["main"]
        other = client.post("/v1/models", json={"bundle": "again"}).json()["version"]
        traffic = {"main": main, "canary": other, "canary_share": 0.5}
        assert client.put("/v1/models/traffic", json=traffic).status_code == 200
        before = answers(client)
        assert set(before.values()) == {main, other}
        for file in bundles.rglob("*"):  # while it runs: nothing is read from there any more
            if file.is_file():
                os.truncate(file, 7)
        assert answers(client) == before
        for route, body in (("recommend", {"user_id": "u1"}), ("explain", {"user_id": "u1", "items": ["i1"]})):
            for version in (main, other):
                assert client.post(f"/v1/{route}", json={**body, "model": version}).status_code == 200
        check_refused(client.post("/v1/models", json={"bundle": "cut"}), 422)
        assert client.get("/v1/models").status_code == 200
    for file in (bundles / "sdim").rglob("*"):
        file.is_file() and file.unlink()
    shutil.rmtree(bundles / "sdim")
    shutil.copytree(made_again(bundles, tmp_path), bundles / "sdim")
    with live_server(tmp_path / "server", store=store, bundle=bundles / "sdim") as server, server.client() as client:
        assert set(answers(client).values()) == {main}  # the canary cannot be loaded any more


def made_again(bundles: Path, folder: Path) -> Path:
    """Export the first bundle anew; it has the same version."""
    data = write_whole(folder / "prepared")
    exported(data, "sdim", folder / "anew")
    return folder / "anew"


CLOCK = """
import time
_real, _real_ns = time.time, time.time_ns
def _moved():
    try:
        with open({file!r}) as file:
            return int(file.read() or 0)
    except OSError:
        return 0
time.time = lambda: _real() + _moved()
time.time_ns = lambda: _real_ns() + _moved() * 1_000_000_000
"""


def test_a_clock_that_goes_back_a_year_changes_no_order_of_arrival(bundles, tmp_path, monkeypatch):
    (tmp_path / "patched").mkdir()
    clock = tmp_path / "clock"
    (tmp_path / "patched" / "sitecustomize.py").write_text(CLOCK.format(file=str(clock)))
    (tmp_path / "server").mkdir()
    keys = {"served": {"folder": str(tmp_path / "lists"), "keep_days": 1}}
    options = {"store": f"lmdb:{tmp_path / 'store'}", "bundle": bundles / "sdim", **keys}
    path = f"{tmp_path / 'patched'}:{ROOT}/src:{ROOT}"
    with (
        live_server(tmp_path / "server", env={"PYTHONPATH": path}, **options) as server,
        server.client() as client,
    ):
        year_s = 365 * 86_400
        event = {"user_id": "ann", "item_id": "i1"}
        first = client.post("/v1/events", json={**event, "event_id": "1"}).json()["events"][0]
        soon(lambda: client.post("/v1/rank", json=RANK).json()["history_length"] == 1)
        clock.write_text(str(-year_s))
        second = client.post("/v1/events", json={**event, "event_id": "2"}).json()["events"][0]
        again = client.post("/v1/events", json={**event, "event_id": "1"}).json()["events"][0]
        assert (first["outcome"], second["outcome"], again["outcome"]) == ("new", "new", "duplicate")
        assert second["sequence"] > first["sequence"] == again["sequence"]
        soon(lambda: client.post("/v1/rank", json=RANK).json()["history_length"] == 1)  # what was strictly before now
        told = client.get("/v1/users/ann").json()["events"]
        assert [e["sequence"] for e in told] == [first["sequence"], second["sequence"]]  # newest first, by its own time
        assert told[0]["time_ms"] - told[1]["time_ms"] > (year_s - 600) * 1_000
        assert client.post("/v1/recommend", json={"user_id": "ann"}).status_code == 200
        clock.write_text("0")
        soon(lambda: client.post("/v1/rank", json=RANK).json()["history_length"] == 2)
        assert client.get("/readyz").status_code == 200
        gone = client.delete("/v1/users/ann").json()
        assert gone["events"] == 2
        assert gone["served_lists"] >= 4
    logged = b"".join(file.read_bytes() for file in (tmp_path / "lists").rglob("*") if file.is_file())
    assert b'"ann"' not in logged


def test_clients_that_go_away_cost_nothing_and_are_no_defect(bundles, tmp_path):
    body = json.dumps({**RANK, "candidates": [f"i{n}" for n in range(500)]}).encode()
    head = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with live_server(tmp_path / "server", store=f"lmdb:{tmp_path / 'store'}", bundle=bundles / "sdim") as server:
        with server.client() as client:
            assert client.post("/v1/rank", json=RANK).status_code == 200
            before = memory_mb(server)
            for n in range(300):
                with server.connect() as connection:
                    whole = head % len(body) + body
                    connection.sendall(whole[: (len(whole), len(whole) // 2, 40, len(whole))[n % 4]])
                    if n % 4 == 3:  # rubbish behind a whole request: the connection is closed before it is answered
                        connection.sendall(b"\x00\x01\r\n\r\n")
            soon(lambda: client.post("/v1/rank", json=RANK).status_code == 200)

            def idle() -> bool:
                lines = client.get("/metrics").text.splitlines()
                places = {line.split()[0]: float(line.split()[1]) for line in lines if "_under_way{" in line}
                return places['sostenuto_under_way{lane="score"}'] == 0

            soon(idle)
            assert memory_mb(server) < before + 100
        assert "Traceback" not in server.errors.read_text()
