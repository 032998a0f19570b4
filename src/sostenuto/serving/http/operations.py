"""What an operation of the server is: one value says everything that dispatch, checks, document and tests need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any, Literal

from sostenuto.serving.http.call import Call

if TYPE_CHECKING:
    from sostenuto.serving.http.edge import Edge

Scope = Literal["rank", "events", "users", "items", "models", "metrics"]
LaneName = Literal["score", "append", "control"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryParameter:
    """A whole number in the query string."""

    name: str
    description: str
    low: int
    high: int
    default: int | None = None
    high_limit: str = ""  # name of the setting in `Limits` that lowers `high`


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """An answer that is not a struct."""

    body: bytes
    media_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Spooled:
    """An answer too long for one piece, complete in a file without a name, at its start."""

    file: SpooledTemporaryFile[bytes]
    media_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One method of one path.

    `scope` has no default: whoever adds an operation says who may call it; None is for everybody, and there is a test
    that lists those by name.
    """

    name: str  # label in metrics and logs, operationId in the document
    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    scope: Scope | None
    lane: LaneName | None  # None: answered on the event loop, must not wait
    summary: str
    answer: Any  # type of the answer in JSON or msgpack; None for others
    handle: Callable[[Edge, Call], Any]
    body: Any = None  # type of the body; None = it has none
    media_type: str = ""  # of an answer that is neither JSON nor msgpack
    query: tuple[QueryParameter, ...] = ()
    statuses: tuple[int, ...] = ()  # further ones than those that follow from the rest
    # names in the body whose number of entries a setting limits: (path in the body, name in Limits)
    limited: tuple[tuple[str, str], ...] = ()


__all__ = ["LaneName", "Operation", "QueryParameter", "Scope", "Spooled", "Text"]
