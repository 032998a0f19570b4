"""Back-pressure: how fast a key may ask, and how much may be under way."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
    slow service makes the lane refuse, not grow.
    """

    def __init__(self, name: str, threads: int, queue: int) -> None:
        self.name = name
        self.capacity = threads + queue
        self.under_way = 0
        self._lock = threading.Lock()  # places are given back on the threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"sostenuto-{name}")

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
        threads = self._pool.submit(call, *arguments)
        threads.add_done_callback(lambda _: self.leave())
        future = asyncio.wrap_future(threads)
        done, _ = await asyncio.wait((future,), timeout=timeout_s)
        if not done:
            threads.cancel()  # does nothing where it has begun: then the future ends with the thread
            future.add_done_callback(_look_at)
            raise unavailable("The server took too long to answer; try again.", "timeout")
        return future.result()

    def close(self) -> None:
        """Wait for the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _look_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # nobody is there to take it any more


__all__ = ["Lane", "RateLimiter", "TokenBucket"]
