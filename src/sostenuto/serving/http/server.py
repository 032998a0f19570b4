"""Running the application: uvicorn with one worker or several, and what it lacks against slow and oversized clients."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

from sostenuto.schema.errors import SpecError
from sostenuto.serving.http.app import RankingApp, create_app
from sostenuto.serving.http.edge import problem_body
from sostenuto.serving.http.keys import Keyring
from sostenuto.serving.http.problems import MEDIA_TYPE, TITLES, Problem
from sostenuto.serving.http.settings import ServerSettings
from sostenuto.serving.service import RankingService

# what is told to the protocol through the environment of the process, since uvicorn makes it from a bare class
HEADER_BYTES, HEADER_TIMEOUT = "SOSTENUTO_HEADER_BYTES", "SOSTENUTO_HEADER_TIMEOUT_S"
SEND_TIMEOUT = "SOSTENUTO_SEND_TIMEOUT_S"
WORKER_PATIENCE_S = 30  # a worker that says nothing for so long is replaced; importing torch takes some seconds


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with an end to its patience.

    Headers have a largest size and must arrive in time, whatever is sent between requests does not count as one, and
    an answer must be taken in time. What is no HTTP is answered with a problem document too.
    """

    _most_header_bytes: int
    _header_timeout_s: float
    _send_timeout_s: float
    _header_bytes = 0
    _unfinished_bytes = 0
    _is_begun = False  # headers are coming
    _waiting: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        self._most_header_bytes = int(os.environ.get(HEADER_BYTES, 32 * 1024))
        self._header_timeout_s = float(os.environ.get(HEADER_TIMEOUT, 10))
        self._send_timeout_s = float(os.environ.get(SEND_TIMEOUT, 30))
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._wait_no_longer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; what comes while nothing is being answered must become a request in time.

        Without this, a body that nobody reads any more and empty lines between requests would hold a connection for
        ever: uvicorn takes any byte for a sign of life.
        """
        had_begun = self._is_begun
        super().data_received(data)
        if self._is_begun and had_begun:  # the parser tells of a header when it is whole, and keeps it until then
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > 2 * self._most_header_bytes:
                self._header_bytes = self._unfinished_bytes
                self.send_400_response("")
        if self._waiting is None and (self.cycle is None or self.cycle.response_complete):
            self._wait()

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not take what it is sent."""
        if self._sending is None:
            self._sending = self.loop.call_later(self._send_timeout_s, self._give_up)
        super().pause_writing()

    def resume_writing(self) -> None:
        """It takes again."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        super().resume_writing()

    def on_message_begin(self) -> None:
        """Begin to count; a connection that is kept alive has the same patience for its next headers."""
        self._header_bytes = self._unfinished_bytes = 0
        self._is_begun = True
        if self._waiting is None:
            self._wait()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop waiting: from here on the edge has the time."""
        self._wait_no_longer()
        self._is_begun = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or too much of it."""
        self._wait_no_longer()
        if self.transport.is_closing():
            return
        if self._header_bytes > self._most_header_bytes:
            detail = f"Request line and headers must be at most {self._most_header_bytes} bytes; send less."
            problem = Problem(431, detail, "too_large")
        else:
            problem = Problem(400, "This is not a request of HTTP/1.1; send one.", "malformed")
        body = problem_body(problem, secrets.token_hex(16))
        head = f"HTTP/1.1 {problem.status} {TITLES[problem.status]}\r\ncontent-type: {MEDIA_TYPE}\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self._most_header_bytes:
            raise ValueError("headers are too large")  # the parser hands it on as its own error: a 431, and the end

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self._header_timeout_s, self._give_up)

    def _wait_no_longer(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if self.transport is not None:
            self.transport.abort()  # also where it is closing: it might wait for the client for ever


def make_app(make_service: Callable[[], RankingService], settings: ServerSettings) -> RankingApp:
    """Return the application with a service of its own; called once in every worker process."""
    return create_app(make_service(), settings)


def serve(make_service: Callable[[], RankingService], settings: ServerSettings) -> None:
    """Listen and answer until a signal says to end.

    Args:
        make_service: opens the service; with several workers it is sent to them, so it must be a function of a module
            or a partial of one.
        settings:     of the server.

    Raises:
        SpecError: there are to be keys, and there is none yet; or the address cannot be had.
    """
    if settings.keys is not None and not len(Keyring(settings.keys)):
        raise SpecError(
            f"{settings.keys} must hold a key before the server starts, it holds none; "
            f"make one with `sostenuto serve keys add --keys {settings.keys} --name NAME --scope rank`"
        )
    limits = settings.limits
    os.environ[HEADER_BYTES] = str(limits.header_bytes)
    os.environ[HEADER_TIMEOUT] = str(limits.header_timeout_s)
    os.environ[SEND_TIMEOUT] = str(limits.send_timeout_s)
    with tempfile.TemporaryDirectory(prefix="sostenuto-metrics-") as folder:
        if settings.workers > 1 and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        config = uvicorn.Config(
            functools.partial(make_app, make_service, settings),
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            http=GuardedProtocol,
            ws="none",
            lifespan="on",
            access_log=False,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            log_config=_logging(),
            limit_concurrency=limits.connections,
            timeout_keep_alive=limits.keep_alive_s,
            timeout_worker_healthcheck=WORKER_PATIENCE_S,
            timeout_graceful_shutdown=max(1, round(settings.graceful_s)),
            ssl_certfile=_text(settings.tls_certificate),
            ssl_keyfile=_text(settings.tls_key),
        )
        if settings.workers == 1:
            uvicorn.Server(config).run()
        else:
            Multiprocess(config, sockets=[config.bind_socket()]).run()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _logging() -> dict[str, Any]:
    """Return plain lines on stderr for uvicorn and for us."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            "uvicorn": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
            "uvicorn.error": {"level": "INFO"},
            "sostenuto": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        },
    }


__all__ = ["GuardedProtocol", "make_app", "serve"]
