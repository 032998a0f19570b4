"""Encoded users: what `encode` made of a history, kept until the history changes, and then carried on or made anew.

A state is of one model version, one user and one revision of her history. A ranking at a moment reads the behaviours
strictly before it; a kept state serves it as long as no event lies between what the state has seen and the moment.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sostenuto.features.match import MatchIndex
from sostenuto.schema.errors import StateError
from sostenuto.serving.invented import invented_history
from sostenuto.serving.state_bytes import (
    INVENTED,
    StateForm,
    state_from_bytes,
    state_num_bytes,
    state_to_bytes,
)
from sostenuto.serving.user_cache import UserCache

if TYPE_CHECKING:
    from sostenuto.features.assembly import Past
    from sostenuto.schema.histories import History
    from sostenuto.serving.live_model import LiveModel
    from sostenuto.serving.service import StateOrigin
    from sostenuto.serving.stores.store import Head

log = logging.getLogger(__name__)

NEVER_MS = 2**62  # later than every event
CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class UserState:
    """One user's state, and which history it is of."""

    state: Any  # the ranker's, one row
    index: MatchIndex  # of the same behaviours; without levels where the view has no match features
    user: int  # code of the store; a user who was deleted and comes back has another
    revision: int  # of the history when it was read
    last_sequence: int  # newest arrival when it was read
    floor_ms: int  # of the history when it was read
    count: int  # events of the history that lie before `until_ms`
    newest_ms: int  # time of the newest behaviour; meaningless when there is none
    until_ms: int = NEVER_MS  # time of the first event that it has not seen

    def is_of(self, head: Head, moment_ms: int) -> bool:
        """Say whether it is what `encode` would make now for a request at a moment."""
        whole = self.revision == head.revision and self.user == head.user
        return whole and moment_ms <= self.until_ms and (not self.count or self.newest_ms < moment_ms)


