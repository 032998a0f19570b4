"""One text per item: columns of the item table, or of a file that the user brings, put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sostenuto.data.prepared import PreparedData
from sostenuto.schema.errors import DataError, SpecError, did_you_mean
from sostenuto.schema.features import FIRST_KNOWN

Array = npt.NDArray[Any]

BETWEEN = ", "  # columns of one text


def text_columns(data: PreparedData) -> dict[str, str]:
    """Return what `--text` may name and where it stands: texts, category levels, fields of categories."""
    found = {name.removeprefix("text."): name for name in data.items.columns if name.startswith("text.")}
    for level in data.features.categories:
        found.setdefault(level.name, f"category.{level.name}")
    for field in data.features.item_fields:
        if field.kind in {"categorical", "multi"}:
            found.setdefault(field.name, f"field.{field.name}")
    return found


def item_texts(data: PreparedData, columns: Sequence[str], file: Path | None = None) -> list[str | None]:
    """Return one text per item index, None where every column is empty; rows 0 and 1 have none.

    Words of the columns stand one after another, separated by commas, white space and control characters folded. A
    category level that repeats the one above it, as levels cut from a path do, stands once.

    Args:
        data:    prepared folder.
        columns: what to put together, in this order.
        file:    parquet, csv or tsv with a column `item_id` and these columns, instead of the item table.

    Raises:
        SpecError: a column that is not there, or none.
        DataError: the file has no or doubled ids, or knows no item of the data.
    """
    if not columns:
        raise SpecError("--text must name at least one column, got none; for example --text title,description")
    parts = _of_table(data, columns) if file is None else _of_file(data, columns, file)
    texts: list[str | None] = [None] * data.features.num_items
    for row in range(FIRST_KNOWN, data.features.num_items):
        words: list[str] = []
        for part in parts:
            word = one_line(part[row])
            if words and word.startswith(words[-1] + " "):
                words[-1] = word
            elif word and word not in words:
                words.append(word)
        texts[row] = BETWEEN.join(words) or None
    return texts


def _of_table(data: PreparedData, columns: Sequence[str]) -> list[list[str | None]]:
    known = text_columns(data)
    parts = []
    for name in columns:
        if name not in known:
            raise SpecError(
                f"--text must name columns of the item table ({', '.join(known) or 'it has none with words'}), got "
                f"{name!r}.{did_you_mean(name, known)} Or bring a file with --texts"
            )
        column = data.items[known[name]]
        parts.append(column.to_list() if known[name].startswith("text.") else _named(column, data.vocabulary(name)))
    return parts


def _named(column: pl.Series, vocabulary: Sequence[str]) -> list[str | None]:
    """Return the words of indices; those of a multi-valued column one after another."""

    def word(value: Any) -> str | None:
        if value is None:
            return None
        if isinstance(value, int):
            return vocabulary[value] if value >= FIRST_KNOWN else None
        return " ".join(vocabulary[index] for index in value if index >= FIRST_KNOWN)

    return [word(value) for value in column.to_list()]


def _of_file(data: PreparedData, columns: Sequence[str], file: Path) -> list[list[str | None]]:
    table = read_table(file)
    for name in ("item_id", *columns):
        if name not in table.columns:
            raise SpecError(
                f"--texts must have the columns item_id, {', '.join(columns)}, {file} has no {name!r} but "
                f"{', '.join(table.columns)}.{did_you_mean(name, table.columns)}"
            )
    row = rows_of_items(data, table["item_id"].cast(pl.String), str(file))
    parts = []
    for name in columns:
        part: list[str | None] = [None] * data.features.num_items
        for at, text in zip(row.tolist(), table[name].cast(pl.String).to_list(), strict=True):
            part[at] = text if at >= FIRST_KNOWN else None
        parts.append(part)
    return parts


def read_table(file: Path) -> pl.DataFrame:
    """Read parquet, csv or tsv; everything in text files is text."""
    if not file.is_file():
        raise SpecError(f"a table must be a file, {file} is none; give the path of a parquet, csv or tsv file")
    kind = file.suffix.lower()
    try:
        if kind == ".parquet":
            return pl.read_parquet(file)
        if kind in {".csv", ".tsv"}:
            return pl.read_csv(file, separator="\t" if kind == ".tsv" else ",", infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"a table must be readable, {file} is not ({error}); write it again") from error
    raise SpecError(f"a table must end in .parquet, .csv or .tsv, got {file.name!r}; convert it")


def rows_of_items(data: PreparedData, ids: pl.Series, where: str) -> Array:
    """Return the (N,) item index of raw ids, 0 for those the data do not know.

    Raises:
        DataError: an id is missing or stands twice, or none is known.
    """
    if ids.null_count():
        raise DataError(f"every row must have an item id, row {int(ids.is_null().arg_max() or 0)} of {where} has none")
    doubled = ids.filter(ids.is_duplicated())
    if len(doubled):
        raise DataError(f"an item id must stand once, {doubled[0]!r} stands twice in {where}; keep one row of it")
    index = {raw: row for row, raw in enumerate(data.vocabulary("item")) if row >= FIRST_KNOWN}
    found = np.array([index.get(raw, 0) for raw in ids.to_list()], np.int64)
    if not found.any():
        first = ids[0] if len(ids) else "nothing"
        raise DataError(
            f"item ids must be those of the log, {where} has {first!r} and no other that the data know; "
            "write the raw ids as the log has them"
        )
    return found


def one_line(text: str | None) -> str:
    """Fold white space and control characters into single spaces.

    >>> one_line("  Guitar\\n strap\\x00 "), one_line(None)
    ('Guitar strap', '')
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())


def distinct_units(units: Sequence[str | None]) -> tuple[list[str], Array]:
    """Return different texts, shorter ones first, and the (N,) int32 place of each item's text, -1 without one."""
    different = sorted({unit for unit in units if unit is not None}, key=lambda unit: (len(unit), unit))
    place = {unit: at for at, unit in enumerate(different)}
    return different, np.array([-1 if unit is None else place[unit] for unit in units], np.int32)


__all__ = ["distinct_units", "item_texts", "one_line", "read_table", "rows_of_items", "text_columns"]
