"""Raw rows into typed columns: ids as text, times as epoch milliseconds, numbers as numbers; bad rows get a reason."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from sostenuto.data.prepared import Array
from sostenuto.data.reading import RawChunk, rejects_frame
from sostenuto.data.spec import Constant, EventSource, TimeColumn
from sostenuto.schema.errors import SpecError

MISSING_USER = "missing user"
MISSING_ITEM = "missing item"
MISSING_TIME = "missing time"
BAD_TIME = "unparsable time"
SKIPPED_TIME = "time skipped by the zone's clocks"
FUTURE_TIME = "future time"
BAD_LABEL = "missing or unreadable label"
MISSING_REQUEST = "missing request id"
NO_CANDIDATES = "no candidates"
UNEVEN_LISTS = "lists of different lengths"
CLICKED_ELSEWHERE = "clicked item not among the candidates"

BAD_NUMBER = "unreadable number, kept as missing"  # counted per column; the row stays

TICKS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
LAST_MS = 253_402_300_799_999  # the end of year 9999; what lies beyond counts as future
FIRST_MS = -62_135_596_800_000
ISO = r"^\s*(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(?:[.,](\d+))?)?\s*(Z|z|UTC|[+-]\d\d(?::?\d\d)?)?\s*$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """Rows that can be used, rows that cannot, and what was mended in the former."""

    frame: pl.DataFrame  # `row` and the named columns of the source
    rejects: pl.DataFrame
    bad_numbers: Mapping[str, int] = field(default_factory=dict)  # column -> cells that were text but no number


def as_text(column: pl.Series, missing: tuple[str, ...]) -> pl.Series:
    """Return a column as text, null where it says nothing."""
    text = column if column.dtype == pl.String else column.cast(pl.String)
    if missing == ("",):
        return text.set(text == "", None) if (text == "").any() else text
    return text.set(text.is_in(list(missing)), None)


def as_id(column: pl.Series, missing: tuple[str, ...]) -> pl.Series:
    """Return a column of ids as text; whole numbers stay numbers where no spelling of "missing" could hide in them."""
    return column if column.dtype.is_integer() and missing == ("",) else as_text(column, missing)


def as_number(column: pl.Series, missing: tuple[str, ...]) -> tuple[pl.Series, int]:
    """Return a column as float64 with NaN for missing, and how many cells were text but no finite number."""
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        number = column.cast(pl.Float64)
        said = column.is_not_null() & number.is_not_nan()
    else:
        text = as_text(column, missing).str.strip_chars()
        number = text.cast(pl.Float64, strict=False)
        said = text.is_not_null() & (text.str.to_lowercase() != "nan") & (text != "")
    good = number.is_finite().fill_null(value=False)
    bad = int((said & ~good).sum())
    return number.set(~good, None).fill_null(float("nan")), bad


def _localised(naive: pl.Series, zone: str) -> tuple[pl.Series, pl.Series]:
    """Turn local date-times into epoch ms; also tell which fall into an hour that the clocks skip."""
    if zone == "UTC":
        return naive.cast(pl.Datetime("ms")).to_physical(), pl.repeat(value=False, n=len(naive), eager=True)
    zoned = naive.cast(pl.Datetime("ms")).dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    skipped = zoned.is_null() & naive.is_not_null()
    return zoned.dt.convert_time_zone("UTC").to_physical(), skipped


def _iso(text: pl.Series, zone: str) -> tuple[pl.Series, pl.Series]:
    """Read ISO 8601 dates and date-times, with or without an offset."""
    parts = text.str.extract_groups(ISO).struct.unnest()
    date, minutes, seconds, fraction, offset = (parts[name] for name in parts.columns)
    clock = minutes.fill_null("00:00") + seconds.fill_null(":00")
    naive = (date + "T" + clock).str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False, time_unit="ms")
    if fraction.null_count() < len(fraction):
        millis = (fraction.fill_null("") + "000").str.slice(0, 3).cast(pl.Int64).cast(pl.Duration("ms"))
        naive = naive + millis
    local, skipped = _localised(naive, zone)
    if offset.null_count() == len(offset):
        return local, skipped
    digits = offset.str.replace_all(r"[^0-9]", "").str.pad_end(4, "0")
    minutes_east = digits.str.slice(0, 2).cast(pl.Int64, strict=False).fill_null(0) * 60
    minutes_east = minutes_east + digits.str.slice(2, 2).cast(pl.Int64, strict=False).fill_null(0)
    sign = pl.Series(np.where(offset.str.starts_with("-").fill_null(value=False).to_numpy(), -1, 1))
    absolute = naive.to_physical() - minutes_east * sign * 60_000
    given = offset.is_not_null()
    frame = pl.DataFrame({"given": given, "absolute": absolute, "local": local})
    return frame.select(pl.when("given").then("absolute").otherwise("local")).to_series(), skipped & ~given


def _counted(column: pl.Series, unit: str) -> pl.Series:
    """Read epoch counts; whole numbers exactly, fractions rounded down to the millisecond."""
    ticks = TICKS_PER_S[unit]
    if column.dtype.is_integer():
        whole: pl.Series = column.cast(pl.Int64, strict=False)
        real = None
    elif column.dtype.is_numeric():
        whole, real = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(column)), column.cast(pl.Float64)
    else:
        whole = column.cast(pl.Int64, strict=False)
        real = None
        if whole.null_count():
            text = column.str.strip_chars()
            whole = text.cast(pl.Int64, strict=False)
            real = text.cast(pl.Float64, strict=False)
    seconds = whole.clip(FIRST_MS // 1_000, LAST_MS // 1_000 + 1)  # before multiplying: no overflow
    exact = whole // (ticks // 1_000) if ticks >= 1_000 else seconds * 1_000
    if real is None or not whole.null_count():
        return exact
    real = real.set(~real.is_finite().fill_null(value=False), None)
    rounded = (real * (1_000 / ticks)).floor().clip(FIRST_MS, LAST_MS + 1).cast(pl.Int64)
    return pl.DataFrame({"a": exact, "b": rounded}).select(pl.coalesce("a", "b")).to_series()


def as_time_ms(column: pl.Series, source: TimeColumn, missing: tuple[str, ...]) -> tuple[pl.Series, pl.Series]:
    """Return epoch milliseconds (null where unreadable), and which local times the zone's clocks skip.

    Raises:
        SpecError: a numeric column without a unit.
    """
    kind = column.dtype
    if isinstance(kind, pl.Datetime):
        if kind.time_zone is not None:
            utc = column.dt.convert_time_zone("UTC").cast(pl.Datetime("ms", "UTC"))
            return utc.to_physical(), pl.repeat(value=False, n=len(column), eager=True)
        return _localised(column, source.zone)
    if kind == pl.Date:
        return _localised(column.cast(pl.Datetime("ms")), source.zone)
    if source.unit in TICKS_PER_S:
        counted = _counted(column if kind.is_numeric() else as_text(column, missing), str(source.unit))
        return counted, pl.repeat(value=False, n=len(column), eager=True)
    if kind.is_numeric():
        raise SpecError(
            f"time column {source.column!r} holds numbers and must have a unit, got {source.unit!r}; "
            "set unit to s, ms, us or ns"
        )
    text = as_text(column, missing)
    if source.format is None:
        return _iso(text, source.zone)
    read = text.str.strip_chars().str.to_datetime(source.parsing_format, strict=False, time_unit="ms")
    if isinstance(read.dtype, pl.Datetime) and read.dtype.time_zone is not None:
        return read.to_physical(), pl.repeat(value=False, n=len(column), eager=True)
    return _localised(read, source.zone)


def not_after_ms(limit: datetime.datetime | datetime.date | None, zone: str) -> int:
    """Return the last time that is not future, ms: the spec's limit (its whole day for a date), else now."""
    import zoneinfo

    if limit is None:
        return int(datetime.datetime.now(datetime.UTC).timestamp() * 1_000)
    if not isinstance(limit, datetime.datetime):
        limit = datetime.datetime.combine(limit, datetime.time.max)
    if limit.tzinfo is None:
        limit = limit.replace(tzinfo=zoneinfo.ZoneInfo(zone))
    return int(limit.timestamp() * 1_000)


