"""One request on its way through the edge."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sostenuto.serving.http.keys import Key

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Call:
    """What is known of a request so far; filled in as it goes through."""

    __slots__ = (
        "body",
        "caller",
        "headers",
        "method",
        "now_ms",
        "parameters",
        "query",
        "reason",
        "request_id",
        "route",
        "sent_bytes",
        "stages",
        "start",
        "start_ns",
        "status",
    )

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self.start = time.perf_counter()
        self.start_ns = time.time_ns()
        self.now_ms = self.start_ns // 1_000_000
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.method: str = scope["method"]
        given = self.headers.get(b"x-request-id")
        # somebody else's id is only taken when it can go into a header and a log line as it is
        self.request_id = given.decode() if given and _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        self.route = "unknown"  # its template; bounded, so it may be a label
        self.caller: Key | None = None
        self.parameters: dict[str, str] = {}  # of the path, decoded
        self.query: dict[str, Any] = {}  # parsed
        self.body: Any = None  # decoded
        self.stages: dict[str, float] = {}  # seconds
        self.status = 0
        self.sent_bytes = 0
        self.reason = ""  # why it was refused

    @property
    def key_id(self) -> str:
        """Id of the key that asks; "" where no keys are asked for."""
        return "" if self.caller is None else self.caller.key_id


__all__ = ["Call"]
