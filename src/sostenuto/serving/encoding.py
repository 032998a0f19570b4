"""The behaviour encoder: keeps the states of a model version fresh from the stream of changes, away from requests.

The idea is SDIM's behaviour sequence encoder (Cao et al., CIKM 2022, arXiv:2205.10249, section 4.4), here for every
ranker. A ranking never waits for it and never depends on it: a state that is behind is carried on in the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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

    @property
    def lag(self) -> int:
        """Changes of the store that it has not seen; what others ask is `backlog.Backlog`."""
        return max(self.store.last_sequence() - self._cursor, 0)

    def run_once(self) -> int:
        """Take the next changes in and return how many there were; with none, write what was put off."""
        try:
            changes = self.store.changes(self._cursor, CHANGES_AT_ONCE)
        except StreamTrimmed:
            return self._start_again()
        if not changes:
            self._write_all()
            return 0
        changed: dict[str, None] = {}
        for change in changes:
            if change.user_id is not None:
                changed[change.user_id] = None
        for user_id in changed:
            self._refresh(user_id)
        self._move(changes[-1].sequence)
        return len(changes)

    def warm_up(self, users: Iterable[str], progress: Callable[[int], None] = lambda done: None) -> int:
        """Encode and write users, whatever the stream says; return how many states were written."""
        written = 0
        for n, user_id in enumerate(users):
            state, _ = self.states.at(user_id)
            written += self.states.write(user_id, state)
            progress(n + 1)
        return written

    def _start_again(self) -> int:
        """Read all users, for the stream no longer tells who changed."""
        last = self.store.last_sequence()
        self.warm_up(self.store.users())
        self._move(last)
        return 1

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
