"""Exposure logs: what was shown to whom, and what was taken; one row per request or one per candidate.

`prepare` turns either into one table, a row per candidate, that the protocol `exposures` reads:
`request` (ordinal, by time, user, content), `user`, `time_ms`, `place`, `item` (indices), `label` in [0, 1], and
`candidate.<name>`, `context.<name>` as text or float32. Memory grows with the candidates of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sostenuto.data import parsing
from sostenuto.data.parsing import Parsed, Sieve, as_number, as_text
from sostenuto.data.prepared import Array
from sostenuto.data.reading import RawChunk, read_chunks
from sostenuto.data.spec import EventField, ExposureSource
from sostenuto.data.vocabularies import GrowingVocabulary

if TYPE_CHECKING:
    from sostenuto.data.preparation import Intake

CLICK = "click"  # action of an event that was made of a positive
UNIT = "\x1f"  # separates what makes up a request's content


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedExposures:
    """Candidates of usable rows, one row each, and what became of the rows."""

    frame: pl.DataFrame  # row, user, item, time_ms, label, key, at, and as named: place, candidate.*, context.*
    rejects: pl.DataFrame
    kept_rows: int
    bad_numbers: dict[str, int]


def exposure_columns(source: ExposureSource) -> list[str]:
    """Return the columns that `parse_exposures` reads."""
    named = (source.request, source.place, source.item, source.label, source.candidates, source.labels, source.clicked)
    columns = [source.user, source.time.column, *(name for name in named if name is not None)]
    both = source.candidate_fields | source.context_fields
    return list(dict.fromkeys([*columns, *(given.column or name for name, given in both.items())]))


def _typed(column: pl.Series, given: EventField, missing: tuple[str, ...]) -> tuple[pl.Series, int]:
    if given.kind == "categorical":
        return as_text(column, missing), 0
    number, bad = as_number(column, missing)
    return number.cast(pl.Float32), bad


def _as_lists(column: pl.Series, source: ExposureSource) -> pl.Series:
    """Return a column as lists of text; joined text is cut, a plain value is a list of one."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if isinstance(column.dtype, pl.List):
        return column.cast(pl.List(pl.String))
    return as_text(column, source.missing).str.split(source.delimiter)


def parse_exposures(chunk: RawChunk, source: ExposureSource, *, last_ms: int) -> ParsedExposures:
    """Type the rows of an exposure log, one row per candidate in the result."""
    raw, missing = chunk.frame, source.missing
    sieve = Sieve(chunk)
    user = as_text(raw[source.user], missing)
    sieve.refuse(user.is_null(), parsing.MISSING_USER)
    time_ms = parsing.judge_time(sieve, raw[source.time.column], source.time, missing, last_ms)
    columns: dict[str, pl.Series] = {"row": pl.Series(chunk.rows), "user": user, "time_ms": time_ms}
    bad_numbers: dict[str, int] = {}
    if source.place is not None:
        columns["place"] = as_text(raw[source.place], missing)
    for name, given in source.context_fields.items():
        column = raw[given.column or name]
        columns[f"context.{name}"], bad_numbers[f"context.{name}"] = _typed(column, given, missing)
    request = as_text(raw[source.request], missing) if source.request else pl.Series([""]).new_from_index(0, len(raw))
    if source.by_candidate:
        parsed = _by_candidate(sieve, raw, source, columns, request, bad_numbers)
        return ParsedExposures(
            frame=parsed.frame, rejects=parsed.rejects, kept_rows=len(parsed.frame), bad_numbers=bad_numbers
        )
    return _by_request(sieve, raw, source, columns, request, bad_numbers)


def _by_candidate(
    sieve: Sieve,
    raw: pl.DataFrame,
    source: ExposureSource,
    columns: dict[str, pl.Series],
    request: pl.Series,
    bad_numbers: dict[str, int],
) -> Parsed:
    item = as_text(raw[str(source.item)], source.missing)
    label = _labels(raw[str(source.label)], source.missing)
    sieve.refuse(item.is_null(), parsing.MISSING_ITEM)
    sieve.refuse(request.is_null(), parsing.MISSING_REQUEST)
    sieve.refuse(label.is_null(), parsing.BAD_LABEL)
    columns |= {"item": item, "label": label, "key": request, "at": pl.zeros(len(raw), pl.Int32, eager=True)}
    for name, given in source.candidate_fields.items():
        column = raw[given.column or name]
        columns[f"candidate.{name}"], bad_numbers[f"candidate.{name}"] = _typed(column, given, source.missing)
    return sieve.split(pl.DataFrame(columns), bad_numbers)


