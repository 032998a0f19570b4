"""A real server on loopback: slow and rude clients, several workers, its end."""

import contextlib
import json
import re
import socket
import threading
import time

import httpx
import msgspec
import pytest
from tests.serving.http.conftest import bearer
from tests.serving.http.running import running

from sostenuto.serving.http.keys import KeyFile
from sostenuto.serving.served_log import read_served

POST = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
RANK = {"user_id": "u1", "candidates": ["a", "b"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    limits = {"header_timeout_s": 1.0, "body_timeout_s": 1.0, "header_bytes": 8_192, "body_bytes": 100_000,
              "send_timeout_s": 1.0}  # fmt: skip
    with running(tmp_path_factory.mktemp("server"), limits=limits) as one:
        yield one


def is_let_go(server, pieces) -> bool:
    """Send pieces; say whether the server ended the connection before the last one."""
    with server.connect() as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except ConnectionError:
            return True
        return False


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
    return received


def until_under_way(server, count: int) -> None:
    """Wait until the scoring lane has so many."""
    wanted = f'sostenuto_under_way{{lane="score"}} {count}.0'
    deadline = time.monotonic() + 30
    while wanted not in httpx.get(server.url + "/metrics", timeout=20).text:
        assert time.monotonic() < deadline


def test_it_ranks_takes_events_and_speaks_msgpack(server):
    with server.client() as client:
        assert client.post("/v1/events", json={"user_id": "u1", "item_id": "b"}).status_code == 200
        time.sleep(0.01)
        assert client.post("/v1/rank", json=RANK).json()["items"] == ["b", "a"]
        packing = {"content-type": "application/msgpack"}
        packed = client.post("/v1/rank", content=msgspec.msgpack.encode(RANK), headers=packing)
        assert msgspec.msgpack.decode(packed.content)["items"] == ["b", "a"]


def test_an_id_with_a_slash_is_one_part_of_the_path(server):
    with server.client() as client:
        client.post("/v1/events", json={"user_id": "a/b c", "item_id": "b"})
        assert client.get("/v1/users/a%2Fb%20c").json()["user_id"] == "a/b c"


def test_who_sends_no_headers_is_let_go(server):
    with server.connect() as silent, server.connect() as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        start = time.monotonic()
        for connection in (silent, slow):
            with contextlib.suppress(ConnectionResetError):
                assert read_all(connection) == b""
        assert 0.5 < time.monotonic() - start < 10


def test_who_drips_headers_is_let_go_as_well(server):
    def drip():
        yield b"GET /healthz HTTP/1.1\r\n"
        for _ in range(200):
            time.sleep(0.1)
            yield b"X-A: 1\r\n"

    assert is_let_go(server, drip())


def test_who_drips_a_body_is_told_and_let_go(server):
    with server.connect() as slow:
        slow.sendall(POST + b"Content-Length: 1000\r\n\r\n{")
        start = time.monotonic()
        answer = read_all(slow)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"application/problem+json" in answer
    assert time.monotonic() - start < 10


def test_headers_beyond_the_limit_end_the_connection(server):
    begun = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    assert is_let_go(server, [begun, *(b"X-%d: %s\r\n" % (n, b"a" * 500) for n in range(20_000))])


def test_headers_beyond_the_limit_are_told_so(server):
    with server.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 9_000 + b"\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 431")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 431


def test_one_header_without_end_is_not_kept(server):
    begun = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: "
    assert is_let_go(server, [begun, *[b"a" * 4_096] * 20_000])
    with server.connect() as connection:
        connection.sendall(begun)
        for _ in range(12):
            time.sleep(0.02)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"a" * 4_096)
        with contextlib.suppress(ConnectionResetError):  # what it had not read makes the end a reset, now and then
            assert read_all(connection).startswith(b"HTTP/1.1 431")


def answered_then(server, request, rest) -> bool:
    """Send a request, take the answer, then send pieces; say whether the connection ended before the last one."""
    with server.connect() as connection:
        connection.sendall(request)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 ")
        try:
            for piece in rest:
                time.sleep(0.1)
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            return True
    return False


def test_empty_lines_between_requests_hold_no_connection(server):
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert answered_then(server, request, [b"\r\n"] * 100)


def test_a_body_that_nobody_reads_any_more_holds_no_connection(server):
    request = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 900\r\n\r\n"
    assert answered_then(server, request, [b"x"] * 100)


def test_who_takes_no_answers_is_let_go(server):
    count = 400
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        with server.client() as client:
            size = len(client.get("/openapi.json").content)
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * count)
        time.sleep(3)
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 20):
                taken += len(chunk)
    assert taken < size * count


def test_a_body_without_end_is_refused(server):
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    assert is_let_go(server, [POST + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 10_000])