class UserStates:
    """The states of one model version: in memory as far as they fit, then in the store, then encoded anew.

    Args:
        model:       what encodes.
        cache_bytes: of states in memory; the one that was not used for longest goes first.
    """

    def __init__(self, model: LiveModel, *, cache_bytes: int = CACHE_BYTES) -> None:
        import torch

        self.model = model
        self.cache: UserCache[UserState] = UserCache(cache_bytes)
        # a view that cuts has forgotten what a fold would bring back into it
        self._folds = model.bundle.entry.update == "exact" and model.bundle.view.recent is None
        self.cold = self._made(model.history(None), None)
        with torch.inference_mode():
            invented = model.ranker.encode(invented_history(model.features, INVENTED))
        self._form = StateForm.of(self._plain(self.cold), (invented, self.cold.index, (0,)))

    def at(self, user_id: str, moment_ms: int = NEVER_MS) -> tuple[UserState, StateOrigin]:
        """Return the state of a user's behaviours strictly before a moment.

        It equals that of an encode of them, up to rounding where events were folded in (law 3).
        """
        store = self.model.store
        head = store.head(user_id)
        if head is None or not head.count or head.first_ms >= moment_ms:
            return self.cold, "cold"
        kept = self.cache.get(user_id)
        if kept is None:
            kept = self._in_store(user_id)
            if kept is not None:
                self._keep(user_id, kept)
        if kept is not None and kept.is_of(head, moment_ms):
            return kept, "cached"
        origin: StateOrigin = "folded"
        found = None
        if kept is not None and self._folds and kept.user == head.user and kept.floor_ms == head.floor_ms:
            found = self._folded(user_id, kept, moment_ms)
        if found is None:
            found, origin = self._encoded(user_id, moment_ms), "encoded"
        if found is None:  # deleted a moment ago
            return self.cold, "cold"
        if kept is None or found.until_ms >= kept.until_ms:  # a request of the past leaves the present where it is
            self._keep(user_id, found)
        return found, origin if found.count else "cold"

    def _encoded(self, user_id: str, moment_ms: int) -> UserState | None:
        history = self.model.store.history(user_id)
        if history is None:
            return None
        seen = int(np.searchsorted(history.time_ms, moment_ms, side="left"))
        until = int(history.time_ms[seen]) if seen < len(history) else NEVER_MS
        return self._made(self.model.history(history, seen), history.head, count=seen, until_ms=until)

    def _folded(self, user_id: str, kept: UserState, moment_ms: int) -> UserState | None:
        """Fold the events in that came after a kept state; None where that is not the same as an encode."""
        if kept.until_ms != NEVER_MS:
            return None
        later = self.model.store.history(user_id, after_sequence=kept.last_sequence)
        if later is None or later.head.user != kept.user or later.head.floor_ms != kept.floor_ms:
            return None
        if not len(later) or int(later.time_ms[0]) <= kept.newest_ms or kept.newest_ms >= moment_ms:
            return None  # an event that belongs among those seen, or into their last moment
        if later.head.count != kept.count + len(later):
            return None
        newest_ms = int(later.time_ms[-1])
        if newest_ms >= moment_ms:
            return None  # to be found again it would have to tell arrivals that it has seen from those it has not
        history, past = self.model.history(later)
        state = self._append(kept.state, history)
        index = kept.index.joined(self._index(history, past))
        return self._described(state, index, later.head, count=later.head.count, newest_ms=newest_ms)

    def _append(self, state: Any, later: History) -> Any:
        import torch

        with torch.inference_mode():
            return self.model.ranker.append(state, later)

    def _made(
        self, read: tuple[History, Past], head: Head | None, *, count: int = 0, until_ms: int = NEVER_MS
    ) -> UserState:
        import torch

        history, past = read
        with torch.inference_mode():
            state = self.model.ranker.encode(history)
        newest = int(past.time_ms[-1]) if len(past.time_ms) else 0
        return self._described(
            state, self._index(history, past), head, count=count, newest_ms=newest, until_ms=until_ms
        )

    def _index(self, history: History, past: Past) -> MatchIndex:
        return MatchIndex.build(history.offsets.numpy(), past.time_ms, past.keys)

    def _described(
        self, state: Any, index: MatchIndex, head: Head | None, *, count: int, newest_ms: int, until_ms: int = NEVER_MS
    ) -> UserState:
        return UserState(
            state=state,
            index=index,
            user=0 if head is None else head.user,
            revision=0 if head is None else head.revision,
            last_sequence=0 if head is None else head.last_sequence,
            floor_ms=0 if head is None else head.floor_ms,
            count=count,
            newest_ms=newest_ms,
            until_ms=until_ms,
        )

    def _keep(self, user_id: str, state: UserState) -> None:
        self.cache.keep(user_id, state, user=state.user, size=state_num_bytes(state.state) + state.index.num_bytes)

    # -- the store ------------------------------------------------------------------------------------------------

    def _plain(self, state: UserState) -> tuple[Any, ...]:
        described = (state.user, state.revision, state.last_sequence, state.floor_ms, state.count, state.newest_ms)
        return (state.state, state.index, described)

    def _in_store(self, user_id: str) -> UserState | None:
        stored = self.model.store.state(self.model.bundle.version, user_id)
        if stored is None:
            return None
        try:
            state, index, described = state_from_bytes(stored.blob, self._form)
        except StateError as error:  # such as one of the version of Sostenuto before; it is made anew
            log.info("a stored state is left aside: %s", error)
            return None
        user, revision, last_sequence, floor_ms, count, newest_ms = (int(x) for x in described)
        return UserState(
            state=state,
            index=index,
            user=user,
            revision=revision,
            last_sequence=last_sequence,
            floor_ms=floor_ms,
            count=count,
            newest_ms=newest_ms,
        )

    def write(self, user_id: str, state: UserState) -> bool:
        """Keep a state of a whole history in the store; see `Store.put_state`."""
        if state.until_ms != NEVER_MS or not state.count:
            return False
        return self.model.store.put_state(
            self.model.bundle.version,
            user_id,
            revision=state.revision,
            newest_ms=state.newest_ms,
            blob=state_to_bytes(self._plain(state)),
        )


__all__ = ["CACHE_BYTES", "NEVER_MS", "UserState", "UserStates"]
