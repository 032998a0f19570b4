"""From texts to their numbers, many at once; on numpy arrays and without torch."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.native.library import TextTable, any_library, library

Array = npt.NDArray[Any]


class TextIndex:
    """Numbers of distinct texts: their places in a list.

    A dictionary waits for memory at every text in turn, a microsecond in a large one; the compiled twin asks for many
    and waits once.

    Args:
        texts: distinct.

    Raises:
        ValueError: a text that stands there twice.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._number = {text: n for n, text in enumerate(texts)}
        if len(self._number) != len(texts):
            raise ValueError(
                f"texts must be distinct, {len(texts) - len(self._number)} stand there twice; leave them out"
            )
        self._table: tuple[TextTable, Array, Array, Array] | None = None

    def get(self, text: str, default: int) -> int:
        """Return the number of one text."""
        return self._number.get(text, default)

    def find(self, texts: Sequence[str]) -> Array:
        """Return (N,) int64 numbers, -1 for a text that is not there.

        Raises:
            TypeError: an entry that is no text.
        """
        joined = "".join(texts)
        if library() is None or not joined.isascii():  # of ASCII, bytes are counted like letters
            known = self._number
            return np.array([known.get(text, -1) for text in texts], np.int64)
        if self._table is None:
            self._table = self._filled()
        table, _, _, slots = self._table
        number = np.empty(len(texts), np.int64)
        offsets = _starts(np.fromiter(map(len, texts), np.int64, len(texts)))
        any_library().handle.sostenuto_find_texts(
            ctypes.byref(table), slots.ctypes.data, len(texts), joined.encode(), offsets.ctypes.data, number.ctypes.data
        )
        return number

    def _filled(self) -> tuple[TextTable, Array, Array, Array]:
        encoded = [text.encode("utf-8", "surrogatepass") for text in self._number]
        data = np.frombuffer(b"".join(encoded) + b"\0", np.uint8)
        offsets = _starts(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        slots = np.full((1 << max(4, (2 * len(encoded)).bit_length()), 2), -1, np.int32)
        table = TextTable(
            texts=len(encoded),
            slots=len(slots),
            seed=secrets.randbits(64),  # nobody who names items can make them meet in one place
            bytes=data.ctypes.data,
            offsets=offsets.ctypes.data,
        )
        any_library().handle.sostenuto_fill_texts(ctypes.byref(table), slots.ctypes.data)
        return table, data, offsets, slots


def _starts(lengths: Array) -> Array:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


__all__ = ["TextIndex"]
