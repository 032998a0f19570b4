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
        self._time_ms = data.behaviours.time_ms
        self._low = np.asarray(data.behaviours.offsets, np.int64)
        self._end = self._low[1:]
        if not whole_log:
            lawful = np.concatenate(([0], np.cumsum(training_events(data))))
            self._end = self._low[:-1] + lawful[self._low[1:]] - lawful[self._low[:-1]]  # times rise inside a user

    def of(self, user: Array, prefix: Array) -> WindowRows:
        """Return the windows of requests.

        Args:
            user, prefix: (R,) of the requests; `prefix` counts the behaviours strictly before each.
        """
        positions: list[Array] = []
        steps: list[int] = []
        sizes = np.zeros(len(user), np.int64)
        for r, (u, before) in enumerate(zip(user.tolist(), prefix.tolist(), strict=True)):
            at, end = int(self._low[u]) + before, int(self._end[u])
            for step in range(self.moments):
                if at >= end:
                    break
                beyond = at + int(np.searchsorted(self._time_ms[at:end], self._time_ms[at], side="right"))
                taken = np.arange(at, min(beyond, at + self.per_moment))
                positions.append(taken)
                steps += [step] * len(taken)
                sizes[r] += len(taken)
                at = beyond
        return WindowRows(
            offsets=np.concatenate(([0], np.cumsum(sizes))),
            position=np.concatenate(positions) if positions else np.zeros(0, np.int64),
            step=np.array(steps, np.int64),
        )


__all__ = ["FutureWindows", "WindowRows"]
