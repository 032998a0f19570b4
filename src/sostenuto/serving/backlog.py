"""How far a consumer of a store's stream is behind, in whatever process it runs: in changes and in seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sostenuto.serving.stores.store import Store

MOST_LOOKS = 1_000  # kept; then every second one goes, so that a consumer who never comes takes no memory


class Backlog:
    """What a named consumer has not seen yet.

    Its cursor is read from the store, so it may run in another process or nowhere. How long a change has waited is
    reckoned from looks at the store: it is at least as old as the first look that found it there.

    Args:
        store: whose stream is followed.
        name:  of the cursor.
        clock: seconds.
    """

    def __init__(self, store: Store, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._store, self._clock = store, clock
        self._looks: list[tuple[float, int]] = []  # when, and the newest sequence then, of what was not seen since
        self._lock = threading.Lock()

    def look(self) -> tuple[int, float]:
        """Return how many changes wait, and for how many seconds the oldest of them has been known to."""
        with self._lock:
            at = self._store.cursor(self.name)  # first: what comes between the two counts as waiting
            last = self._store.last_sequence()
            now = self._clock()
            self._looks = [look for look in self._looks if look[1] > at]
            if last > at and (not self._looks or last > self._looks[-1][1]):
                self._looks.append((now, last))
            if len(self._looks) > MOST_LOOKS:
                self._looks = self._looks[::2]
            return max(last - at, 0), now - self._looks[0][0] if self._looks else 0.0


__all__ = ["Backlog"]