class Sieve:
    """Collects, row by row, the first reason why a row cannot be used."""

    def __init__(self, chunk: RawChunk) -> None:
        self.chunk = chunk
        self.code = np.zeros(len(chunk.rows), np.uint8)
        self.reasons = [""]

    def refuse(self, rows: pl.Series | Array, reason: str) -> None:
        """Refuse the rows marked True that were not refused before."""
        flags = rows.fill_null(value=False).to_numpy() if isinstance(rows, pl.Series) else rows
        if flags.any():
            self.reasons.append(reason)
            self.code[flags & (self.code == 0)] = len(self.reasons) - 1

    def split(self, frame: pl.DataFrame, bad_numbers: Mapping[str, int]) -> Parsed:
        """Part the good rows from the refused ones."""
        chunk = self.chunk
        if not self.code.any():
            return Parsed(frame=frame, rejects=chunk.rejects, bad_numbers=bad_numbers)
        bad = np.flatnonzero(self.code)
        reasons = [self.reasons[code] for code in self.code[bad].tolist()]
        named = rejects_frame(chunk.file, chunk.rows[bad], reasons, chunk.raw(bad))
        kept = frame.filter(pl.Series(self.code == 0))
        return Parsed(frame=kept, rejects=pl.concat([chunk.rejects, named]), bad_numbers=bad_numbers)


