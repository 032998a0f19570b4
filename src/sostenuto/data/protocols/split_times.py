"""Settings that protocols share: where the splits begin, and how settings are checked."""

from __future__ import annotations

import datetime
import math
import zoneinfo
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from sostenuto.data.prepared import SPLITS, Array
from sostenuto.schema.errors import DataError, SpecError, did_you_mean

PIECE = 1 << 20  # values looked at together where all of them are
COUNTED_BITS = 18  # leading bits that one pass over the values settles

SplitStart = float | datetime.datetime | datetime.date | str


class Settings(BaseModel):
    """Settings of a protocol; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Given = TypeVar("Given", bound=Settings)


def read_settings(kind: type[Given], protocol: str, settings: Mapping[str, Any]) -> Given:
    """Check the settings of a protocol.

    Raises:
        SpecError: an unknown key (the nearest known one is named) or a value that cannot be.
    """
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else "settings"
            if problem["type"] == "extra_forbidden":
                known = sorted(kind.model_fields)
                lines.append(f"{name} is not a known setting.{did_you_mean(name, known)} Known: {', '.join(known)}")
            else:
                lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}, got {problem.get('input')!r}")
        text = "; ".join(dict.fromkeys(lines))
        raise SpecError(f"settings of protocol {protocol!r} are refused: {text}") from error


def kth_smallest(values: Array, place: int) -> int:
    """Return what `np.sort(values)[place]` is of int64 values, read piece by piece and never copied as a whole."""

    def pieces() -> Iterator[Array]:
        return (np.asarray(values[start : start + PIECE]) for start in range(0, len(values), PIECE))

    edges = [(int(piece.min()), int(piece.max())) for piece in pieces()]
    low, high = min(edge for edge, _ in edges), max(edge for _, edge in edges)
    while low < high:
        shift = max((high - low).bit_length() - COUNTED_BITS, 0)
        counts = np.zeros(1 << COUNTED_BITS, np.int64)
        for piece in pieces():
            inside = piece[(piece >= low) & (piece <= high)] - low
            counts += np.bincount(inside >> shift, minlength=len(counts))
        ends = np.cumsum(counts)
        found = int(np.searchsorted(ends, place, side="right"))
        place -= int(ends[found] - counts[found])
        low += found << shift
        high = min(high, low + (1 << shift) - 1)
    return low


def _start_ms(name: str, start: SplitStart, times: Array, time_zone: str) -> int:
    if isinstance(start, bool | int | float):
        if not 0 < start < 1:
            raise SpecError(f"{name} must be a share between 0 and 1 or a time, got {start!r}; write a date as text")
        return kth_smallest(times, math.ceil(start * (len(times) - 1)))
    if isinstance(start, str):
        try:
            start = datetime.datetime.fromisoformat(start)
        except ValueError as error:
            raise SpecError(f"{name} must be a share between 0 and 1 or an ISO time, got {start!r}") from error
    if not isinstance(start, datetime.datetime):
        start = datetime.datetime.combine(start, datetime.time())
    if start.tzinfo is None:
        start = start.replace(tzinfo=zoneinfo.ZoneInfo(time_zone))
    return int(start.timestamp() * 1_000)


def split_starts(valid_from: SplitStart, test_from: SplitStart, times: Array, time_zone: str) -> tuple[int, int]:
    """Return the first ms of validation and of test.

    Args:
        valid_from, test_from: a share of `times` (0.8: four fifths lie before), or a time; naive ones in `time_zone`.
        times:                 (N,) epoch ms that shares refer to.
    Raises:
        SpecError: not a share and not a time, or validation does not begin before test.
    """
    if not len(times):
        raise DataError("a log must have events to be split by time, this one has none")
    valid = _start_ms("valid_from", valid_from, times, time_zone)
    test = _start_ms("test_from", test_from, times, time_zone)
    if valid >= test:
        raise SpecError(f"valid_from must lie before test_from, got {valid} and {test} ms; move them apart")
    return valid, test


def split_of(times: Array, valid_ms: int, test_ms: int) -> Array:
    """Return (R,) int: 0 train, 1 valid, 2 test."""
    return (np.asarray(times) >= valid_ms).astype(np.int8) + (np.asarray(times) >= test_ms)


def chosen_rows(rows: Array, most: int | None, seed: int, split: int) -> Array:
    """Return at most `most` of the rows, drawn by the seed, in their order."""
    if most is None or len(rows) <= most:
        return rows
    return rows[_drawn_places(len(rows), most, seed, split)]


def chosen_flags(flags: Array, most: int | None, seed: int, split: int) -> Array:
    """Return `chosen_rows` of the rows that are marked True, without listing all of them."""
    counts = [int(np.count_nonzero(flags[start : start + PIECE])) for start in range(0, len(flags), PIECE)]
    total = sum(counts)
    if most is None or total <= most:
        return np.flatnonzero(flags)
    places = _drawn_places(total, most, seed, split)
    rows, before = [], 0
    for at, count in enumerate(counts):
        inside = places[slice(*np.searchsorted(places, (before, before + count)))] - before
        rows.append(np.flatnonzero(flags[at * PIECE : (at + 1) * PIECE])[inside] + at * PIECE)
        before += count
    return np.concatenate(rows)


def _drawn_places(total: int, most: int, seed: int, split: int) -> Array:
    """Return `most` of `total` > `most` places, drawn by the seed, in order."""
    generator = np.random.default_rng([seed, 1, split])
    return np.sort(generator.choice(total, most, replace=False, shuffle=False))


def span(times: Array) -> tuple[int, int]:
    """Return first and last time, (0, 0) of none."""
    return (int(times.min()), int(times.max())) if len(times) else (0, 0)


__all__ = [
    "SPLITS",
    "Settings",
    "SplitStart",
    "chosen_flags",
    "chosen_rows",
    "kth_smallest",
    "read_settings",
    "span",
    "split_of",
    "split_starts",
]