def _labels(column: pl.Series, missing: tuple[str, ...]) -> pl.Series:
    """Return labels in [0, 1], null where there is none."""
    if column.dtype == pl.String:
        lowered = column.str.to_lowercase()
        column = lowered.replace({"true": "1", "false": "0"})
    number, _ = as_number(column, missing)
    return number.set(~number.is_between(0.0, 1.0), None).cast(pl.Float32)


def _by_request(
    sieve: Sieve,
    raw: pl.DataFrame,
    source: ExposureSource,
    columns: dict[str, pl.Series],
    request: pl.Series,
    bad_numbers: dict[str, int],
) -> ParsedExposures:
    items = _as_lists(raw[str(source.candidates)], source)
    items = items.list.eval(pl.when(pl.element().is_in(list(source.missing)).not_()).then(pl.element()))
    length = items.list.len().fill_null(0)
    sieve.refuse(request.is_null(), parsing.MISSING_REQUEST)
    sieve.refuse(length == 0, parsing.NO_CANDIDATES)
    sieve.refuse(items.list.eval(pl.element().is_null()).list.any(), parsing.MISSING_ITEM)
    rows = np.arange(len(raw), dtype=np.int64)
    listed: dict[str, pl.Series] = {}
    if source.labels is not None:
        listed["label"] = _as_lists(raw[source.labels], source)
        sieve.refuse(listed["label"].is_null(), parsing.BAD_LABEL)
    for name, given in source.candidate_fields.items():
        listed[f"candidate.{name}"] = _as_lists(raw[given.column or name], source)
    for column in listed.values():
        sieve.refuse((column.list.len() != length) & column.is_not_null(), parsing.UNEVEN_LISTS)

    long = pl.DataFrame({"at_row": rows, "item": items}).filter(pl.Series((length > 0).to_numpy() & (sieve.code == 0)))
    long = long.explode("item").with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over("at_row").alias("at"))
    good = np.zeros(len(raw), bool)
    good[long["at_row"].to_numpy()] = True
    for name, column in listed.items():
        flat = pl.DataFrame({"at_row": rows, name: column}).filter(pl.Series(good)).drop_nulls(name).explode(name)
        flat = flat.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over("at_row").alias("at"))
        long = long.join(flat, on=["at_row", "at"], how="left", maintain_order="left")
        if name == "label":
            labels = _labels(long[name], source.missing)
            unreadable = np.zeros(len(raw), bool)
            unreadable[long["at_row"].to_numpy()[labels.is_null().to_numpy()]] = True
            sieve.refuse(unreadable, parsing.BAD_LABEL)
            long = long.with_columns(labels.alias(name))
        else:
            given = source.candidate_fields[name.removeprefix("candidate.")]
            typed, bad_numbers[name] = _typed(long[name], given, source.missing)
            long = long.with_columns(typed.alias(name))
    if source.clicked is not None:
        taken = pl.DataFrame({"at_row": rows, "item": _as_lists(raw[source.clicked], source)})
        taken = taken.filter(pl.Series(good)).explode("item").drop_nulls().unique()
        taken = taken.with_columns(pl.lit(1.0, pl.Float32).alias("label"))
        elsewhere = taken.join(long, on=["at_row", "item"], how="anti")
        unknown = np.zeros(len(raw), bool)
        unknown[elsewhere["at_row"].to_numpy()] = True
        sieve.refuse(unknown, parsing.CLICKED_ELSEWHERE)
        long = long.join(taken, on=["at_row", "item"], how="left", maintain_order="left")
        long = long.with_columns(pl.col("label").fill_null(0.0))

    answers = source.labels or str(source.clicked)
    content = [_as_lists(raw[name], source).list.join("|").fill_null("") for name in (str(source.candidates), answers)]
    columns["key"] = request.fill_null("") + UNIT + content[0] + UNIT + content[1]
    whole = pl.DataFrame(columns).with_columns(pl.Series("at_row", rows))
    parsed = sieve.split(whole, bad_numbers)
    frame = parsed.frame.join(long, on="at_row", how="inner", maintain_order="left_right").drop("at_row")
    return ParsedExposures(frame=frame, rejects=parsed.rejects, kept_rows=len(parsed.frame), bad_numbers=bad_numbers)


