"""Values of users in memory, within a number of bytes; the one that was not used for longest goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Set
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Kept(NamedTuple):
    value: object
    user: int  # code of the store
    size: int  # bytes


class UserCache(Generic[T]):
    """Safe to share between threads.

    Args:
        most_bytes: of all values together; a larger one is not kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.num_bytes = 0
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, user_id: str) -> T | None:
        """Return the value of a user, None without one."""
        with self._lock:
            if (found := self._kept.get(user_id)) is None:
                return None
            self._kept.move_to_end(user_id)
            return found.value  # type: ignore[return-value]

    def keep(self, user_id: str, value: T, *, user: int, size: int) -> None:
        """Keep a value of `size` bytes in place of the one before; `user` is the store's code."""
        with self._lock:
            self._forget(user_id)
            if size > self.most_bytes:
                return
            self._kept[user_id] = _Kept(value, user, size)
            self.num_bytes += size
            while self.num_bytes > self.most_bytes:
                self._forget(next(iter(self._kept)))

    def forget(self, user_id: str) -> None:
        """Take a user out."""
        with self._lock:
            self._forget(user_id)

    def forget_codes(self, users: Set[int]) -> None:
        """Take users out by the store's codes: all that is told of those who were deleted."""
        with self._lock:
            for user_id in [user_id for user_id, kept in self._kept.items() if kept.user in users]:
                self._forget(user_id)

    def clear(self) -> None:
        """Take everybody out."""
        with self._lock:
            self._kept.clear()
            self.num_bytes = 0

    def _forget(self, user_id: str) -> None:
        if (gone := self._kept.pop(user_id, None)) is not None:
            self.num_bytes -= gone.size


__all__ = ["UserCache"]
