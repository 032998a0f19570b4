"""Raw ids to integers while a log streams by, and the final order once all of it was seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from sostenuto.data.prepared import Array
from sostenuto.schema.features import FIRST_KNOWN

PADDING_ID = ""
UNKNOWN_ID = "?"


# whole numbers below this are looked up in a plain table (4 bytes each) instead of a hash join
DENSE_BELOW = 1 << 26
POWERS_OF_TEN = 10 ** np.arange(1, 19, dtype=np.int64)


class GrowingVocabulary:
    """Gives every distinct text a code in order of arrival; memory grows with distinct ids only.

    Ids that are plainly whole numbers ("17", not "017") take a faster way to the same codes.
    """

    def __init__(self) -> None:
        self._pieces: list[pl.Series] = [pl.Series("id", [], dtype=pl.String)]
        self._length = 0
        self._dense = np.zeros(0, np.int32)  # whole number -> code, -1 unseen
        self._dense_knows = 0  # how many codes the dense table has taken in

    def __len__(self) -> int:
        return self._length

    @property
    def ids(self) -> pl.Series:
        """All texts; position = code."""
        if len(self._pieces) > 1:
            self._pieces = [pl.concat(self._pieces).rechunk()]
        return self._pieces[0]

    def _extend(self, ids: pl.Series) -> None:
        self._pieces.append(ids.alias("id"))
        self._length += len(ids)

    def encode(self, ids: pl.Series) -> Array:
        """Return (N,) int32 codes of texts or whole numbers, -1 where missing; new ids get new codes."""
        numbers = _plain_numbers(ids)
        if numbers is not None:
            return self._encode_numbers(numbers)
        column = ids.cast(pl.String).alias("id").to_frame()
        known = self._table()
        fresh = column.drop_nulls().unique().join(known, on="id", how="anti")["id"]
        if len(fresh):
            self._extend(fresh)
            known = self._table()
        found = column.join(known, on="id", how="left", maintain_order="left")
        return found["code"].fill_null(-1).to_numpy()

    def _table(self) -> pl.DataFrame:
        return pl.DataFrame({"id": self.ids, "code": np.arange(len(self), dtype=np.int32)})

    def _encode_numbers(self, numbers: Array) -> Array:
        if self._dense_knows < len(self):  # ids that came as text may be numbers too
            late = self.ids[self._dense_knows :]
            values = late.cast(pl.Int64, strict=False).fill_null(-1).to_numpy()
            plain = (values >= 0) & (values < DENSE_BELOW) & (_digits(values) == late.str.len_bytes().to_numpy())
            self._reserve(int(values.max(where=plain, initial=-1)))
            self._dense[values[plain]] = np.flatnonzero(plain) + self._dense_knows
        self._reserve(int(numbers.max(initial=-1)))
        codes = self._dense[numbers]
        unseen = np.unique(numbers[codes < 0])
        if len(unseen):
            self._dense[unseen] = np.arange(len(self), len(self) + len(unseen), dtype=np.int32)
            self._extend(pl.Series(unseen).cast(pl.String))
            codes = self._dense[numbers]
        self._dense_knows = len(self)
        return codes

    def _reserve(self, largest: int) -> None:
        if largest >= len(self._dense):
            grown = np.full(min(max(2 * largest, 1 << 10), DENSE_BELOW), -1, np.int32)
            grown[: len(self._dense)] = self._dense
            self._dense = grown

    def ranks(self) -> tuple[pl.Series, Array]:
        """Return the ids in text order, and per code (and -1 at the end) its index: FIRST_KNOWN + rank; 0 for missing.

        The order does not depend on the order of arrival, so nothing that is derived from these indices does.
        """
        order = self._table().sort("id")
        index = np.zeros(len(self) + 1, np.int32)  # the last entry serves code -1
        index[order["code"].to_numpy()] = np.arange(FIRST_KNOWN, FIRST_KNOWN + len(self), dtype=np.int32)
        return with_specials(order["id"]), index


def _digits(numbers: Array) -> Array:
    return np.searchsorted(POWERS_OF_TEN, numbers, side="right") + 1


def _plain_numbers(ids: pl.Series) -> Array | None:
    """Return ids as int64 if all of them are whole numbers in their usual spelling, small enough for a table."""
    if not len(ids) or ids.null_count():
        return None
    if not ids.dtype.is_integer() and not (ids.dtype == pl.String and ids.head(100).str.contains(r"^\d{1,8}$").all()):
        return None
    numbers = ids.cast(pl.Int64, strict=False)
    if numbers.null_count():
        return None
    values = numbers.to_numpy()
    if values.min() < 0 or values.max() >= DENSE_BELOW:
        return None
    if ids.dtype == pl.String and (_digits(values) != ids.str.len_bytes().to_numpy()).any():
        return None
    return values


def with_specials(ids: pl.Series) -> pl.Series:
    """Put padding and unknown before the ids."""
    return pl.concat([pl.Series("id", [PADDING_ID, UNKNOWN_ID]), ids.alias("id").cast(pl.String)])


def by_frequency(ids: pl.Series, counts: Array, *, min_count: int) -> tuple[pl.Series, Array]:
    """Order a vocabulary by descending count, ties by text.

    Args:
        ids:       provisional vocabulary, specials included, in text order.
        counts:    (len(ids),) training events of each.
        min_count: ids with fewer are left out and become unknown; 0 keeps all.
    Returns:
        The final vocabulary, and (len(ids),) int32: provisional index -> final index.
    """
    counts = np.asarray(counts, np.int64)[FIRST_KNOWN:]
    order = np.argsort(-counts, kind="stable")  # provisional order is text order: ties stay in it
    order = order[counts[order] >= min_count]
    index = np.ones(len(ids), np.int32)
    index[:FIRST_KNOWN] = np.arange(FIRST_KNOWN)
    index[order + FIRST_KNOWN] = np.arange(FIRST_KNOWN, FIRST_KNOWN + len(order), dtype=np.int32)
    final = ids[FIRST_KNOWN:].gather(order.astype(np.uint32)) if len(order) else ids[:0]
    return with_specials(final), index


def write_vocabulary(folder: Path, name: str, ids: pl.Series) -> None:
    """Write `vocab/<name>.parquet` of the prepared folder `folder`."""
    (folder / "vocab").mkdir(parents=True, exist_ok=True)
    ids.alias("id").to_frame().write_parquet(folder / "vocab" / f"{name}.parquet")


__all__ = [
    "PADDING_ID",
    "UNKNOWN_ID",
    "GrowingVocabulary",
    "by_frequency",
    "with_specials",
    "write_vocabulary",
]
