"""Item and user tables: read whole, one row per id, turned into indexed columns beside the vocabularies.

A category, place or tag that only the table knows still gets an index of its own: a static table may be known in
full before the first event. Means and deviations weigh rows by their events in training time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from sostenuto.data.parsing import MISSING_ITEM, MISSING_USER, as_number, as_text
from sostenuto.data.prepared import Array
from sostenuto.data.reading import read_chunks, rejects_frame
from sostenuto.data.rejects import Rejects
from sostenuto.data.spec import DataSpec, ItemTable, TableField, UserTable
from sostenuto.data.vocabularies import by_frequency, with_specials
from sostenuto.schema.errors import DataError
from sostenuto.schema.features import FIRST_KNOWN, Field

WIDEST_MULTI = 16  # values kept of a multi-valued column unless the spec says a width

DUPLICATE_ID = "id already seen"


@dataclass(slots=True, kw_only=True)
class SideTable:
    """The raw rows of a table: `id`, `category.<level>` as text, fields as they came; unique ids."""

    frame: pl.DataFrame
    read: int = 0
    bad_numbers: dict[str, int] = field(default_factory=dict)


def _split_path(path: pl.Series, delimiter: str, levels: tuple[str, ...]) -> dict[str, pl.Series]:
    """Cut `a > b > c` into levels; a level's name holds all above it, so that two 'other' stay apart."""
    parts = path.str.split(delimiter).list.eval(pl.element().str.strip_chars())
    depth = parts.list.len()
    names = {}
    for at, level in enumerate(levels):
        joined = parts.list.head(at + 1).list.join(f" {delimiter} ")
        names[f"category.{level}"] = joined.set((depth <= at).fill_null(value=True), None)
    return names


def read_table(
    spec: DataSpec, source: ItemTable | UserTable, rejects: Rejects, *, seen: Callable[[int], None] | None = None
) -> SideTable:
    """Read an item or user table; rows without an id, or with one seen before, are rejected."""
    key = source.item if isinstance(source, ItemTable) else source.user
    columns = [key, *(given.column or name for name, given in source.fields.items())]
    if isinstance(source, ItemTable):
        columns += [*source.categories, *([source.category_path] if source.category_path else [])]
    pieces, total = [], 0
    known: set[str] = set()
    for path in spec.paths(source):
        consumed = 0
        for chunk in read_chunks(path, source, columns):
            total += chunk.read
            rejects.add(chunk.rejects)
            ids = as_text(chunk.frame[key], source.missing)
            first = ids.is_first_distinct() & ~ids.is_in(known)
            known.update(ids.drop_nulls().to_list())
            bad = ids.is_null() | ~first
            if bad.any():
                at = bad.arg_true().to_numpy()
                none = MISSING_ITEM if isinstance(source, ItemTable) else MISSING_USER
                reasons = [none if ids[int(row)] is None else DUPLICATE_ID for row in at]
                rejects.add(rejects_frame(path, chunk.rows[at], reasons, chunk.raw(at)))
            made = {"id": ids}
            if isinstance(source, ItemTable):
                if source.category_path:
                    text = as_text(chunk.frame[source.category_path], source.missing)
                    made |= _split_path(text, source.path_delimiter, source.path_levels)
                made |= {f"category.{name}": as_text(chunk.frame[name], source.missing) for name in source.categories}
            for name, given in source.fields.items():
                column = chunk.frame[given.column or name]
                listed = given.kind in {"multi", "vector"}
                if listed and column.dtype == pl.String:
                    column = as_text(column, source.missing).str.split(given.delimiter)
                elif isinstance(column.dtype, pl.Array):
                    column = column.arr.to_list()
                if listed and isinstance(column.dtype, pl.List):
                    made[name] = column.cast(pl.List(pl.String))
                elif given.kind == "numeric":
                    made[name] = column if column.dtype.is_numeric() else as_text(column, source.missing)
                elif isinstance(column.dtype, pl.List):
                    raise DataError(
                        f"field {name!r} must have kind 'multi' or 'vector' to hold lists, {path} has lists and the "
                        f"kind is {given.kind!r}; correct the spec"
                    )
                else:
                    made[name] = as_text(column, source.missing)
            pieces.append(pl.DataFrame(made).filter(~bad))
            if seen is not None:
                seen(chunk.consumed - consumed)
                consumed = chunk.consumed
    frame = pl.concat(pieces, how="vertical_relaxed") if pieces else pl.DataFrame({"id": []}, schema={"id": pl.String})
    return SideTable(frame=frame, read=total)


@dataclass(slots=True)
class Built:
    """Finished columns of a table, their specification and their vocabularies."""

    columns: dict[str, pl.Series] = field(default_factory=dict)
    fields: list[Field] = field(default_factory=list)
    vocabularies: dict[str, pl.Series] = field(default_factory=dict)
    bad_cells: dict[str, int] = field(default_factory=dict)


