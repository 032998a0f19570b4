"""The application: FastAPI around the edge, so that a team can add routes of its own beside ours.

Our operations never enter FastAPI's machinery (dependency solving and pydantic would cost more than the answer); they
stand among `app.routes` and in `app.openapi()` all the same. Routes that a team adds are FastAPI's in every respect,
except that they ask for a key with scope `admin` wherever keys are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import threading
from collections.abc import AsyncIterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sostenuto.serving.http.document import describe
from sostenuto.serving.http.edge import REQUEST_ID, App, Edge, Receive, Scope, Send, problem_body
from sostenuto.serving.http.keys import Keyring
from sostenuto.serving.http.problems import MEDIA_TYPE, Problem
from sostenuto.serving.http.request_log import RequestLog
from sostenuto.serving.http.routes import OPERATIONS
from sostenuto.serving.http.settings import ServerSettings
from sostenuto.serving.http.tracing import open_tracer
from sostenuto.serving.served_log import ServedLog

if TYPE_CHECKING:
    from sostenuto.serving.service import RankingService

READINGS_S = 5.0  # every so often a worker notes its readings, for whichever worker is asked for metrics
_log = logging.getLogger("sostenuto.serving")


class RankingApp(FastAPI):
    """A FastAPI application whose first door is the edge."""

    def __init__(self, service: RankingService, settings: ServerSettings) -> None:
        import sostenuto

        super().__init__(
            title="Sostenuto",
            version=sostenuto.__version__,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,
            exception_handlers={HTTPException: _as_problem, RequestValidationError: _as_problem},
            lifespan=self._life,
        )
        self.settings = settings
        self.edge = Edge(
            service,
            settings,
            OPERATIONS,
            other=self._inner,
            document=lambda: msgspec.json.encode(self.openapi()),
            log=RequestLog(settings.log),
            keyring=None if settings.keys is None else Keyring(settings.keys),
            served_log=None if settings.served is None else ServedLog(settings.served),
            tracer=open_tracer(),
        )
        for endpoint in self.edge.endpoints:
            route = Route(endpoint.path, _Door(self.edge), methods=list(endpoint.operations), name=endpoint.path)
            self.router.routes.append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request in through the edge."""
        scope["app"] = self
        await self.edge(scope, receive, send)

    async def _inner(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI 3.1 document of our operations and of whatever was added."""
        if not self.openapi_schema:
            self.openapi_schema = describe(OPERATIONS, self.settings, super().openapi())
        return self.openapi_schema

    @contextlib.asynccontextmanager
    async def _life(self, app: FastAPI) -> AsyncIterator[None]:
        restore = self._drain_on_signal()
        noting = asyncio.create_task(self._note_readings())
        # what is loaded by now stays: looking through it again and again would only lengthen pauses
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            self.edge.draining = True
            noting.cancel()
            restore()
            gc.unfreeze()
            await asyncio.get_running_loop().run_in_executor(None, self.edge.close)

    async def _note_readings(self) -> None:
        while True:
            await asyncio.get_running_loop().run_in_executor(None, self.edge.take_readings)
            await asyncio.sleep(READINGS_S)

    def _drain_on_signal(self) -> Any:
        """Have a signal to end say 503 in /readyz first, and end the server `drain_s` later; return the way back."""
        if self.settings.drain_s <= 0 or threading.current_thread() is not threading.main_thread():
            return lambda: None
        before = signal.getsignal(signal.SIGTERM)
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.edge.draining or not callable(before):
                return
            self.edge.draining = True
            loop.call_soon_threadsafe(loop.call_later, self.settings.drain_s, before, number, frame)

        signal.signal(signal.SIGTERM, on_signal)
        return lambda: signal.signal(signal.SIGTERM, before)


class _Door:
    """Where an operation stands among the routes; requests come in through the edge before they get here."""

    def __init__(self, edge: App) -> None:
        self.edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.edge(scope, receive, send)


async def _as_problem(request: Request, error: Exception) -> Response:
    """Say in our form what FastAPI refuses: paths that nobody has, and what added routes raise."""
    if isinstance(error, HTTPException):
        problem = Problem(error.status_code, str(error.detail), "other", dict(error.headers or {}))
    else:
        problem = Problem(422, "The request is not as this route wants it.", "refused")
    request_id = str(request.scope.get(REQUEST_ID, ""))
    return Response(
        problem_body(problem, request_id),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers={**problem.headers, "x-request-id": request_id},
    )


def create_app(service: RankingService, settings: ServerSettings) -> RankingApp:
    """Return the application that serves a service.

    Raises:
        MissingExtra: `OTEL_*` asks for traces and what makes them is not installed.
        SpecError: the key file cannot be read.
    """
    return RankingApp(service, settings)


__all__ = ["RankingApp", "create_app"]
