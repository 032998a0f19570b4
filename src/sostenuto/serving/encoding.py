"""The behaviour encoder: keeps the states of a model version fresh from the stream of changes, away from requests.

The idea is SDIM's behaviour sequence encoder (Cao et al., CIKM 2022, arXiv:2205.10249, section 4.4), here for every
ranker. A ranking never waits for it and never depends on it: a state that is behind is carried on in the request.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sostenuto.schema.errors import StreamTrimmed

if TYPE_CHECKING:
    from sostenuto.serving.user_states import UserStates

CHANGES_AT_ONCE = 5_000
# A state that grows with the history costs its whole length to write. It is written when a share of the history has
# arrived since, and when there is nothing else to do.
SHARE_UNWRITTEN = 64


class BehaviourEncoder:
    """Follows the stream for one model version and writes the states of the users that it names into the store.

    Where it has come to is a cursor in the store, so that a new process goes on where the last one stopped. Whose
    state was not written before a stop is found stale later, and carried on from what is there.

    Args:
        states: of the model version.
    """

    def __init__(self, states: UserStates) -> None:
        self.states = states
        self.store = states.model.store
        self.name = f"states-{states.model.bundle.version}"
        self._bounded = states.model.bundle.entry.state == "bounded"
        self._cursor = self.store.cursor(self.name)
        self._unwritten: dict[str, int] = {}  # events in the state that the store has, by user
        self._waiting: list[str] = []  # users of changes that were read, last one first
        self._read_to = self._cursor

    @property
    def lag(self) -> int:
        """Changes of the store that it has not seen; what others ask is `backlog.Backlog`."""
        return max(self.store.last_sequence() - self._cursor, 0)

    def run_once(self, at_most_s: float = math.inf) -> int:
        """Take the next changes in, as far as the time allows, and return how many users were looked at.

        With no change left, what was put off is written and 0 returned.
        """
        started = time.perf_counter()
        if not self._waiting and not self._read():
            self._write_all()
            return 0
        done = 0
        while self._waiting and (not done or time.perf_counter() - started < at_most_s):
            self._refresh(self._waiting.pop())
            done += 1
        if not self._waiting:
            self._move(self._read_to)
        return max(done, 1)  # changes may be of users who are gone

    def _read(self) -> bool:
        """Read the next changes; say whether there were any."""
        try:
            changes = self.store.changes(self._cursor, CHANGES_AT_ONCE)
        except StreamTrimmed:  # it no longer tells who changed: everybody may have
            self._read_to = self.store.last_sequence()
            self._waiting = list(self.store.users())
            return True
        if not changes:
            return False
        changed = dict.fromkeys(change.user_id for change in changes if change.user_id is not None)
        self._waiting, self._read_to = list(changed)[::-1], changes[-1].sequence
        return True

    def warm_up(self, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Encode and write all users, whatever the stream says, and follow it from here on.

        Returns:
            how many states were written.
        """
        last, users = self.store.last_sequence(), list(self.store.users())
        written = 0
        for n, user_id in enumerate(users):
            state, _ = self.states.at(user_id)
            written += self.states.write(user_id, state)
            progress(n + 1, len(users))
        self._waiting.clear()
        self._move(last)
        return written

    def _move(self, sequence: int) -> None:
        self._cursor = sequence
        self.store.set_cursor(self.name, sequence)

    def _refresh(self, user_id: str) -> None:
        state, _ = self.states.at(user_id)
        written = self._unwritten.get(user_id)
        if self._bounded or written is None or state.count - written > 1 + state.count // SHARE_UNWRITTEN:
            self.states.write(user_id, state)
            self._unwritten[user_id] = state.count
        if self._bounded:
            self._unwritten.pop(user_id, None)

    def _write_all(self) -> None:
        for user_id, written in self._unwritten.items():
            state, _ = self.states.at(user_id)
            if state.count != written:
                self.states.write(user_id, state)
        self._unwritten.clear()


__all__ = ["BehaviourEncoder"]
