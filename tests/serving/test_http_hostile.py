"""Hostile input over real HTTP and real stores: a clean refusal each time, and a server that goes on as before."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tests.serving.live_server import live_server
from tests.serving.server_process import Running
from tests.serving.small_bundles import exported, write_whole
from tests.serving.stores.redis_server import start_redis

pytestmark = pytest.mark.slow

JSON, MSGPACK = {"content-type": "application/json"}, {"content-type": "application/msgpack"}
RANK = {"user_id": "ann", "candidates": ["i1", "i2"]}
EVENT = {"user_id": "ann", "item_id": "i1"}
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture(scope="module", params=["lmdb", "redis"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = Path(tmp_path_factory.mktemp("hostile"))
    exported(write_whole(folder / "prepared"), "sdim", folder / "bundles" / "sdim")
    redis = start_redis(folder / "redis") if request.param == "redis" else None
    store = f"lmdb:{folder / 'store'}" if redis is None else redis.url()
    limits = {"future_s": 86_400, "body_timeout_s": 2.0}
    with live_server(
        folder / "server",
        store=store,
        bundle=folder / "bundles" / "sdim",
        limits=limits,
        served={"folder": str(folder)},
    ) as one:
        yield one
        assert "Traceback" not in one.errors.read_text()
    if redis is not None:
        redis.end()


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as one:
        yield one
        assert one.post("/v1/rank", json=RANK).status_code == 200  # it goes on


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


BODIES = {
    "deep JSON": (JSON, DEEP),
    "deep JSON in a field": (JSON, b'{"user_id":"a","candidates":["a"],"context":{"x":' + DEEP + b"}}"),
    "deep msgpack": (MSGPACK, b"\x91" * 1_000_000),
    "deep maps of msgpack": (MSGPACK, b"\x81\xa1a" * 300_000),
    "an array that says it is huge": (MSGPACK, b"\xdd\xff\xff\xff\xff"),
    "a map that says it is huge": (MSGPACK, b"\xdf\xff\xff\xff\xff"),
    "a text that says it is huge": (MSGPACK, b"\xdb\xff\xff\xff\xffabc"),
    "an extension": (MSGPACK, b"\xc7\x05\x01hello"),
    "bytes for text": (MSGPACK, packed({**RANK, "user_id": b"ann"})),
    "numbers for names": (MSGPACK, packed({1: 2})),
    "something behind the end": (MSGPACK, packed(RANK) + b"x"),
    "no UTF-8": (JSON, b'{"user_id":"\xff","candidates":["a"]}'),
    "no UTF-8 in msgpack": (MSGPACK, b"\x82\xa7user_id\xa2\xff\xfe\xaacandidates\x91\xa1a"),
    "half a surrogate": (JSON, b'{"user_id":"\\ud800","candidates":["a"]}'),
    "a number of 5,000 digits": (JSON, b'{"user_id":"a","candidates":["a"],"time_ms":' + b"9" * 5_000 + b"}"),
    "before 1970": (JSON, json.dumps({**RANK, "time_ms": -1}).encode()),
    "after 9999": (JSON, json.dumps({**RANK, "time_ms": 2**60}).encode()),
    "half a millisecond": (JSON, json.dumps({**RANK, "time_ms": 1.5}).encode()),
    "NaN in a column": (MSGPACK, packed({**RANK, "candidate_fields": {"display": [math.nan, 1.0]}})),
    "too many candidates": (JSON, json.dumps({**RANK, "candidates": [str(n) for n in range(200_000)]}).encode()),
    "one candidate twice": (JSON, json.dumps({**RANK, "candidates": ["a", "a"]}).encode()),
    "blanks": (JSON, b" " * 2_000_000),
    "nothing": (JSON, b""),
    "more than there may be": (JSON, b" " * 3_000_000),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused_at_once(name, client):
    headers, body = BODIES[name]
    for route in ("rank", "recommend", "explain", "events"):
        began = time.monotonic()
        answer = client.post(f"/v1/{route}", content=body, headers=headers)
        assert answer.status_code in {400, 413, 422}, (route, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"1e39", b'"1"', b"[1]"])
def test_an_event_has_a_number_for_a_value_or_is_refused(value, client):
    body = json.dumps(EVENT).encode()[:-1] + b', "value": ' + value + b"}"
    assert client.post("/v1/events", content=body, headers=JSON).status_code in {400, 422}
    for other in (math.nan, math.inf, 1e39):
        assert client.post("/v1/events", content=packed({**EVENT, "value": other}), headers=MSGPACK).status_code == 422


def test_of_equal_names_the_last_one_counts_and_nothing_breaks(client):
    body = b'{"user_id":"one","user_id":"two","item_id":"i1","event_id":"twice"}'
    assert client.post("/v1/events", content=body, headers=JSON).status_code == 200
    assert client.get("/v1/users/one").status_code == 404
    assert client.get("/v1/users/two").json()["count"] == 1


@pytest.mark.parametrize(
    "user", ["a/b", "a\0b", "..", "../../etc/passwd", "%", "%2F", "é", "😀", "a b?c#d", "\r\nX: y", "*"]
)
def test_an_id_is_any_text_all_the_way(user, client):
    path = "/v1/users/" + "".join(f"%{byte:02X}" for byte in user.encode())
    assert client.get(path).status_code == 404
    assert client.post("/v1/events", json={**EVENT, "user_id": user, "item_id": user}).status_code == 200
    found = client.get(path).json()
    assert (found["user_id"], found["events"][0]["item_id"]) == (user, user)
    assert json.loads(client.get(path + "/export").text.splitlines()[0])["user_id"] == user
    assert client.put(path, json={"fields": {}}).status_code == 200
    ranked = client.post("/v1/rank", json={"user_id": user, "candidates": [user, "i1"]}).json()
    assert sorted(ranked["items"]) == sorted([user, "i1"])
    gone = client.delete(path).json()
    assert (gone["existed"], gone["events"], gone["served_lists"]) == (True, 1, 1)
    assert client.get(path).status_code == 404


STRANGE = [
    *("/v1/users/%ff", "/v1/users/" + "x" * 501, "/v1/users//", "/v1/users/", "/v1/items/%00"),
    *("/v1/users/a?limit=0", "/v1/users/a?limit=1e3", "/v1/users/a?before_ms=1", "/v1/users/a?x=1", "/v1/users/a?%ff"),
    "/v1/users/a?" + "a" * 3_000,
]


@pytest.mark.parametrize("path", STRANGE)
def test_a_strange_path_is_refused(path, client):
    answer = client.get(path)
    assert answer.status_code in {400, 404, 422}
    assert answer.headers["content-type"] == "application/problem+json"


def test_times_as_far_away_as_may_be_are_stored_and_ranked(client):
    times = (0, 1, int(time.time() * 1_000) + 80_000_000)
    rows = [{**EVENT, "user_id": "far", "time_ms": t, "event_id": str(t)} for t in times]
    assert client.post("/v1/events", json=rows).status_code == 200
    assert client.post("/v1/events", json={**EVENT, "time_ms": 253_402_300_799_999}).status_code == 422
    for moment in (0, 1, 2, 253_402_300_799_999):
        for route, more in (("rank", {"candidates": ["i1"]}), ("recommend", {}), ("explain", {"items": ["i1"]})):
            asked = {"user_id": "far", "time_ms": moment, **more}
            answer = client.post(f"/v1/{route}", json=asked)
            assert answer.status_code == 200, answer.text
            assert answer.json()["history_length"] == sum(t < moment for t in times)


HEAD = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SENT = json.dumps(RANK).encode()
TRICKS = {
    "two lengths": b"Content-Length: 5\r\nContent-Length: %d\r\n\r\n" % len(SENT) + SENT,
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "a negative length": b"Content-Length: -5\r\n\r\n" + SENT,
    "an endless length": b"Content-Length: 99999999999999999999\r\n\r\n" + SENT,
    "no number": b"Content-Length: abc\r\n\r\n" + SENT,
    "a bad chunk": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "another coding": b"Transfer-Encoding: gzip\r\n\r\n" + SENT,
    "a folded header": b"X-A: b\r\n c\r\nContent-Length: %d\r\n\r\n" % len(SENT) + SENT,
    "a blank in a name": b"X A: b\r\nContent-Length: %d\r\n\r\n" % len(SENT) + SENT,
    "NUL in a value": b"X-A: b\0c\r\nContent-Length: %d\r\n\r\n" % len(SENT) + SENT,
    "less than it says": b"Content-Length: 500\r\n\r\n{",
}


def answers(server: Running, data: bytes) -> list[tuple[int, Any]]:
    """Send bytes, read until the server closes the connection, and return status and document of each answer."""
    with server.connect() as connection:
        connection.sendall(data)
        received = b""
        try:
            while chunk := connection.recv(65_536):
                received += chunk
        except ConnectionResetError:
            pass
        except TimeoutError:
            pytest.fail(f"the connection stays open after {received[:200]!r}")
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        size = next(
            int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length")
        )
        found.append((int(head.split()[1]), json.loads(rest[:size])))
        received = rest[size:]
    return found


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_with_headers_gets_one_refusal_and_the_end(trick, server, client):
    ((status, document),) = answers(server, HEAD + TRICKS[trick])
    assert status in {400, 408, 413, 415}
    assert document["status"] == status


def test_a_hundred_requests_in_one_go_are_answered_in_order_and_a_bad_one_ends_it(server, client):
    one = b"Content-Length: %d\r\nX-Request-ID: r%d\r\n\r\n"
    asked = b"".join(HEAD + one % (len(SENT), n) + SENT for n in range(100))
    last = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    found = answers(server, asked + last)
    assert [status for status, _ in found] == [200] * 101
    assert [document["request_id"] for _, document in found[:-1]] == [f"r{n}" for n in range(100)]
    begun = answers(server, HEAD + b"Content-Length: 1\r\n\r\n{" + b"\x00\x01\r\n\r\n")
    assert {status for status, _ in begun} == {400}


def test_memory_stays_bounded(server, client):
    def memory_mb() -> int:
        lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS"))

    before = memory_mb()
    open_ones: list[socket.socket] = []
    try:
        for n in range(40):
            for headers, body in BODIES.values():
                if n % 10 == 0:
                    client.post("/v1/events", content=body, headers=headers)
            half = server.connect()  # a body of 2 MB of which the last byte never comes
            open_ones.append(half)
            half.sendall(HEAD + b"Content-Length: 2000000\r\n\r\n" + b" " * 1_999_999)
    finally:
        for half in open_ones:
            half.close()
    assert memory_mb() < before + 250
