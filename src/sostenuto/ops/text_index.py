"""From texts to their numbers, many at once; on numpy arrays and without torch."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.native.library import TextTable, any_library, available, library

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
        self._filled = _fill(texts) if available() else None

    def get(self, text: str, default: int) -> int:
        """Return the number of one text."""
        return self._number.get(text, default)

    def find(self, texts: Sequence[str]) -> Array:
        """Return (N,) int64 numbers, -1 for a text that is not there.

        Raises:
            TypeError: an entry that is no text.
        """
        joined, held, twins = "".join(texts), self._filled, library()
        if held is None or twins is None or not joined.isascii():  # of ASCII, bytes are counted like letters
            known = self._number
            return np.array([known.get(text, -1) for text in texts], np.int64)
        number = np.empty(len(texts), np.int64)
        offsets = _starts(np.fromiter(map(len, texts), np.int64, len(texts)))
        twins.handle.sostenuto_find_texts(
            ctypes.byref(held.table()),
            held.slots.ctypes.data,
            len(texts),
            joined.encode(),
            offsets.ctypes.data,
            number.ctypes.data,
        )
        return number


@dataclass(frozen=True, slots=True)
class _Filled:
    """What the compiled twin searches; the arrays must live as long as it reads them."""

    seed: int  # drawn anew for each: nobody who names items can make them meet in one place
    data: Array  # uint8, of all texts, one after another
    offsets: Array  # (N + 1,)
    slots: Array  # (a power of two, 2) int32

    def table(self) -> TextTable:
        return TextTable(
            texts=len(self.offsets) - 1,
            slots=len(self.slots),
            seed=self.seed,
            bytes=self.data.ctypes.data,
            offsets=self.offsets.ctypes.data,
        )


def _fill(texts: Sequence[str]) -> _Filled:
    lengths = np.fromiter((len(_bytes(text)) for text in texts), np.int64, len(texts))
    data = np.frombuffer(_bytes("".join(texts)) + b"\0", np.uint8)
    slots = np.full((1 << max(4, (2 * len(texts)).bit_length()), 2), -1, np.int32)
    filled = _Filled(seed=secrets.randbits(64), data=data, offsets=_starts(lengths), slots=slots)
    any_library().handle.sostenuto_fill_texts(ctypes.byref(filled.table()), slots.ctypes.data)
    return filled


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _starts(lengths: Array) -> Array:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


__all__ = ["TextIndex"]
