"""Raw ids to integers while a log streams by, and the final order once all of it was seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from sostenuto.data.prepared import Array
from sostenuto.schema.features import FIRST_KNOWN

PADDING_ID = ""
UNKNOWN_ID = "?"


class GrowingVocabulary:
    """Gives every distinct text a code in order of arrival; memory grows with distinct ids only."""

    def __init__(self) -> None:
        self._known = pl.DataFrame(schema={"id": pl.String, "code": pl.Int32})

    def __len__(self) -> int:
        return len(self._known)

    @property
    def ids(self) -> pl.Series:
        """All texts; position = code."""
        return self._known["id"]

    def encode(self, texts: pl.Series) -> Array:
        """Return (N,) int32 codes, -1 where the text is missing; texts not seen before get new codes."""
        column = texts.alias("id").to_frame()
        fresh = column.drop_nulls().unique().join(self._known, on="id", how="anti")
        if len(fresh):
            codes = pl.Series("code", np.arange(len(self), len(self) + len(fresh), dtype=np.int32))
            self._known = pl.concat([self._known, fresh.with_columns(codes)]).rechunk()
        found = column.join(self._known, on="id", how="left", maintain_order="left")
        return found["code"].fill_null(-1).to_numpy()

    def ranks(self) -> tuple[pl.Series, Array]:
        """Return the ids in text order, and per code (and -1 at the end) its index: FIRST_KNOWN + rank; 0 for missing.

        The order does not depend on the order of arrival, so nothing that is derived from these indices does.
        """
        order = self._known.sort("id")
        index = np.zeros(len(self) + 1, np.int32)  # the last entry serves code -1
        index[order["code"].to_numpy()] = np.arange(FIRST_KNOWN, FIRST_KNOWN + len(self), dtype=np.int32)
        return with_specials(order["id"]), index


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