def indexed(texts: pl.Series, weights: Array) -> tuple[pl.Series, Array]:
    """Index the texts of a static table: by weight, then by text; every text owns an index, missing is 0.

    Returns:
        The vocabulary and (N,) int32 indices.
    """
    frame = pl.DataFrame({"id": texts.cast(pl.String), "weight": pl.Series(np.asarray(weights, np.int64))})
    counts = frame.drop_nulls("id").group_by("id").agg(pl.col("weight").sum()).sort("id")
    provisional = with_specials(counts["id"])
    weighed = np.concatenate((np.zeros(FIRST_KNOWN, np.int64), counts["weight"].to_numpy()))
    ids, _ = by_frequency(provisional, weighed, min_count=0)
    places = pl.DataFrame({"id": ids, "index": np.arange(len(ids), dtype=np.int32)})[FIRST_KNOWN:]
    found = frame.select("id").join(places, on="id", how="left", maintain_order="left")["index"]
    return ids, found.fill_null(0).to_numpy().astype(np.int32)


def weighted_moments(values: Array, weights: Array) -> tuple[float, float]:
    """Return mean and deviation of the finite values; (0, 1) where nothing is known, deviation 1 where constant.

    Sums run over float64 in a fixed order, so that the same data give the same bits.
    """
    good = np.isfinite(values) & (weights > 0)
    if not good.any():
        return 0.0, 1.0
    value, weight = values[good].astype(np.float64), weights[good].astype(np.float64)
    mean = float(np.dot(value, weight) / weight.sum())
    std = float(np.sqrt(np.dot((value - mean) ** 2, weight) / weight.sum()))
    return mean, std if std > 1e-12 * max(1.0, abs(mean)) else 1.0


def _matrix(rows: Array, places: Array, values: Array, shape: tuple[int, int]) -> Array:
    out = np.zeros(shape, values.dtype)
    out[rows, places] = values
    return out


def build_fields(
    table: pl.DataFrame, fields: Mapping[str, TableField], weights: Array, missing: tuple[str, ...]
) -> Built:
    """Turn the raw columns of a table, aligned with a vocabulary, into indexed ones.

    Args:
        table:   row = index; null where an id is not in the table.
        weights: (rows,) events in training time of each id.
    """
    built = Built()
    for name, given in fields.items():
        column = table[name]
        key = f"field.{name}"
        if given.kind == "text":
            built.columns[f"text.{name}"] = column
        elif given.kind == "categorical":
            ids, index = indexed(column, weights)
            built.columns[key] = pl.Series(index)
            built.vocabularies[name] = ids
            built.fields.append(Field(name=name, kind="categorical", size=len(ids)))
        elif given.kind == "numeric":
            number, bad = as_number(column, missing)
            values = number.to_numpy()
            mean, std = weighted_moments(values, weights if weights.any() else np.ones(len(values)))
            built.columns[key] = pl.Series(values.astype(np.float32))
            built.fields.append(Field(name=name, kind="numeric", mean=mean, std=std))
            built.bad_cells[name] = bad
        else:
            lists = pl.DataFrame({"row": np.arange(len(column)), "value": column})
            lists = lists.filter(pl.col("value").list.len().fill_null(0) > 0)
            long = lists.explode("value").with_columns(pl.int_range(pl.len()).over("row").alias("at"))
            if given.kind == "multi":
                _build_multi(built, name, given, long, weights, len(column), missing)
            else:
                _build_vector(built, name, given, long, len(column))
    return built


def _build_multi(
    built: Built,
    name: str,
    given: TableField,
    long: pl.DataFrame,
    weights: Array,
    rows: int,
    missing: tuple[str, ...],
) -> None:
    texts = as_text(long["value"].str.strip_chars(), missing)
    long = long.with_columns(texts.alias("value")).drop_nulls("value")
    long = long.with_columns(pl.int_range(pl.len()).over("row").alias("at"))
    longest = int(long["at"].max()) + 1 if len(long) else 1  # type: ignore[arg-type]
    width = given.width or min(longest, WIDEST_MULTI)
    row = long["row"].to_numpy()
    ids, index = indexed(long["value"], weights[row])
    at = long["at"].to_numpy()
    inside = at < width
    values = _matrix(row[inside], at[inside], index[inside], (rows, width))
    built.columns[f"field.{name}"] = pl.Series(values, dtype=pl.Array(pl.Int32, width))
    built.vocabularies[name] = ids
    built.fields.append(Field(name=name, kind="multi", size=len(ids), width=width))
    built.bad_cells[name] = int((~inside).sum())


def _build_vector(built: Built, name: str, given: TableField, long: pl.DataFrame, rows: int) -> None:
    row, at = long["row"].to_numpy(), long["at"].to_numpy()
    values, _ = as_number(long["value"], ("",))
    lengths = np.bincount(row, minlength=rows)
    unreadable = np.bincount(row, weights=np.isnan(values.to_numpy()), minlength=rows) > 0
    width = given.width or (int(lengths[row[0]]) if len(row) else 1)
    wrong = (lengths > 0) & ((lengths != width) | unreadable)
    good = ~wrong[row]
    matrix = _matrix(row[good], at[good], values.to_numpy()[good].astype(np.float32), (rows, width))
    built.columns[f"field.{name}"] = pl.Series(matrix, dtype=pl.Array(pl.Float32, width))
    built.fields.append(Field(name=name, kind="vector", width=width))
    built.bad_cells[name] = int(wrong.sum())


__all__ = ["DUPLICATE_ID", "Built", "SideTable", "build_fields", "indexed", "read_table", "weighted_moments"]
