"""Histories in LMDB: a user's records in order, cut into pieces that fill a page each.

Key: user code, then time and sequence of the piece's first record. So pieces sort as their records do, a history is
read by walking over a few pages, and an event, late or not, changes one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sostenuto.serving.stores.packing import CODE, EVENT_START

if TYPE_CHECKING:
    from lmdb import Cursor, Transaction

PIECE_BYTES = 4_080  # of a page of 4,096 LMDB takes 16
START = 16  # bytes of time and sequence, the first of a record


class Histories:
    """Reads and changes the histories in one database, inside a transaction of the caller's."""

    def __init__(self, width: int) -> None:
        """Take the bytes of one record."""
        self._width = width
        self._most = PIECE_BYTES // width  # records of a piece

    def read(self, txn: Transaction[memoryview], db: Any, user: int) -> bytes:
        """Return all records of a user, one after another."""
        prefix = CODE.pack(user)
        pieces = []
        with txn.cursor(db) as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor.iternext():
                    if key[:4] != prefix:
                        break
                    pieces.append(value)
            return b"".join(pieces)

    def read_newest(self, txn: Transaction[memoryview], db: Any, user: int, after: int) -> bytes:
        """Return the newest records, those beyond a sequence among them, where these all came in order."""
        prefix = CODE.pack(user)
        pieces: list[memoryview] = []
        with txn.cursor(db) as cursor:
            there = cursor.prev() if cursor.set_range(CODE.pack(user + 1)) else cursor.last()
            while there and cursor.key()[:4] == prefix:
                pieces.append(cursor.value())
                if EVENT_START.unpack_from(pieces[-1])[1] <= after:
                    break
                there = cursor.prev()
            return b"".join(reversed(pieces))

    def insert(self, txn: Transaction[memoryview], db: Any, user: int, records: Sequence[bytes]) -> None:
        """Put records where they belong."""
        prefix, width = CODE.pack(user), self._width
        new = sorted(records)
        at = 0
        with txn.cursor(db) as cursor:
            while at < len(new):
                key = _piece_for(cursor, prefix, new[at][:START])
                old = b"" if key is None else bytes(cursor.value())
                more = key is not None and cursor.next() and cursor.key()[:4] == prefix
                bound = bytes(cursor.key()[4:]) if more else None
                until = at
                while until < len(new) and (bound is None or new[until][:START] < bound):
                    until += 1
                in_order = not old or old[-width : START - width] < new[at][:START]
                if in_order:
                    merged = old + b"".join(new[at:until])
                else:
                    there = [old[start : start + width] for start in range(0, len(old), width)]
                    merged = b"".join(sorted(there + new[at:until]))
                if key is not None:
                    txn.delete(key, db=db)
                # what only ever grows at its end is left in full pieces, anything else in halves
                self._put(txn, db, prefix, merged, full=in_order and bound is None)
                at = until

    def _put(self, txn: Transaction[memoryview], db: Any, prefix: bytes, merged: bytes, *, full: bool) -> None:
        count = len(merged) // self._width
        parts = -(-count // self._most)
        step = (self._most if full else -(-count // parts)) * self._width
        for start in range(0, len(merged), step):
            piece = merged[start : start + step]
            txn.put(prefix + piece[:START], piece, db=db)

    def drop_oldest(self, txn: Transaction[memoryview], db: Any, user: int, count: int) -> None:
        """Take the `count` oldest records of a user away."""
        prefix = CODE.pack(user)
        with txn.cursor(db) as cursor:
            while count and cursor.set_range(prefix) and cursor.key()[:4] == prefix:
                piece = bytes(cursor.value())
                dropped = min(count, len(piece) // self._width)
                cursor.delete()
                rest = piece[dropped * self._width :]
                if rest:
                    txn.put(prefix + rest[:START], rest, db=db)
                count -= dropped

    def count(self, txn: Transaction[memoryview], db: Any) -> int:
        """Return the number of records of all users, whether there is such a user or not."""
        with txn.cursor(db) as cursor:
            return sum(len(value) for value in cursor.iternext(keys=False)) // self._width


def _piece_for(cursor: Cursor[memoryview], prefix: bytes, start: bytes) -> bytes | None:
    """Place a cursor on the piece that a record belongs to; return its key, None where the user has no piece."""
    there = cursor.prev() if cursor.set_range(prefix + start) else cursor.last()
    if not there or cursor.key()[:4] != prefix:
        there = cursor.set_range(prefix)  # older than all: it goes into the first
        if not there or cursor.key()[:4] != prefix:
            return None
    return bytes(cursor.key())


__all__ = ["PIECE_BYTES", "Histories"]
