"""Prepared data in the format that MUSE published TAOBAO-MM in: joined shards, and int8 vectors of items.

The other direction is `data.sources.taobao`. A shard has a row per sample with everything in it, as the published
reader takes it:

    label_0      [no click, click], int8        205, 206      target item and its category
    129_1        user                           213, 214      item fields (0 where the data have none)
    130_1 .. 5   user fields                    150_2_180     history of items, oldest first
                                                151_2_180     their categories

The published demo has histories as long as they are, at most 1,000; the published model reads them padded on the left
with 0. Both can be written. An item has one category here: where the published data give it two, the first is kept.

Ids are 64-bit numbers. Where a raw id is none, or an item's is 0, which pads, all of the kind are numbered by index.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from sostenuto.data.prepared import Array, PreparedData, Requests
from sostenuto.data.sources.taobao import (
    CATEGORY_SEQUENCE,
    ITEM,
    ITEM_FIELDS,
    ITEM_SEQUENCE,
    LABEL,
    USER,
    USER_FIELDS,
    VECTOR,
    VECTOR_FILE,
)
from sostenuto.schema.errors import DataError
from sostenuto.schema.features import FIRST_KNOWN

LARGEST_CODE = 127
LENGTH = 1_000  # of a published sequence
SPLITS = {"train": ("train", "valid"), "test": ("test",)}
SAMPLES = 20_000  # of a shard


def published_codes(vectors: Array) -> Array:
    """Return (N, W) int8 codes as published: trunc(127 clip(x, -1, 1)) of (N, W) vectors, made as long as 1 first."""
    length = np.linalg.norm(np.asarray(vectors, np.float64), axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros(vectors.shape), where=length > 0)
    codes: Array = np.trunc(np.clip(unit, -1.0, 1.0) * LARGEST_CODE).astype(np.int8)
    return codes


def published_vectors(codes: Array) -> Array:
    """Return (N, W) float32 vectors of length 1 of published codes; zero where all codes are 0."""
    rows = np.asarray(codes, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = np.divide(rows, length, out=np.zeros(rows.shape), where=length > 0).astype(np.float32)
    return unit


def are_codes(vectors: Array) -> bool:
    """Return whether all numbers are whole and fit eight bits: published codes that were kept as they were."""
    rows = np.asarray(vectors, np.float32)
    return bool((np.abs(rows) <= LARGEST_CODE).all() and (rows == np.rint(rows)).all())


def write_shards(
    data: PreparedData,
    folder: str | Path,
    *,
    vectors: Array | None = None,
    known: Array | None = None,
    length: int = LENGTH,
    pad: bool = False,
) -> dict[str, int]:
    """Write the samples of prepared data as joined shards, and vectors of items beside them.

    Validation samples come behind those of training, as the reader takes the last tenth of these to validate.

    Args:
        data:    prepared folder with requests.
        folder:  empty or not there yet.
        vectors: (num_items, W) of item indices; whole numbers within 127 are codes already and stay as they are.
        known:   (num_items,) bool which items have one.
        length:  behaviours of a sequence, the newest.
        pad:     make every sequence that long, with 0 on the left.

    Returns:
        samples written by split, and vectors.

    Raises:
        DataError: the folder holds something, or the data have no requests.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"the folder must be empty, {folder} holds files; take another one")
    if data.manifest.protocol is None:
        raise DataError(f"{data.folder} must hold requests, it has no protocol; prepare it with one")
    if length < 1:
        raise DataError(f"length must be at least 1, got {length}; raise it")
    folder.mkdir(parents=True, exist_ok=True)
    numbers = _Numbers.of(data)
    counts = {}
    for split, parts in SPLITS.items():
        shard = done = 0
        for part in parts:
            for frame in _frames(data, data.requests(part), numbers, length, pad=pad):
                frame.write_parquet(folder / f"{split}-shard-{shard:05d}.parquet")
                shard, done = shard + 1, done + frame.height
        counts[split] = done
    if vectors is not None:
        mine = np.flatnonzero(np.ones(len(vectors), bool) if known is None else known)
        mine = mine[mine >= FIRST_KNOWN]
        rows = np.asarray(vectors)[mine]
        codes = rows.astype(np.int8) if are_codes(rows) else published_codes(rows)
        lists = pl.Series(codes).cast(pl.List(pl.Int8))
        pl.DataFrame({ITEM: numbers.item[mine], VECTOR: lists}).write_parquet(folder / VECTOR_FILE)
        counts["vectors"] = len(mine)
    return counts