def judge_time(sieve: Sieve, raw: pl.Series, source: TimeColumn, missing: tuple[str, ...], last: int) -> pl.Series:
    """Return epoch ms and refuse the rows whose time is missing, unreadable, skipped by the clocks, or after `last`."""
    time_ms, skipped = as_time_ms(raw, source, missing)
    absent = raw.is_null() if raw.dtype != pl.String else as_text(raw, missing).is_null()
    sieve.refuse(absent, MISSING_TIME)
    sieve.refuse(skipped, SKIPPED_TIME)
    sieve.refuse(time_ms.is_null() | (time_ms < FIRST_MS), BAD_TIME)
    sieve.refuse(time_ms > last, FUTURE_TIME)
    return time_ms


def event_columns(source: EventSource) -> list[str]:
    """Return the columns that `parse_events` reads."""
    columns = [source.user, source.item, source.time.column, *source.item_categories]
    columns += [name for name in (source.value, source.place, source.session) if name is not None]
    if isinstance(source.action, str):
        columns.append(source.action)
    columns += [given.column or name for name, given in source.fields.items()]
    return list(dict.fromkeys(columns))


def parse_events(chunk: RawChunk, source: EventSource, *, last_ms: int) -> Parsed:
    """Type the rows of an event log.

    The frame has `row`, `user`, `item` (text or whole numbers), `time_ms`, and where the source names them `action`,
    `place`, `session` (text), `value` (float32), `category.<level>` (text), `field.<name>` (text or float32).
    An unreadable number costs its cell, not its row; it is counted.
    """
    raw, missing = chunk.frame, source.missing
    sieve = Sieve(chunk)
    user, item = as_id(raw[source.user], missing), as_id(raw[source.item], missing)
    sieve.refuse(user.is_null(), MISSING_USER)
    sieve.refuse(item.is_null(), MISSING_ITEM)
    time_ms = judge_time(sieve, raw[source.time.column], source.time, missing, last_ms)
    columns: dict[str, pl.Series] = {"row": pl.Series(chunk.rows), "user": user, "item": item, "time_ms": time_ms}
    if isinstance(source.action, Constant):
        columns["action"] = pl.Series([source.action.constant]).new_from_index(0, len(raw))
    elif source.action is not None:
        columns["action"] = as_text(raw[source.action], missing)
    if source.place is not None:
        columns["place"] = as_text(raw[source.place], missing)
    if source.session is not None:
        columns["session"] = as_text(raw[source.session], missing)
    for level in source.item_categories:
        columns[f"category.{level}"] = as_text(raw[level], missing)
    numbers = {"value": source.value} if source.value is not None else {}
    for name, given in source.fields.items():
        if given.kind == "categorical":
            columns[f"field.{name}"] = as_text(raw[given.column or name], missing)
        else:
            numbers[f"field.{name}"] = given.column or name
    bad_numbers = {}
    for name, column in numbers.items():
        number, bad_numbers[name] = as_number(raw[column], missing)
        columns[name] = number.cast(pl.Float32)
    return sieve.split(pl.DataFrame(columns), bad_numbers)


__all__ = [
    "BAD_LABEL",
    "BAD_NUMBER",
    "BAD_TIME",
    "CLICKED_ELSEWHERE",
    "FUTURE_TIME",
    "MISSING_ITEM",
    "MISSING_REQUEST",
    "MISSING_TIME",
    "MISSING_USER",
    "NO_CANDIDATES",
    "SKIPPED_TIME",
    "UNEVEN_LISTS",
    "Parsed",
    "Sieve",
    "as_number",
    "as_text",
    "as_time_ms",
    "event_columns",
    "judge_time",
    "not_after_ms",
    "parse_events",
]
