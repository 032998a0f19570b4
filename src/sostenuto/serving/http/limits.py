"""Back-pressure: how fast a key may ask, and how much may be under way."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from sostenuto.serving.http.problems import Problem, unavailable

T = TypeVar("T")
MOST_BUCKETS = 10_000


@dataclass(slots=True)
class TokenBucket:
    """`rate` requests a second on average, `burst` at once."""

    rate: float
    burst: float
    tokens: float
    at: float

    def take(self, now: float) -> float:
        """Take one; return 0, or the seconds until there is one."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.rate


@dataclass(slots=True)
class RateLimiter:
    """One bucket per key; on the event loop only, so without locks."""

    rate: float  # requests a second where a key has no limit of its own; 0 = none
    burst: int
    share: float = 1.0  # of the rates, for this process
    clock: Callable[[], float] = time.monotonic
    buckets: dict[str, TokenBucket] = field(default_factory=dict)

    def check(self, name: str, own_rate: float | None = None) -> None:
        """Count one request of a key.

        Raises:
            Problem: 429, with the seconds to wait.
        """
        rate = (self.rate if own_rate is None else own_rate) * self.share
        if rate <= 0:
            return
        now = self.clock()
        bucket = self.buckets.get(name)
        if bucket is None or bucket.rate != rate:
            if len(self.buckets) >= MOST_BUCKETS:
                self.buckets.clear()
            burst = max(1.0, self.burst * self.share)
            bucket = self.buckets[name] = TokenBucket(rate, burst, burst, now)
        wait = bucket.take(now)
        if wait > 0:
            raise Problem(
                429,
                "This key sends more requests than it may; wait as Retry-After says.",
                "rate_limit",
                {"retry-after": str(math.ceil(wait))},
            )


class Lane:
    """Threads for one kind of work, and how many calls may wait for them.

    A call that runs out of time is answered, but its thread goes on to the end: it keeps its place until then, so a
    slow service makes the lane refuse, not grow. Threads and queue are our own: on the way to a thread and back an
    executor of the standard library costs twice as much, which is felt in every ranking.
    """

    def __init__(self, name: str, threads: int, queue: int) -> None:
        self.name = name
        self.capacity = threads + queue
        self.under_way = 0
        self._lock = threading.Lock()  # places are given back on the threads
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"sostenuto-{name}-{n}", daemon=True) for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def enter(self) -> None:
        """Take a place, before anything of the request is read.

        Raises:
            Problem: 503, there is none.
        """
        if self.under_way >= self.capacity:
            raise unavailable("The server has more to do than it can at the moment; try again.", f"{self.name}_full")
        with self._lock:
            self.under_way += 1

    def leave(self) -> None:
        """Give a place back that `run` was not called for."""
        with self._lock:
            self.under_way -= 1

    async def run(self, call: Callable[..., T], *arguments: Any, timeout_s: float) -> T:
        """Call on a thread; the place is given back when the thread is done.

        Raises:
            Problem: 503, it took too long.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        job = _Job(loop, answer, call, arguments)
        timer = loop.call_later(timeout_s, _expire, answer)
        self._queue.put(job)
        try:
            return await answer
        finally:
            timer.cancel()
            if not answer.done() or answer.cancelled() or answer.exception() is not None:
                self._give_up(job)

    def _give_up(self, job: _Job) -> None:
        if job.take():  # it has not begun, and never will
            self.leave()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if not job.take():
                continue
            try:
                job.result = job.call(*job.arguments)
            except BaseException as error:
                job.error = error
            self.leave()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                job.loop.call_soon_threadsafe(job.deliver)

    def close(self) -> None:
        """Finish what is queued, and end the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()


class _Job:
    """One call, its way to a thread and back."""

    __slots__ = ("answer", "arguments", "call", "error", "loop", "result", "ticket")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        answer: asyncio.Future[Any],
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
    ) -> None:
        self.loop, self.answer, self.call, self.arguments = loop, answer, call, arguments
        self.result: Any = None
        self.error: BaseException | None = None
        self.ticket = [True]

    def take(self) -> bool:
        """Whether it is the caller's: either a thread begins it or somebody gives it up, and only one of them."""
        try:
            return self.ticket.pop()
        except IndexError:
            return False

    def deliver(self) -> None:
        """Hand the answer over, on the loop, if somebody still waits."""
        if self.answer.done():
            return
        if self.error is not None:
            self.answer.set_exception(self.error)
        else:
            self.answer.set_result(self.result)


def _expire(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(unavailable("The server took too long to answer; try again.", "timeout"))


__all__ = ["Lane", "RateLimiter", "TokenBucket"]
