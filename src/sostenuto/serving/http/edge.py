"""The edge: an ASGI application that takes a request through checks, work and logs, in this order.

Host (only without keys) - route - key and scope - rate of the key - a place in the lane - body, within its limits -
decoding - the operation, on a thread of its lane, where the answer is also encoded - sending - metrics, log, trace.
Whatever fails becomes a problem document; what is no fault of the caller's is logged with its traceback.

Everything of a table operation stays here; other paths go to the wrapped application, for keys with scope `admin`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import msgspec

from sostenuto.schema.events import MOST_ID_BYTES
from sostenuto.serving.http import wire
from sostenuto.serving.http.call import Call
from sostenuto.serving.http.keys import Keyring
from sostenuto.serving.http.limits import Lane, RateLimiter
from sostenuto.serving.http.metrics import Metrics
from sostenuto.serving.http.operations import Operation, QueryParameter, Spooled, Text
from sostenuto.serving.http.problems import MEDIA_TYPE, MOST_DETAIL, TITLES, Problem, problem_of, unavailable
from sostenuto.serving.http.request_log import RequestLog
from sostenuto.serving.http.settings import ServerSettings, is_loopback
from sostenuto.serving.http.tracing import Tracer, trace_id
from sostenuto.serving.served_log import ServedLog
from sostenuto.serving.service import RankingService

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON, MSGPACK = "application/json", "application/msgpack"
MSGPACK_NAMES = frozenset({MSGPACK, "application/x-msgpack", "application/vnd.msgpack"})
ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
CONTROL_PATIENCE = 10  # times request_timeout_s: loading a model takes longer than ranking
CHUNK = 256 * 1024
MOST_QUERY = 2_048  # characters
REQUEST_ID = "sostenuto.request_id"  # in the scope of other applications
GONE = 499  # in logs only: the client went away
_log = logging.getLogger("sostenuto.serving")
_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode


class ClientGone(Exception):
    """Nobody is there to answer."""


class Endpoint:
    """All methods of one path."""

    def __init__(self, path: str, operations: Iterable[Operation]) -> None:
        self.path = path
        self.operations: dict[str, Operation] = {operation.method: operation for operation in operations}
        self.allow = ", ".join(sorted(self.operations))
        pattern = "".join(
            f"(?P<{part[1:-1]}>[^/]+)" if part.startswith("{") else re.escape(part)
            for part in re.split(r"(\{\w+\})", path)
        )
        self.pattern = re.compile(pattern)
        self.decoders = {
            operation.method: (
                msgspec.json.Decoder(operation.body).decode,
                msgspec.msgpack.Decoder(operation.body).decode,
            )
            for operation in self.operations.values()
            if operation.body is not None
        }


class Edge:
    """See the module.

    Args:
        service:    what answers.
        settings:   of the server.
        operations: the table of routes.
        other:      the application for all other paths.
        document:   returns the OpenAPI document as JSON.
        log:        of requests and audit.
        keyring:    None where no keys are asked for.
        served_log: None where lists are not logged.
    """

    def __init__(
        self,
        service: RankingService,
        settings: ServerSettings,
        operations: Iterable[Operation],
        *,
        other: App,
        document: Callable[[], bytes],
        log: RequestLog,
        keyring: Keyring | None,
        served_log: ServedLog | None,
        tracer: Tracer | None,
    ) -> None:
        limits = settings.limits
        self.service, self.settings, self.document, self.log = service, settings, document, log
        self.keyring, self.served_log, self.tracer = keyring, served_log, tracer
        self.metrics = Metrics()
        self.draining = False
        self.exports = 0
        self._other = other
        self._rates = RateLimiter(limits.requests_per_s, limits.burst, share=1 / settings.workers)
        self.lanes = {
            "score": Lane("score", limits.scoring_threads, limits.scoring_queue),
            "append": Lane("append", limits.append_threads, limits.append_queue),
            "control": Lane("control", limits.control_threads, limits.control_queue),
        }
        by_path: dict[str, list[Operation]] = {}
        for operation in operations:
            by_path.setdefault(operation.path, []).append(operation)
        self.endpoints = [Endpoint(path, found) for path, found in by_path.items()]
        self._fixed = {endpoint.path: endpoint for endpoint in self.endpoints if "{" not in endpoint.path}
        self._templated = [endpoint for endpoint in self.endpoints if "{" in endpoint.path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        call = Call(scope)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
            else:
                call.sent_bytes += len(message.get("body", b""))
            try:
                await send(message)
            except (OSError, RuntimeError) as error:
                if isinstance(error, OSError) or "closed" in str(error):  # by uvloop, where asyncio says nothing
                    raise ClientGone from error
                raise

        try:
            await self._through(scope, call, receive, counted)
        except ClientGone:
            call.status = GONE
        except Exception as error:
            problem = problem_of(error)
            call.reason = problem.reason
            if problem.status == 500:
                _log.exception("request %s of %s failed", call.request_id, call.route)
            elif error.__cause__ is None and not isinstance(error, Problem) and problem.status > 500:
                _log.warning("request %s of %s: %s: %s", call.request_id, call.route, type(error).__name__, error)
            if call.status == 0:
                await self._send_problem(call, counted, problem)
        finally:
            self._finish(call)

    async def _through(self, scope: Scope, call: Call, receive: Receive, send: Send) -> None:
        if self.settings.is_open:
            self._check_host(call)
        # the raw path: an id may hold a slash, sent as %2F, and must stay one part
        path: str = scope.get("raw_path", b"").decode("latin-1") or scope["path"]
        path = path.removeprefix(scope.get("root_path", ""))
        endpoint = self._fixed.get(path)
        if endpoint is None:
            for candidate in self._templated:
                found = candidate.pattern.fullmatch(path)
                if found is not None:
                    endpoint = candidate
                    call.parameters = found.groupdict()
                    break
            else:
                self._check_key(call, "admin")
                call.route = "other"
                scope[REQUEST_ID] = call.request_id
                await self._other(scope, receive, send)
                return
        operation = endpoint.operations.get(call.method)
        if operation is None:
            self._check_key(call, None)
            raise Problem(
                405, f"This path takes {endpoint.allow}.", "method", {"allow": endpoint.allow, "connection": "close"}
            )
        call.route = operation.name
        self._check_key(call, operation.scope)
        if operation.lane is None:
            call.query = _query(operation, scope, self.settings)
            await self._send_reply(call, send, operation, operation.handle(self, call))
            return
        lane = self.lanes[operation.lane]
        lane.enter()
        entered = True
        try:
            call.parameters = {name: _parameter(name, value) for name, value in call.parameters.items()}
            call.query = _query(operation, scope, self.settings)
            encode, media_type = _answer_form(operation, call)
            if operation.body is not None:
                await self._read(call, endpoint, operation, receive)
            entered = False  # from here on the lane gives the place back by itself
            limits = self.settings.limits
            patience = limits.request_timeout_s * (CONTROL_PATIENCE if operation.lane == "control" else 1)
            reply = await lane.run(self._work, operation, call, encode, time.perf_counter(), timeout_s=patience)
        finally:
            if entered:
                lane.leave()
        if isinstance(reply, bytes):
            await self._send(call, send, 200, reply, media_type)
        else:
            await self._send_reply(call, send, operation, reply)

    def _work(
        self, operation: Operation, call: Call, encode: Callable[[Any], bytes] | None, queued: float
    ) -> bytes | Text | Spooled:
        """Run on a thread of the lane."""
        began = time.perf_counter()
        reply = operation.handle(self, call)
        if encode is None or isinstance(reply, Text | Spooled):
            call.stages["wait"] = began - queued
            return reply  # type: ignore[no-any-return]
        handled = time.perf_counter()
        data = encode(reply)
        call.stages["wait"] = began - queued
        call.stages["encode_answer"] = time.perf_counter() - handled
        return data

    # -- checks --------------------------------------------------------------------------------------------------------

    def _check_host(self, call: Call) -> None:
        """Refuse names that are not this machine's: a page in a browser could otherwise reach an open server."""
        host = call.headers.get(b"host", b"").decode("latin-1")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if not _is_local_name(name):
            raise Problem(
                421, "A server without keys answers only as localhost; make a key.", "host", {"connection": "close"}
            )

    def _check_key(self, call: Call, scope: str | None) -> None:
        if self.keyring is None:
            self._rates.check("")
            return
        token = _token(call.headers)
        if token is not None:
            call.caller = self.keyring.find(token)
        if scope is None:
            return
        if call.caller is None:
            raise Problem(
                401,
                "A key is needed, as Authorization: Bearer or X-API-Key; this is none, or not any more.",
                "no_key" if token is None else "wrong_key",
                {"www-authenticate": "Bearer"},
            )
        if scope not in call.caller.scopes:
            raise Problem(403, f"This key may not do that: it lacks the scope {scope!r}.", "scope")
        self._rates.check(call.caller.key_id, call.caller.requests_per_s)

    async def _read(self, call: Call, endpoint: Endpoint, operation: Operation, receive: Receive) -> None:
        """Read and decode the body."""
        headers, most = call.headers, self.settings.limits.body_bytes
        kind = headers.get(b"content-type", b"").decode("latin-1").split(";", 1)[0].strip().lower()
        if kind != JSON and kind not in MSGPACK_NAMES:
            raise Problem(
                415, f"Content-Type must be {JSON} or {MSGPACK}.", "media_type", {"accept": f"{JSON}, {MSGPACK}"}
            )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Problem(415, "Bodies must not be compressed.", "media_type", {"accept-encoding": "identity"})
        said = headers.get(b"content-length", b"0")
        if said.isdigit() and int(said[:20]) > most:
            raise _too_large(most)
        data = await _body(receive, most, self.settings.limits.body_timeout_s)
        began = time.perf_counter()
        decode = endpoint.decoders[operation.method][0 if kind == JSON else 1]
        try:
            call.body = decode(data)
        except msgspec.ValidationError as error:
            raise Problem(422, f"The body is not as it must be: {str(error)[:MOST_DETAIL]}", "refused") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Problem(400, "The body cannot be read as what Content-Type says.", "malformed") from None
        for name, limit in operation.limited:
            found = getattr(call.body, name) if name else call.body
            if isinstance(found, list):
                top = getattr(self.settings.limits, limit)
                if len(found) > top or (not found and name == ""):
                    what = name or "a batch"
                    raise Problem(422, f"{what} must have 1 to {top} entries, got {len(found)}.", "refused")
        call.stages["decode"] = time.perf_counter() - began

    # -- answers -------------------------------------------------------------------------------------------------------

    async def _send(self, call: Call, send: Send, status: int, body: bytes, media_type: str) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", media_type.encode()),
                    (b"content-length", b"%d" % len(body)),
                    (b"x-request-id", call.request_id.encode()),
                    *ALWAYS,
                ],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def _send_reply(self, call: Call, send: Send, operation: Operation, reply: Any) -> None:
        if isinstance(reply, Spooled):
            await self._stream(call, send, reply)
        elif isinstance(reply, Text):
            await self._send(call, send, 200, reply.body, reply.media_type)
        else:
            encode, media_type = _answer_form(operation, call)
            assert encode is not None
            await self._send(call, send, 200, encode(reply), media_type)

    async def _stream(self, call: Call, send: Send, reply: Spooled) -> None:
        self.exports += 1
        headers = [(b"content-type", reply.media_type.encode()), (b"x-request-id", call.request_id.encode()), *ALWAYS]
        try:
            with reply.file as file:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                while chunk := file.read(CHUNK):
                    async with asyncio.timeout(self.settings.limits.send_timeout_s):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError as error:
            raise unavailable("The client takes nothing.", "slow_client") from error
        finally:
            self.exports -= 1

    async def _send_problem(self, call: Call, send: Send, problem: Problem) -> None:
        body = problem_body(problem, call.request_id)
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", call.request_id.encode()),
            *ALWAYS,
            *((name.encode(), value.encode()) for name, value in problem.headers.items()),
        ]
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _finish(self, call: Call) -> None:
        seconds = time.perf_counter() - call.start
        self.metrics.answered(call.route, call.status, seconds)
        for stage, took in call.stages.copy().items():  # a thread that came too late may still add to it
            self.metrics.stage(call.route, stage, took)
        if call.reason:
            self.metrics.refused.labels(call.route, call.reason).inc()
        traced = trace_id(call.headers.get(b"traceparent"))
        self.log.request(
            request_id=call.request_id,
            trace_id=traced,
            route=call.route,
            method=call.method if call.method.isalpha() and len(call.method) < 10 else "?",
            status=call.status,
            reason=call.reason,
            seconds=round(seconds, 6),
            bytes=call.sent_bytes,
            key=call.key_id,
        )
        if self.tracer is not None:
            context = {name: call.headers[name.encode()].decode("latin-1") for name in ("traceparent", "tracestate")
                       if name.encode() in call.headers}  # fmt: skip
            self.tracer.request(
                call.route, start_ns=call.start_ns, headers=context, stages=call.stages.copy(), status=call.status
            )

    def take_readings(self) -> None:
        """Bring what is not about single requests up to date."""
        for name, lane in self.lanes.items():
            self.metrics.under_way.labels(name).set(lane.under_way)
        if self.served_log is not None:
            self.metrics.served_lists.set(self.served_log.written)
            self.metrics.served_lost.set(self.served_log.lost)
        try:
            self.metrics.take(self.service.readings())
        except Exception as error:
            if problem_of(error).status == 500:
                _log.exception("the service gave no readings")

    def close(self) -> None:
        """Finish what is under way, then let go of everything, the service last."""
        for lane in self.lanes.values():
            lane.close()
        if self.served_log is not None:
            self.served_log.close()
        self.service.close()
        if self.tracer is not None:
            self.tracer.close()
        self.log.close()


