"""Vectors that the user brings: raw item id -> vector."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sostenuto.content.texts import read_table, rows_of_items
from sostenuto.data.prepared import PreparedData
from sostenuto.schema.errors import DataError, SpecError

Array = npt.NDArray[Any]

WIDEST = 8_192
PUBLISHED = {"205": "item_id", "205_c": "vector"}  # columns of TAOBAO-MM's file of vectors


def given_vectors(data: PreparedData, file: Path, ids: Path | None = None) -> tuple[Array, Array, int]:
    """Read vectors of items.

    Args:
        data: prepared folder.
        file: `.npy` (N, W) with `ids`, or a table (parquet, csv, tsv) with `item_id` and either one list column or
              one column per number. The columns of TAOBAO-MM's vectors, 205 and 205_c, are taken as they are.
        ids:  text file with N raw item ids, one a line, in the order of the rows of `.npy`.

    Returns:
        (num_items, W) float32, (num_items,) bool known, and how many ids the data do not know.

    Raises:
        SpecError, DataError: the file is not of this form, a number is not finite, an id stands twice or none is known.
    """
    if file.suffix.lower() == ".npy":
        names, matrix = _of_array(file, ids)
    else:
        if ids is not None:
            raise SpecError(f"--ids goes with a .npy file, {file.name} holds its ids itself; leave it out")
        names, matrix = _of_table(file)
    if not 1 <= matrix.shape[1] <= WIDEST:
        raise DataError(f"a vector must have 1 to {WIDEST:,} numbers, {file} has {matrix.shape[1]}; check the shape")
    row = rows_of_items(data, names, str(file))
    mine = row > 0
    vectors = np.zeros((data.features.num_items, matrix.shape[1]), np.float32)
    vectors[row[mine]] = matrix[mine]
    if not np.isfinite(vectors).all():
        at = int(np.flatnonzero(~np.isfinite(matrix).all(1) & mine)[0])
        raise DataError(f"vectors must be finite numbers, that of item {names[at]!r} in {file} is not; leave it out")
    known = np.zeros(len(vectors), bool)
    known[row[mine]] = True
    return vectors, known, int((~mine).sum())


def file_hash(*files: Path | None) -> str:
    """Return the sha-256 over the contents of files."""
    digest = hashlib.sha256()
    for path in files:
        if path is not None:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


def _of_array(file: Path, ids: Path | None) -> tuple[pl.Series, Array]:
    if ids is None:
        raise SpecError(
            f"vectors in a .npy file must come with their item ids, {file.name} came alone; "
            "give --ids FILE with one raw item id a line"
        )
    try:
        matrix = np.load(file, mmap_mode="r")
        names = ids.read_text(encoding="utf-8").splitlines()
    except ValueError as error:  # no numpy file, or not UTF-8
        raise DataError(f"vectors must be a .npy array and ids UTF-8 text, reading failed ({error})") from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise DataError(
            f"vectors must be numbers of shape (items, width), {file} has {matrix.shape} of {matrix.dtype}; reshape it"
        )
    if len(names) != len(matrix):
        raise DataError(
            f"--ids must have one line a vector, {ids} has {len(names)} lines and {file} {len(matrix)} rows; "
            "write them together"
        )
    return pl.Series(names, dtype=pl.String), matrix


def _of_table(file: Path) -> tuple[pl.Series, Array]:
    table = read_table(file)
    if set(table.columns) == set(PUBLISHED):
        table = table.rename(PUBLISHED)
    if "item_id" not in table.columns:
        raise SpecError(f"a table of vectors must have a column item_id, {file} has {', '.join(table.columns)}")
    rest = table.drop("item_id")
    columns = rest.get_columns()
    try:
        if len(columns) == 1 and isinstance(columns[0].dtype, pl.List | pl.Array):
            lists = columns[0].cast(pl.List(pl.Float32))
            widths = lists.list.len().unique().to_list()
            if len(widths) != 1 or widths[0] is None:
                raise DataError(f"all vectors must have one width, {file} has {sorted(map(str, widths))}; pad or drop")
            matrix = np.array(lists.list.to_array(widths[0]).to_numpy(), np.float32)
        else:
            matrix = rest.cast(pl.Float32).to_numpy()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"vectors must be numbers, {file} holds something else ({error}); write numbers") from error
    return table["item_id"].cast(pl.String), matrix


__all__ = ["file_hash", "given_vectors"]
