"""What a user did with each item, strictly before a moment: what sources, rules and the cheap stage read of her."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.schema.features import FIRST_KNOWN, UNKNOWN
from sostenuto.serving.stores.layout import ACTION, ITEM
from sostenuto.serving.stores.names import StoreNames
from sostenuto.serving.user_cache import UserCache

if TYPE_CHECKING:
    from sostenuto.serving.live_model import LiveModel

Array = npt.NDArray[Any]

HALF_LIFE_MS = 28 * 86_400_000
CACHE_BYTES = 128 << 20


@dataclass(frozen=True, kw_only=True)
class UserPast:
    """Distinct items of a user's behaviours; a value."""

    item: Array  # (U,) int64 indices, rising; known ones only
    count: Array  # (U,) int64
    last_ms: Array  # (U,) int64
    decayed: Array  # (U,) float64 sum of 2 ** (-age / 28 days), as it stood at `newest_ms`
    is_bought: Array  # (U,) bool: by an action that counts as buying
    newest_ms: int = 0  # of all behaviours; meaningless when there are none
    length: int = 0  # behaviours, those with unknown items included
    bought_unknown: frozenset[str] = frozenset()  # raw ids bought that the bundle does not know

    @classmethod
    def of(
        cls, item: Array, time_ms: Array, is_bought: Array | None = None, bought_unknown: Sequence[str] = ()
    ) -> UserPast:
        """Sum up (L,) behaviours in any order; `is_bought` (L,), all when left out."""
        newest = int(time_ms.max()) if len(time_ms) else 0
        weight = np.exp2((time_ms - newest) / HALF_LIFE_MS)
        known = item >= FIRST_KNOWN
        bought = np.ones(len(item), np.bool_) if is_bought is None else is_bought
        items, row, count = np.unique(item[known].astype(np.int64), return_inverse=True, return_counts=True)
        last = np.full(len(items), np.iinfo(np.int64).min)
        np.maximum.at(last, row, time_ms[known])
        return cls(
            item=items,
            count=count,
            last_ms=last,
            decayed=np.bincount(row, weight[known], len(items)),
            is_bought=np.bincount(row, bought[known], len(items)) > 0,
            newest_ms=newest,
            length=len(item),
            bought_unknown=frozenset(bought_unknown),
        )

    @cached_property
    def by_recency(self) -> Array:
        """Positions in `item`, newest first; of one moment those met more often first."""
        return np.lexsort((self.item, -self.count, -self.last_ms))

    def find(self, item: Array) -> tuple[Array, Array]:
        """Return (found, position) of (N,) items."""
        if not len(self.item):
            return np.zeros(len(item), np.bool_), np.zeros(len(item), np.int64)
        at = np.minimum(np.searchsorted(self.item, item), len(self.item) - 1)
        return self.item[at] == item, at

    def decayed_at(self, moment_ms: int) -> Array:
        """Return (U,) decayed counts as they stand at a moment."""
        return np.asarray(self.decayed * np.exp2(-max(moment_ms - self.newest_ms, 0) / HALF_LIFE_MS))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self.item, self.count, self.last_ms, self.decayed, self.is_bought)
        return sum(int(a.nbytes) for a in arrays) + int(self.item.nbytes) + sum(map(len, self.bought_unknown)) + 200


NO_PAST = UserPast.of(np.zeros(0, np.int64), np.zeros(0, np.int64))


class Pasts:
    """Reads the pasts of users from the store of a live model, and keeps those of whole histories.

    Args:
        model:          a bundle over a store.
        bought_actions: names of the actions that count as buying; () = all.
        cache_bytes:    kept in memory; the one that was not used for longest goes first.
    """

    def __init__(self, model: LiveModel, *, bought_actions: Sequence[str] = (), cache_bytes: int = CACHE_BYTES) -> None:
        self.model = model
        self.bought_actions = frozenset(bought_actions)
        self._items, self._actions = StoreNames(model.store, ITEM), StoreNames(model.store, ACTION)
        self.cache: UserCache[tuple[int, int, UserPast]] = UserCache(cache_bytes)  # code, revision, past

    def at(self, user_id: str, moment_ms: int) -> UserPast:
        """Return what a user did strictly before a moment."""
        head = self.model.store.head(user_id)
        if head is None or not head.count or head.first_ms >= moment_ms:
            return NO_PAST
        kept = self.cache.get(user_id)
        if head.last_ms < moment_ms and kept is not None and kept[:2] == (head.user, head.revision):
            return kept[2]
        history = self.model.store.history(user_id, before_ms=moment_ms)
        if history is None:  # deleted a moment ago
            return NO_PAST
        item = self.model.items_of(history.item)
        bought = self._is_bought(history.action)
        unknown = np.unique(history.item[(item == UNKNOWN) & bought])
        past = UserPast.of(item, history.time_ms, bought, [self._items(int(code)) for code in unknown])
        if history.head.last_ms < moment_ms:
            user = history.head.user
            self.cache.keep(user_id, (user, history.revision, past), user=user, size=past.nbytes)
        return past

    def _is_bought(self, action: Array) -> Array:
        if not self.bought_actions:
            return np.ones(len(action), np.bool_)
        wanted = [code for code in np.unique(action).tolist() if self._actions(code) in self.bought_actions]
        return np.isin(action, wanted)


__all__ = ["CACHE_BYTES", "HALF_LIFE_MS", "NO_PAST", "Pasts", "UserPast"]
