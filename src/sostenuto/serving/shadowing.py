"""A shadow scores the same requests after they were answered; nobody waits for it, and it is only compared."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.serving.scoring import best_first
from sostenuto.serving.service import Reading

if TYPE_CHECKING:
    from sostenuto.serving.deployed import Deployed
    from sostenuto.serving.scoring import Question

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

MOST_WAITING = 64  # requests; more are left out and counted, so that a slow shadow takes no memory
TOP = 10  # items whose overlap is counted


class Shadow:
    """Scores offered requests on a thread of its own and keeps sums of how its answers compare."""

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self._offered: queue.Queue[tuple[Deployed, Question, Array] | None] = queue.Queue(most_waiting)
        self._lock = threading.Lock()
        self._version = ""
        self._requests = self._left_out = self._failed = 0
        self._overlap = self._difference = 0.0
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, shadow: Deployed, question: Question, logits: Array) -> None:
        """Hand over a request and the logits (C,) that were answered; never waits."""
        with self._lock:
            if shadow.version != self._version:  # another shadow starts from nothing
                self._version = shadow.version
                self._requests = self._left_out = self._failed = 0
                self._overlap = self._difference = 0.0
        try:
            self._offered.put_nowait((shadow, question, logits))
        except queue.Full:
            with self._lock:
                self._left_out += 1

    def wait(self) -> None:
        """Return when everything that was offered has been scored."""
        self._offered.join()

    def _work(self) -> None:
        while (offered := self._offered.get()) is not None:
            try:
                self._compare(*offered)
            except Exception:  # whatever a new model does wrong, it does to nobody
                log.exception("the shadow failed")
                with self._lock:
                    self._failed += 1
            finally:
                self._offered.task_done()
        self._offered.task_done()

    def _compare(self, shadow: Deployed, question: Question, logits: Array) -> None:
        again = shadow.scorer.scores(question).logits
        top = min(TOP, len(logits))
        overlap = len(np.intersect1d(best_first(logits)[:top], best_first(again)[:top])) / max(top, 1)
        with self._lock:
            if shadow.version == self._version:
                self._requests += 1
                self._overlap += overlap
                self._difference += float(np.abs(logits - again).mean()) if len(logits) else 0.0

    def readings(self) -> Sequence[Reading]:
        """Return gauges; none before a shadow was offered anything."""
        with self._lock:
            if not self._version:
                return []
            done, labels = max(self._requests, 1), {"version": self._version}
            told = (
                ("shadow_requests", "Requests that the shadow has scored.", self._requests, "sum"),
                ("shadow_requests_left_out", "Requests that it was too slow for.", self._left_out, "sum"),
                ("shadow_requests_failed", "Requests that it could not score.", self._failed, "sum"),
                ("shadow_top10_overlap", "Mean share of the ten best items in common.", self._overlap / done, "max"),
                ("shadow_logit_difference", "Mean absolute difference of logits.", self._difference / done, "max"),
            )
        return [
            Reading(name=name, help=text, value=value, labels=labels, merge="sum" if merge == "sum" else "max")
            for name, text, value, merge in told
        ]

    def close(self) -> None:
        """End the thread; what waits is left out."""
        while True:
            try:
                self._offered.get_nowait()
                self._offered.task_done()
            except queue.Empty:
                break
        self._offered.put(None)
        self._thread.join()


__all__ = ["Shadow"]
