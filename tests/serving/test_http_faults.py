"""Kills and swaps: nothing that was acknowledged is lost or doubled, and no request meets a half-made change."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from tests.serving.live_server import OverHTTP, live_server
from tests.serving.server_process import ROOT, Running
from tests.serving.small_bundles import exported, trained_on, write_whole
from tests.serving.stores.redis_server import place_of

from sostenuto.data.prepared import PreparedData
from sostenuto.serving.bundle import open_bundle
from sostenuto.serving.deployed import Deployed
from sostenuto.serving.exporting import export_bundle
from sostenuto.serving.scoring import Question
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.warming import warm_up

BATCH, USERS, SENDERS = 32, 50, 3
START_MS = 1_600_000_000_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_whole(Path(tmp_path_factory.mktemp("whole")) / "prepared")


@pytest.fixture(scope="module")
def bundles(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("bundles"))
    exported(data, "sdim", folder / "sdim")
    export_bundle(trained_on(data, "sdim", seed=2), data, folder / "sdim-again")
    return folder


@pytest.fixture(params=["lmdb", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with place_of(request.param, tmp_path) as place:
        yield place


class Stream:
    """Events that are sent in order by several threads; a batch that was not acknowledged is sent again."""

    def __init__(self, count: int, items: list[str]) -> None:
        self.waiting = [list(range(at, min(at + BATCH, count))) for at in range(0, count, BATCH)][::-1]
        self.items = items
        self.acknowledged: set[int] = set()
        self.again = 0
        self.lock = threading.Lock()

    def event(self, n: int) -> dict[str, Any]:
        return {
            "event_id": f"e{n}",
            "user_id": f"streamed-{n % USERS}",
            "item_id": self.items[n % len(self.items)],
            "time_ms": START_MS + n,
        }

    def send(self, server: Running) -> None:
        """Send until the server is gone or everything is acknowledged."""
        with server.client(headers={"content-type": "application/msgpack"}) as client:
            while True:
                with self.lock:
                    if not self.waiting:
                        return
                    batch = self.waiting.pop()
                try:
                    answer = client.post("/v1/events", content=msgspec.msgpack.encode([self.event(n) for n in batch]))
                    done = answer.status_code < 300
                except httpx.TransportError:
                    done = False
                with self.lock:
                    if done:
                        self.acknowledged.update(batch)
                    else:
                        self.again += 1
                        self.waiting.append(batch)
                if not done:
                    return


def killed_at_random(store: str, data: PreparedData, bundles: Path, folder: Path, *, kills: int, events: int) -> Stream:
    """Send a stream while server and encoder are killed again and again, then let it end in peace."""
    chance = random.Random(7)
    with open_store(store, RecordLayout.of(data.features.behaviour_fields)):
        pass
    stream = Stream(events, data.vocabulary("item")[2:])
    encoder = [sys.executable, "-m", "sostenuto", "store", "encode", store, "--bundle", str(bundles / "sdim")]
    for turn in range(kills + 1):
        worker = subprocess.Popen(
            encoder, cwd=ROOT, env={"PYTHONPATH": f"{ROOT}/src", "PATH": ""}, stderr=subprocess.DEVNULL
        )
        with live_server(folder / f"server-{turn}", store=store, bundle=bundles / "sdim", encode=False) as server:
            senders = [threading.Thread(target=stream.send, args=(server,)) for _ in range(SENDERS)]
            timers = []
            if turn < kills:
                timers = [threading.Timer(chance.uniform(0.05, 0.6), one.kill) for one in (server.process, worker)]
            for thread in (*timers, *senders):
                thread.start()
            for thread in (*timers, *senders):
                thread.join()
            server.process.poll()
        worker.kill()
        worker.wait()
    return stream


def check_all_there(store: str, stream: Stream, bundles: Path, events: int) -> None:
    assert not stream.waiting
    assert stream.acknowledged == set(range(events))
    bundle = open_bundle(bundles / "sdim")
    with open_store(store) as opened:
        seen: Counter[int] = Counter()
        for user in range(USERS):
            history = opened.history(f"streamed-{user}")
            assert history is not None
            seen.update((history.time_ms - START_MS).tolist())
        assert seen == Counter(range(events))  # none lost, none twice
        assert opened.verify() == []
        kept, fresh = Deployed.of(bundle, opened), Deployed.of(bundle, opened)
        items = stream.items[:20]
        found = 0
        for user in range(USERS):
            asked = Question(user_id=f"streamed-{user}", time_ms=START_MS + events + 1, items=items)
            found += opened.state(bundle.version, asked.user_id) is not None
            anew = fresh.states._encoded(asked.user_id, asked.time_ms)
            assert anew is not None
            request = fresh.scorer.request(asked)
            np.testing.assert_allclose(
                kept.scorer.scores(asked).logits, fresh.scorer.logits(anew, request), rtol=1e-5, atol=1e-5
            )
        assert found  # states that outlived a killed encoder were among them


@pytest.mark.slow
def test_kills_lose_and_double_nothing(store, data, bundles, tmp_path):
    stream = killed_at_random(store, data, bundles, tmp_path, kills=3, events=3_000)
    assert stream.again  # a kill met a batch under way
    check_all_there(store, stream, bundles, 3_000)


@pytest.mark.long
def test_thirty_kills_of_fifty_thousand_events_lose_and_double_nothing(store, data, bundles, tmp_path):
    stream = killed_at_random(store, data, bundles, tmp_path, kills=30, events=50_000)
    assert stream.again
    check_all_there(store, stream, bundles, 50_000)


@pytest.mark.slow
def test_models_are_swapped_under_load_without_a_dropped_or_mixed_ranking(data, bundles, tmp_path):
    store = f"lmdb:{tmp_path / 'store'}"
    with open_store(store, RecordLayout.of(data.features.behaviour_fields)) as opened:
        warm_up(opened, data)
    body = {"user_id": "household-7", "candidates": data.vocabulary("item")[2:22], "time_ms": 1_506_900_000_000}
    answers: list[tuple[int, Any]] = []
    ended = threading.Event()

    def ask(server: Running) -> None:
        with server.client() as client:
            while not ended.is_set():
                answer = client.post("/v1/rank", json=body)
                answers.append((answer.status_code, answer.json()))

    with live_server(tmp_path / "server", store=store, bundle=bundles / "sdim", workers=2) as server:
        askers = [threading.Thread(target=ask, args=(server,)) for _ in range(3)]
        for thread in askers:
            thread.start()
        with OverHTTP(server) as control:
            first = control.get("/v1/models")["traffic"]["main"]
            second = control.post("/v1/models", {"bundle": "sdim-again"})["version"]
            for turn in range(8):
                control.put("/v1/models/traffic", {"main": (second, first)[turn % 2]})
                time.sleep(0.3)
            control.post("/v1/models/rollback", {})
        ended.set()
        for thread in askers:
            thread.join()
    assert {status for status, _ in answers} == {200}
    scores: dict[str, dict[str, float]] = {}
    for _, answer in answers:
        told = dict(zip(answer["items"], answer["scores"], strict=True))
        known = scores.setdefault(answer["version"], told)
        assert all(abs(known[item] - score) < 1e-4 for item, score in told.items())
    assert set(scores) == {first, second}
    assert scores[first] != scores[second]
