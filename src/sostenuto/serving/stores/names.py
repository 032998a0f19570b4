"""Names by code, for whoever turns what a store holds back into text."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sostenuto.serving.stores.store import Store


class StoreNames:
    """The names of one kind in a store by code; read once and extended as the store grows."""

    def __init__(self, store: Store, kind: str) -> None:
        self._store, self._kind = store, kind
        self._names = [""]  # code 0 is missing
        self._growing = threading.Lock()

    def __call__(self, code: int) -> str:
        """Return the name of a code."""
        if code >= len(self._names):
            with self._growing:
                self._names += self._store.names(self._kind, since=len(self._names) - 1)
        return self._names[code]


__all__ = ["StoreNames"]
