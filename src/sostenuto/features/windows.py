"""The next moments of a user after each request, as targets of training; never anything after training time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.cooccurrence import training_events
from sostenuto.schema.errors import SpecError

if TYPE_CHECKING:
    from sostenuto.data.prepared import PreparedData

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRows:
    """Rows of the log that stand in the windows of R requests."""

    offsets: Array  # (R + 1,) int64
    position: Array  # (W,) int64 row of the log
    step: Array  # (W,) int64 which of the next moments


class FutureWindows:
    """Finds the behaviours of the next `moments` distinct moments, the request's own first.

    Only behaviours that training may know are found (`training_events`): a window ends where validation begins, and is
    empty for a request after that. Behaviours of one moment have no order, so a moment is one step of the window
    however many it holds; of a larger one the first `per_moment` are taken, which is chance, because their order is.

    Args:
        data:       prepared.
        moments:    P.
        per_moment: behaviours of one moment, at most.
        whole_log:  True looks beyond training time: for evaluation only.
    """

    def __init__(self, data: PreparedData, *, moments: int, per_moment: int, whole_log: bool = False) -> None:
        if moments < 1 or per_moment < 1:
            raise SpecError(f"a window must hold at least one moment of one behaviour, got {moments} of {per_moment}")
        self.moments, self.per_moment = moments, per_moment
        self._low = np.asarray(data.behaviours.offsets, np.int64)
        self._end = self._low[1:]
        if not whole_log:
            lawful = np.concatenate(([0], np.cumsum(training_events(data))))
            self._end = self._low[:-1] + lawful[self._low[1:]] - lawful[self._low[:-1]]  # times rise inside a user
        self._moment_end = _moment_ends(np.asarray(data.behaviours.time_ms), self._low)

    def of(self, user: Array, prefix: Array) -> WindowRows:
        """Return the windows of requests.

        Args:
            user, prefix: (R,) of the requests; `prefix` counts the behaviours strictly before each.
        """
        at, end = self._low[user] + prefix, self._end[user]
        firsts, counts = np.zeros((2, len(user), self.moments), np.int64)
        for step in range(self.moments):
            inside = at < end
            beyond = np.where(inside, np.minimum(self._moment_end[np.where(inside, at, 0)], end), at)
            firsts[:, step], counts[:, step] = at, np.minimum(beyond - at, self.per_moment)
            at = beyond
        count = counts.reshape(-1)
        ends = np.cumsum(count)
        position = np.repeat(firsts.reshape(-1) - (ends - count), count) + np.arange(int(count.sum()))
        return WindowRows(
            offsets=np.concatenate(([0], np.cumsum(counts.sum(1)))),
            position=position,
            step=np.repeat(np.tile(np.arange(self.moments), len(user)), count),
        )


def _moment_ends(time_ms: Array, offsets: Array) -> Array:
    """Return (N + 1,) int64 of every event of the log where its moment ends; one more, which is looked at by nobody."""
    total = len(time_ms)
    opens = np.ones(total + 1, bool)
    opens[1:total] = time_ms[1:] != time_ms[:-1]
    opens[offsets] = True
    starts = np.flatnonzero(opens)
    return np.append(np.repeat(starts[1:], np.diff(starts)), total)


__all__ = ["FutureWindows", "WindowRows"]
