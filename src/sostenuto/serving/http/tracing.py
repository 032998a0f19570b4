"""W3C trace context, and OpenTelemetry spans where the environment asks for them.

A request that brings `traceparent` is logged under its trace id. Spans are only made when an `OTEL_*` variable names an
exporter or an endpoint and `opentelemetry-sdk` is installed: one per request, one below it per stage. Without that
nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Protocol

from sostenuto.schema.errors import MissingExtra

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
ASKED_BY = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracer(Protocol):
    """What the edge needs of tracing."""

    def request(
        self, route: str, *, start_ns: int, headers: Mapping[str, str], stages: Mapping[str, float], status: int
    ) -> None:
        """Record one finished request and its stages, in seconds and in order."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


def trace_id(traceparent: bytes | None) -> str | None:
    """Return the trace id of a valid `traceparent` header.

    >>> trace_id(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    '0af7651916cd43dd8448eb211c80319c'
    >>> trace_id(b"00-00000000000000000000000000000000-b7ad6b7169203331-01") is None
    True
    """
    found = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    return None if found is None else found[1].decode()


def open_tracer() -> Tracer | None:
    """Return a tracer when the environment asks for one.

    Raises:
        MissingExtra: it does, and the SDK or the exporter is not installed.
    """
    wanted = [os.environ.get(name, "") for name in ASKED_BY]
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not any(wanted) or wanted[0] == "none":
        return None
    return _SpanTracer(wanted[0] or "otlp")


class _SpanTracer:
    def __init__(self, exporters: str) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise MissingExtra(
                "OTEL_* asks for traces, which need opentelemetry-sdk; pip install 'sostenuto[tracing]'"
            ) from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": _service_name()}))
        for name in exporters.split(","):
            self._provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip())))
        self._tracer = self._provider.get_tracer("sostenuto.serving")
        self._propagator = TraceContextTextMapPropagator()
        self._kind, self._failed = SpanKind.SERVER, Status(StatusCode.ERROR)

    def request(
        self, route: str, *, start_ns: int, headers: Mapping[str, str], stages: Mapping[str, float], status: int
    ) -> None:
        from opentelemetry import trace

        parent = self._propagator.extract(dict(headers))
        span = self._tracer.start_span(
            route,
            context=parent,
            kind=self._kind,
            start_time=start_ns,
            attributes={"http.route": route, "http.response.status_code": status},
        )
        at = start_ns
        inside = trace.set_span_in_context(span, parent)
        for stage, seconds in stages.items():
            child = self._tracer.start_span(stage, context=inside, start_time=at)
            at += int(seconds * 1e9)
            child.end(at)
        if status >= 500:
            span.set_status(self._failed)
        span.end()

    def close(self) -> None:
        self._provider.shutdown()


def _service_name() -> str:
    return os.environ.get("OTEL_SERVICE_NAME", "sostenuto")


def _exporter(name: str) -> Any:
    from importlib.metadata import entry_points

    wanted = {"otlp": "otlp_proto_" + os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf").split("/")[0]}
    found = {point.name: point for point in entry_points(group="opentelemetry_traces_exporter")}
    point = found.get(wanted.get(name, name)) or found.get(name)
    if point is None:
        raise MissingExtra(
            f"OTEL_TRACES_EXPORTER must name an installed exporter ({', '.join(sorted(found)) or 'none is'}), "
            f"got {name!r}; pip install opentelemetry-exporter-otlp"
        )
    return point.load()()


__all__ = ["Tracer", "open_tracer", "trace_id"]