def test_a_hundred_silent_connections_keep_nobody_out(server):
    silent = [server.connect() for _ in range(100)]
    try:
        with server.client() as client:
            assert client.get("/healthz").status_code == 200
    finally:
        for connection in silent:
            connection.close()


def test_what_is_not_http_is_refused(server):
    for rubbish in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\n\r\n",
                    "GET /\u00fc HTTP/1.1\r\n\r\n".encode()):  # fmt: skip
        with server.connect() as rude:
            rude.sendall(rubbish)
            rude.shutdown(socket.SHUT_WR)
            answer = read_all(rude)
            assert re.match(rb"(HTTP/1\.1 4\d\d|$)", answer), rubbish
            assert not answer or json.loads(answer.partition(b"\r\n\r\n")[2])["status"] // 100 == 4
    with server.client() as client:
        assert client.get("/healthz").status_code == 200


def test_requests_in_one_go_are_answered_in_order(server):
    with server.connect() as connection:
        one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: r%d\r\n\r\n"
        last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(b"".join(one % n for n in range(5)) + last)
        answer = read_all(connection)
    assert re.findall(rb"x-request-id: (r\d)", answer) == [b"r0", b"r1", b"r2", b"r3", b"r4"]


def test_a_keep_alive_connection_may_rest(server):
    with server.client() as client:
        client.get("/healthz")
        time.sleep(1.5)  # longer than headers may take
        assert client.get("/healthz").status_code == 200


def test_what_is_under_way_is_answered_at_the_end(tmp_path):
    with running(tmp_path, delay_s=3.0, served={"folder": str(tmp_path / "served")}) as server:
        answers = []

        def ask() -> None:
            with server.client() as client:
                answers.append(client.post("/v1/rank", json=RANK).status_code)

        asking = [threading.Thread(target=ask) for _ in range(2)]
        [one.start() for one in asking]
        until_under_way(server, 2)
        assert server.end() in {0, -15}
        [one.join() for one in asking]
        assert answers == [200, 200]
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url + "/healthz", timeout=2)
    assert len(list(read_served(tmp_path / "served"))) == 2


def test_draining_says_so_before_connections_are_refused(tmp_path):
    with running(tmp_path, drain_s=1.5) as server, server.client() as client:
        server.process.terminate()
        time.sleep(0.5)
        assert client.get("/readyz").status_code == 503
        assert client.post("/v1/rank", json=RANK).status_code == 200
        assert server.process.wait(20) in {0, -15}


def test_two_workers_share_port_metrics_logs_and_deletions(tmp_path):
    _, key = KeyFile(tmp_path / "keys.json").add("all", ["rank", "events", "users", "metrics"])
    settings = {"workers": 2, "keys": str(tmp_path / "keys.json"), "served": {"folder": str(tmp_path / "served")}}
    with running(tmp_path, **settings) as server:
        for n in range(40):  # a connection each, so both workers get some
            answer = httpx.post(server.url + "/v1/rank", json={**RANK, "user_id": f"u{n % 2}"}, headers=bearer(key))
            assert answer.status_code == 200
        counted = set()
        for _ in range(8):
            text = httpx.get(server.url + "/metrics", headers=bearer(key)).text
            counted |= set(re.findall(r'sostenuto_requests_total\{route="rank",status="200"\} (\S+)', text))
        assert counted == {"40.0"}  # whichever worker is asked
        removed = httpx.delete(server.url + "/v1/users/u0", headers=bearer(key)).json()["served_lists"]
        assert 0 < removed <= 20  # what another worker has in its queue is dropped there
        assert httpx.get(server.url + "/v1/users/u0").status_code == 401
    assert {line["user_id"] for line in read_served(tmp_path / "served")} == {"u1"}
    routes = [json.loads(line).get("route") for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert routes.count("rank") == 40


def test_a_key_is_revoked_while_the_server_runs(tmp_path):
    file = KeyFile(tmp_path / "keys.json")
    entry, key = file.add("gone soon", ["models"])
    file.add("stays", ["models"])
    with running(tmp_path, keys=str(tmp_path / "keys.json")) as server, server.client(headers=bearer(key)) as client:
        assert client.get("/v1/models").status_code == 200
        file.revoke(entry.key_id)
        time.sleep(1.2)
        assert client.get("/v1/models").status_code == 401


def test_spans_are_made_where_the_environment_asks(tmp_path):
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    with running(tmp_path, env={"OTEL_TRACES_EXPORTER": "console"}) as server:
        with server.client() as client:
            trace = "0af7651916cd43dd8448eb211c80319c"
            client.post("/v1/rank", json=RANK, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
        server.end()
    text = server.errors.read_text()
    assert f'"trace_id": "0x{trace}"' in text
    assert '"parent_id": "0xb7ad6b7169203331"' in text
    for name in ("rank", "decode", "score", "encode_answer"):
        assert f'"name": "{name}"' in text