def problem_body(problem: Problem, request_id: str) -> bytes:
    """Return the document of a problem, as JSON."""
    document = wire.ProblemDocument(
        title=TITLES.get(problem.status, "Problem"),
        status=problem.status,
        detail=problem.detail,
        instance=f"urn:request:{request_id}",
    )
    return _encode_json(document)


async def _body(receive: Receive, most: int, timeout_s: float) -> bytes:
    """Return the whole body.

    Raises:
        Problem: 413 or 408. ClientGone: it went away.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > most:
                    raise _too_large(most)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise Problem(408, "The body did not arrive in time.", "slow_client", {"connection": "close"}) from None


def _too_large(most: int) -> Problem:
    return Problem(
        413, f"The body must be at most {most} bytes; send less at once.", "too_large", {"connection": "close"}
    )


def _token(headers: MutableMapping[bytes, bytes] | dict[bytes, bytes]) -> str | None:
    given = headers.get(b"authorization")
    if given is not None:
        kind, _, token = given.partition(b" ")
        return token.strip().decode("latin-1") if kind.lower() == b"bearer" else ""
    other = headers.get(b"x-api-key")
    return None if other is None else other.strip().decode("latin-1")


def _parameter(name: str, raw: str) -> str:
    try:
        value = urllib.parse.unquote(raw, errors="strict")
    except UnicodeDecodeError:
        raise Problem(400, f"{name} must be UTF-8, percent-encoded.", "malformed") from None
    if len(value) > MOST_ID_BYTES:
        raise Problem(422, f"{name} must be at most {MOST_ID_BYTES} characters.", "refused")
    return value


def _query(operation: Operation, scope: Scope, settings: ServerSettings) -> dict[str, Any]:
    raw: bytes = scope["query_string"]
    known = {parameter.name: parameter for parameter in operation.query}
    values: dict[str, Any] = {name: parameter.default for name, parameter in known.items()}
    if not raw:
        return values
    try:
        if len(raw) > MOST_QUERY:
            raise ValueError
        pairs = urllib.parse.parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=20
        )
    except ValueError:
        raise Problem(400, "The query string cannot be read.", "malformed") from None
    for name, text in pairs:
        parameter = known.get(name)
        if parameter is None:
            takes = ", ".join(known) or "none"
            raise Problem(422, f"The query string has a parameter that is not known; known are: {takes}.", "refused")
        values[name] = _whole_number(parameter, text, settings)
    return values


def _whole_number(parameter: QueryParameter, text: str, settings: ServerSettings) -> int:
    high = parameter.high
    if parameter.high_limit:
        high = min(high, getattr(settings.limits, parameter.high_limit))
    if re.fullmatch(r"-?[0-9]{1,17}", text) and parameter.low <= int(text) <= high:
        return int(text)
    raise Problem(422, f"{parameter.name} must be a whole number from {parameter.low} to {high}.", "refused")


def _answer_form(operation: Operation, call: Call) -> tuple[Callable[[Any], bytes] | None, str]:
    """Return how to encode the answer, and what that is called."""
    accept = call.headers.get(b"accept", b"*/*")
    if operation.media_type:
        if len(accept) > MOST_QUERY or not _accepts(accept, operation.media_type.split(";")[0]):
            raise Problem(406, f"The answer is {operation.media_type}; accept that.", "accept")
        return None, operation.media_type
    kind = call.headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower().decode("latin-1")
    form = _negotiated(accept, kind in MSGPACK_NAMES) if len(accept) <= MOST_QUERY else None
    if form is None:
        raise Problem(406, f"Answers are {JSON} or {MSGPACK}; accept one of them.", "accept")
    return (_encode_json if form == JSON else _encode_msgpack), form


@functools.lru_cache(maxsize=256)
def _negotiated(accept: bytes, sent_msgpack: bool) -> str | None:
    """Return the form that an Accept header wants most; where it does not care, that of the request."""
    weights = {form: _weight(accept, names) for form, names in ((JSON, {JSON}), (MSGPACK, MSGPACK_NAMES))}
    first, second = (MSGPACK, JSON) if sent_msgpack else (JSON, MSGPACK)
    best = first if weights[first] >= weights[second] else second
    return best if weights[best] > 0 else None


@functools.lru_cache(maxsize=256)
def _accepts(accept: bytes, media_type: str) -> bool:
    return _weight(accept, {media_type}) > 0


def _weight(accept: bytes, names: Iterable[str]) -> float:
    """Return the largest quality that an Accept header gives any of some media types."""
    ranges: dict[str, float] = {}
    for part in accept.decode("latin-1").lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        ranges[media] = float(quality) if re.fullmatch(r"[01](\.[0-9]{0,3})?", quality) else 0.0
    found = 0.0
    for name in names:
        for media in (name, name.split("/")[0] + "/*", "*/*"):
            if media in ranges:
                found = max(found, ranges[media])
                break
    return found


@functools.lru_cache(maxsize=64)
def _is_local_name(name: str) -> bool:
    return is_loopback(name.lower()) or name.lower().endswith(".localhost")


__all__ = ["JSON", "MSGPACK", "REQUEST_ID", "Edge", "Endpoint", "problem_body"]
