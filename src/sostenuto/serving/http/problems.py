"""What went wrong, as RFC 9457 problem documents. They name no path, no class and no line of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sostenuto.schema.errors import (
    Conflict,
    DataError,
    NotFound,
    NotReady,
    RequestError,
    StoreBusy,
    StoreError,
    StoreFull,
)

MEDIA_TYPE = "application/problem+json"
RETRY_S = 1  # said where nothing better is known
MOST_DETAIL = 300  # characters of a sentence that may name something that was sent

# status -> title; `type` stays about:blank, so the title is the status' own phrase or says more in one line
TITLES: Mapping[int, str] = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    421: "Misdirected Request",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    507: "Insufficient Storage",
}


@dataclass(eq=False)
class Problem(Exception):
    """A request ends here: status, a sentence for whoever sent it, and what the logs call it."""

    status: int
    detail: str
    reason: str  # a word for logs and metrics
    headers: Mapping[str, str] = field(default_factory=dict)


def problem_of(error: BaseException) -> Problem:
    """Return what a caller learns of an error.

    Only texts that were written for callers are passed on: those of RequestError.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, NotFound):
        return Problem(404, str(error), "not_found")
    if isinstance(error, Conflict):
        return Problem(409, str(error), "conflict")
    if isinstance(error, RequestError):
        return Problem(422, str(error), "refused")
    if isinstance(error, NotReady):
        return unavailable("The server cannot answer this yet, or no longer; try again.", "not_ready")
    if isinstance(error, StoreFull):
        return Problem(507, "The server has no room left to store this; nothing of it was stored.", "store_full")
    if isinstance(error, StoreBusy):
        return unavailable("Too much is waiting to be stored; try again.", "store_busy")
    if isinstance(error, StoreError):
        return unavailable("The server's store cannot be used at the moment; try again.", "store_gone")
    return Problem(500, "Something went wrong on the server. Its log has more under this request id.", "defect")


def refused_data(error: DataError, where: str = "") -> Problem:
    """Return what is wrong with what was sent to be stored, as `schema.events` and stores say it."""
    return Problem(422, where + str(error)[:MOST_DETAIL], "refused")


def unavailable(detail: str, reason: str, retry_s: int = RETRY_S) -> Problem:
    """Return a 503 that says when to come again."""
    return Problem(503, detail, reason, {"retry-after": str(retry_s)})


__all__ = ["MEDIA_TYPE", "MOST_DETAIL", "RETRY_S", "TITLES", "Problem", "problem_of", "refused_data", "unavailable"]