class ExposureIntake:
    """Reads an exposure log into coded pieces on disk, then into the one table of this module's docstring."""

    def __init__(self, intake: Intake, folder: Path) -> None:
        assert intake.spec.exposures is not None
        self.intake, self.source, self.folder = intake, intake.spec.exposures, folder
        self.read_rows = 0
        self.kept = 0
        self.keys = GrowingVocabulary()
        self._pieces = 0
        self._path = folder / "arranged.parquet"

    def read(
        self, *, last_ms: int, block_bytes: int, parquet_rows: int, seen: Callable[[int], None]
    ) -> Iterator[pl.DataFrame]:
        """Read all files; yields the typed candidates of every chunk."""
        spec, columns = self.intake.spec, exposure_columns(self.source)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in spec.paths(self.source):
            consumed = 0
            for chunk in read_chunks(path, self.source, columns, block_bytes=block_bytes, parquet_rows=parquet_rows):
                parsed = parse_exposures(chunk, self.source, last_ms=last_ms)
                self.read_rows += chunk.read
                self.kept += parsed.kept_rows
                self.intake.rejects.add(parsed.rejects)
                for name, count in parsed.bad_numbers.items():
                    self.intake.bad_numbers[name] = self.intake.bad_numbers.get(name, 0) + count
                self._spill(parsed.frame)
                seen(chunk.consumed - consumed)
                consumed = chunk.consumed
                yield parsed.frame

    def _spill(self, frame: pl.DataFrame) -> None:
        if not len(frame):
            return
        intake = self.intake
        line = np.full(len(frame), -1, np.int64)
        if not self.source.by_candidate:  # a row is a request: tell rows of equal content apart
            line = frame["row"].to_numpy().astype(np.int64) + (self._pieces << 40)
        coded = {
            "user": pl.Series(intake.users.encode(frame["user"])),
            "item": pl.Series(intake.items.encode(frame["item"])),
            "key": pl.Series(self.keys.encode(frame["key"])),
            "line": pl.Series(line),
        }
        if "place" in frame.columns:
            coded["place"] = pl.Series(intake.texts["place"].encode(frame["place"]))
        kept = frame.drop("row", "user", "item", "key", *(["place"] if "place" in frame.columns else []))
        kept.with_columns(column.alias(name) for name, column in coded.items()).write_parquet(
            self.folder / f"{self._pieces:06d}.parquet"
        )
        self._pieces += 1

    def events(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return what was taken as events, at the time of the exposure."""
        taken = frame.filter(pl.col("label") > 0)
        columns = ["user", "item", "time_ms", *(["place"] if "place" in frame.columns else [])]
        return taken.select(columns).with_columns(pl.lit(CLICK).alias("action"))

    def summary(self) -> dict[str, float]:
        """Return requests, candidates and how many a request has, over everything read."""
        pieces = sorted(self.folder.glob("[0-9]*.parquet"))
        sizes = [pl.read_parquet(path, columns=["user", "key", "line"]) for path in pieces]
        if not sizes:
            return {"requests": 0, "candidates": 0}
        counts = pl.concat(sizes).group_by("user", "key", "line").agg(pl.len())["len"]
        return {
            "requests": len(counts),
            "candidates": int(counts.sum()),
            "fewest candidates": int(counts.min()),  # type: ignore[arg-type]
            "mean candidates": round(float(counts.mean()), 2),  # type: ignore[arg-type]
            "most candidates": int(counts.max()),  # type: ignore[arg-type]
        }

    def arrange(self, indices: dict[str, Array]) -> Path:
        """Put the pieces together in an order that depends on their content only.

        Args:
            indices: "user", "item" and perhaps "place": code by arrival -> provisional index.
        """
        frame = pl.concat([pl.read_parquet(path) for path in sorted(self.folder.glob("[0-9]*.parquet"))])
        _, key_rank = self.keys.ranks()
        columns = {name: pl.Series(index[frame[name].to_numpy()]) for name, index in indices.items() if name in frame}
        columns["key"] = pl.Series(key_rank[frame["key"].to_numpy()])
        if "place" not in frame.columns:
            columns["place"] = pl.zeros(len(frame), pl.Int32, eager=True)
        frame = frame.with_columns(column.alias(name) for name, column in columns.items())
        shown = [name for name in frame.columns if name.startswith(("candidate.", "context."))]
        group = ["user", "key", "line"]
        frame = frame.sort([*group, "at", "item", "label", "time_ms", "place", *shown])
        context = [name for name in shown if name.startswith("context.")]
        frame = frame.with_columns(
            pl.col("time_ms").min().over(group), *(pl.col(name).first().over(group) for name in ["place", *context])
        )
        frame = frame.sort(["time_ms", *group], maintain_order=True)
        starts = pl.struct(group).rle_id().cast(pl.Int64).alias("request")
        frame.with_columns(starts).drop("key", "line", "at").write_parquet(self._path)
        return self._path

    def finish(self, indices: dict[str, Array]) -> Path:
        """Give items and places their final indices."""
        frame = pl.read_parquet(self._path)
        final = [pl.Series(name, index[frame[name].to_numpy()]) for name, index in indices.items() if name in frame]
        path = self.folder / "exposures.parquet"
        frame.with_columns(final).write_parquet(path)
        return path


__all__ = ["CLICK", "ExposureIntake", "ParsedExposures", "exposure_columns", "parse_exposures"]
