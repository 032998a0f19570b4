"""GroupCommitter: many small writes share one wait for the disk.

Bringing a transaction onto the disk takes milliseconds, whatever its size. While one group is being written, whoever
comes waits; then all who wait are the next group, one transaction. So a single caller never waits for company, and
under load the disk is waited for once per group. Each caller gets his own answers, once they are durable.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self

from sostenuto.schema.errors import StoreBusy, StoreError, StoreGone
from sostenuto.schema.events import Event
from sostenuto.serving.stores.packing import MOST_BATCH
from sostenuto.serving.stores.store import Appended, Store


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig:
    """How appends are gathered."""

    most_events: int = 1_024  # of one group; a longer single batch is a group of its own
    most_waiting: int = 16_384  # events that may wait; beyond that callers are sent away with `StoreBusy`
    linger_ms: float = 0.0  # a group waits that long for company; 0: the wait for the group before is enough

    def __post_init__(self) -> None:
        if not 1 <= self.most_events <= MOST_BATCH:
            raise ValueError(f"GroupConfig.most_events must be in 1..{MOST_BATCH}, got {self.most_events}")
        if self.most_waiting < MOST_BATCH:
            raise ValueError(f"GroupConfig.most_waiting must be at least {MOST_BATCH}, got {self.most_waiting}")
        if not 0 <= self.linger_ms <= 1_000:
            raise ValueError(f"GroupConfig.linger_ms must be in 0..1000, got {self.linger_ms}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCounts:
    """What a committer has done so far."""

    groups: int  # transactions tried
    batches: int  # callers answered
    events: int
    waiting: int  # events, now


class GroupCommitter:
    """Gathers concurrent appends to one store, in a thread of its own."""

    def __init__(self, store: Store, config: GroupConfig | None = None) -> None:
        self._store = store
        self._config = config or GroupConfig()
        self._changed = threading.Condition()
        self._queue: deque[tuple[Sequence[Event], Future[list[Appended]]]] = deque()
        self._waiting = self._groups = self._batches = self._events = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="group-committer", daemon=True)
        self._thread.start()

    def submit(self, events: Sequence[Event]) -> Future[list[Appended]]:
        """Hand over a batch; the future is done when it is durable, or holds the store's error.

        Raises:
            DataError: the events themselves are refused; nobody else's batch suffers.
            StoreBusy: too much is waiting.
            StoreGone: the committer was closed.
        """
        self._store.check(events)
        future: Future[list[Appended]] = Future()
        with self._changed:
            if self._closed:
                raise StoreGone("events must come before the store is closed, it is; open it again")
            if self._waiting + len(events) > self._config.most_waiting:
                raise StoreBusy(
                    f"at most {self._config.most_waiting:,} events may wait to be written, {self._waiting:,} do; "
                    "come again in a moment"
                )
            self._queue.append((events, future))
            self._waiting += len(events)
            self._changed.notify_all()
        return future

    def append(self, events: Sequence[Event]) -> list[Appended]:
        """Hand over a batch and wait until it is durable."""
        return self.submit(events).result()

    def counts(self) -> GroupCounts:
        """Return what was done so far."""
        with self._changed:
            return GroupCounts(groups=self._groups, batches=self._batches, events=self._events, waiting=self._waiting)

    def close(self) -> None:
        """Write what waits, then end the thread. The store stays open."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while group := self._next_group():
            self._commit(group)

    def _next_group(self) -> list[tuple[Sequence[Event], Future[list[Appended]]]]:
        """Wait for batches and take as many as make one group; [] when all is done."""
        config = self._config
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            until = time.monotonic() + config.linger_ms / 1_000
            while self._waiting < config.most_events and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            group: list[tuple[Sequence[Event], Future[list[Appended]]]] = []
            size = 0
            while self._queue and (not group or size + len(self._queue[0][0]) <= config.most_events):
                group.append(self._queue.popleft())
                size += len(group[-1][0])
            self._waiting -= size
            return group

    def _commit(self, group: list[tuple[Sequence[Event], Future[list[Appended]]]]) -> None:
        together = [event for events, _ in group for event in events]
        try:
            answers = self._store.append(together)
        except BaseException as error:  # whatever it is, somebody waits for it
            if len(group) > 1 and isinstance(error, StoreError) and not isinstance(error, StoreGone):
                for each in group:  # it may be one batch's fault: nothing of the group was written
                    self._commit([each])
                return
            self._count(1, len(group), 0)
            for _, future in group:
                future.set_exception(error)
            return
        self._count(1, len(group), len(together))
        start = 0
        for events, future in group:
            future.set_result(answers[start : start + len(events)])
            start += len(events)

    def _count(self, groups: int, batches: int, events: int) -> None:
        with self._changed:
            self._groups += groups
            self._batches += batches
            self._events += events


__all__ = ["GroupCommitter", "GroupConfig", "GroupCounts"]