class _Numbers:
    """The 64-bit numbers that stand for indices of the data."""

    def __init__(self, *, item: Array, category: Array, user: Array, fields: dict[str, Array]) -> None:
        self.item = item  # of item index
        self.category = category  # of item index
        self.user = user  # of user index
        self.fields = fields  # by published name, of item or user index

    @classmethod
    def of(cls, data: PreparedData) -> _Numbers:
        levels = data.features.categories
        category = np.zeros(data.features.num_items, np.int64)
        if levels:
            category = _numbered(data.vocabulary(levels[-1].name))[data.item_category[:, -1]]
        fields = {}
        for field in (*data.features.context_fields, *data.features.item_fields):
            if field.kind == "categorical" and field.name in (*USER_FIELDS, *ITEM_FIELDS[1:]):
                column = data.user_field(field.name) if field.name in USER_FIELDS else data.item_field(field.name)
                fields[field.name] = _numbered(data.vocabulary(field.name))[column]
        return cls(
            item=_numbered(data.vocabulary("item"), zero_pads=True),
            category=category,
            user=_numbered([word.removeprefix("train:").removeprefix("test:") for word in data.vocabulary("user")]),
            fields=fields,
        )


def _numbered(words: list[str], *, zero_pads: bool = False) -> Array:
    """Return (n,) int64: the words themselves where all are numbers, else their indices; 0 for what is not known.

    Words must not fall together: `7` and `07` are no numbers here. With `zero_pads` 0 is none either.
    """
    numbers = np.arange(len(words), dtype=np.int64)
    numbers[:FIRST_KNOWN] = 0
    known = words[FIRST_KNOWN:]
    try:
        spelled = np.array([int(word) for word in known], np.int64)
    except (ValueError, OverflowError):
        return numbers
    if len(np.unique(spelled)) == len(set(known)) and not (zero_pads and (spelled == 0).any()):
        numbers[FIRST_KNOWN:] = spelled
    return numbers


def _frames(
    data: PreparedData, requests: Requests, numbers: _Numbers, length: int, *, pad: bool
) -> Iterator[pl.DataFrame]:
    """Yield the shards of a split."""
    behaviours = data.behaviours
    row = np.repeat(np.arange(len(requests)), np.diff(requests.offsets))
    for start in range(0, len(row), SAMPLES):
        rows = row[start : start + SAMPLES]
        item = np.asarray(requests.item[start : start + SAMPLES], np.int64)
        clicked = (np.asarray(requests.label[start : start + SAMPLES]) > 0.5).astype(np.int8)
        user = np.asarray(requests.user, np.int64)[rows]
        low = np.asarray(behaviours.offsets, np.int64)[user]
        high = low + np.asarray(requests.prefix, np.int64)[rows]
        at = high[:, None] - length + np.arange(length)
        past = np.zeros(at.shape, np.int64)
        real = at >= low[:, None]
        past[real] = behaviours.item[at[real]]
        columns: dict[str, pl.Series] = {
            LABEL: pl.Series(np.stack([1 - clicked, clicked], 1)).cast(pl.List(pl.Int8)),
            USER: pl.Series(numbers.user[user]),
        }
        for name in USER_FIELDS:
            columns[name] = _series(numbers.fields.get(name), user)
        columns |= {ITEM: pl.Series(numbers.item[item]), ITEM_FIELDS[0]: pl.Series(numbers.category[item])}
        for name in ITEM_FIELDS[1:]:
            columns[name] = _series(numbers.fields.get(name), item)
        lengths = np.full(len(rows), length) if pad else real.sum(1)
        kept = np.ones_like(real) if pad else real
        for name, values in ((ITEM_SEQUENCE, numbers.item[past]), (CATEGORY_SEQUENCE, numbers.category[past])):
            columns[name] = _lists(values[kept], lengths)
        yield pl.DataFrame(columns)


def _lists(values: Array, lengths: Array) -> pl.Series:
    """Return lists of the given lengths that hold flat int64 values."""
    rows = [row.tolist() for row in np.split(values, np.cumsum(lengths)[:-1])]
    return pl.Series(rows, dtype=pl.List(pl.Int64))


def _series(column: Array | None, index: Array) -> pl.Series:
    return pl.Series(np.zeros(len(index), np.int64) if column is None else column[index].astype(np.int64))


__all__ = ["are_codes", "published_codes", "published_vectors", "write_shards"]
