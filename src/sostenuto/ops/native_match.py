"""The compiled twin of the match features, on numpy arrays and without torch; the definition is `features/match.py`."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.native.library import MatchInputs, MatchShape, MetLevel, any_library, library

Array = npt.NDArray[Any]

PER_LEVEL, PER_USER = 5, 2  # columns


def is_usable() -> bool:
    """Say whether the compiled twins are in use."""
    return library() is not None


def _flat(array: Array, count: int, name: str) -> Array:
    """Return int64 numbers in a row, after a look at how many there are: nothing may be read beyond an array."""
    if array.shape != (count,):
        raise ValueError(f"{name} must be ({count},), got {array.shape}; give one number for each")
    return np.ascontiguousarray(array, np.int64)


def _column(array: Array, count: int, name: str) -> Array:
    """Return int64 keys, any whole number of them apart: a column of a matrix stays where it is."""
    if array.shape != (count,):
        raise ValueError(f"{name} must be ({count},), got {array.shape}; give one key for each, level by level")
    held = np.asarray(array, np.int64)
    return held if held.flags.aligned and held.strides[0] % 8 == 0 else np.ascontiguousarray(held)


def _pointers(arrays: list[Array]) -> tuple[Any, Any]:
    return (
        (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays)),
        (ctypes.c_int64 * len(arrays))(*(a.strides[0] // 8 for a in arrays)),
    )


def match_columns(
    offsets: Array,
    time_ms: Array,
    keys: list[Array],
    candidate_offsets: Array,
    moment: Array,
    asked: list[Array],
    *,
    rates: tuple[float, float],
    day_ms: int,
    first_known: int,
) -> Array:
    """Return what B users have done with what C candidates ask for, in one pass over the behaviours of each level.

    Args:
        offsets:            (B + 1,) of the behaviours; `time_ms` (N,) never decreases inside a user.
        keys:               per level (N,).
        candidate_offsets:  (B + 1,) of the candidates.
        moment:             (B,) ms.
        asked:              per level (C,).
        rates:              of the two decays, per ms.
        day_ms:             the unit of recency.
        first_known:        keys below it never match.

    Returns:
        (C, 5 per level and 2) float32: log counts, two log decayed counts, recency, share; log length, recency.

    Raises:
        ValueError: shapes that do not belong together, or offsets that do not rise from 0 to how many there are.
    """
    if len(keys) != len(asked):
        raise ValueError(f"keys and asked must be of the same levels, got {len(keys)} and {len(asked)}; give all")
    requests, behaviours = len(moment), len(time_ms)
    candidates = len(asked[0]) if asked else int(candidate_offsets[-1])
    starts = _flat(offsets, requests + 1, "offsets")
    begins = _flat(candidate_offsets, requests + 1, "candidate_offsets")
    times, moments = _flat(time_ms, behaviours, "time_ms"), _flat(moment, requests, "moment")
    key = [_column(column, behaviours, "a level's keys") for column in keys]
    wanted = [_column(column, candidates, "a level's asked keys") for column in asked]
    key_at, key_stride = _pointers(key)
    asked_at, asked_stride = _pointers(wanted)
    shape = MatchShape(
        requests=requests,
        behaviours=behaviours,
        candidates=candidates,
        levels=len(keys),
        first_known=first_known,
        day_ms=day_ms,
        rate=rates,
        offsets=starts.ctypes.data,
        candidate_offsets=begins.ctypes.data,
    )
    inputs = MatchInputs(
        time_ms=times.ctypes.data,
        moment=moments.ctypes.data,
        key=ctypes.addressof(key_at),
        key_stride=ctypes.addressof(key_stride),
        asked=ctypes.addressof(asked_at),
        asked_stride=ctypes.addressof(asked_stride),
    )
    out = np.empty((candidates, PER_LEVEL * len(keys) + PER_USER), np.float32)
    wrong = any_library().handle.sostenuto_match(ctypes.byref(shape), ctypes.byref(inputs), out.ctypes.data)
    if wrong:
        name, given, end = [("offsets", starts, behaviours), ("candidate_offsets", begins, candidates)][wrong - 1]
        raise ValueError(f"{name} must rise from 0 to {end}, got {given.tolist()[:5]}...; make them with cumsum")
    return out


def met_columns(
    offsets: Array,
    key: Array,
    count: Array,
    last_ms: Array,
    decayed: Array,
    row: Array,
    asked: Array,
    columns: Array,
    *,
    moment: Array,
    length: Array,
    rates: tuple[float, float],
    day_ms: int,
    first_known: int,
) -> None:
    """Look C candidates up in one level of the indices of B users, and write what the users have done with them.

    Args:
        offsets:             (B + 1,) of the keys.
        key, count, last_ms: (U,) int64, keys rising inside a user; `decayed` (U, 2) float64.
        row:                 (C,) user of each candidate, in [0, B).
        asked:               (C,).
        columns:             (C, PER_LEVEL) float32, changed in place; rows may lie further apart.
        moment:              (B,) of the requests, ms.
        length:              (B,) behaviours of the users.
        rates, day_ms, first_known: as in `match_columns`.

    Raises:
        ValueError: shapes, types or offsets that do not belong together.
    """
    rows, users, candidates = len(key), len(moment), len(asked)
    starts = _flat(offsets, users + 1, "offsets")
    if int(starts[0]) or int(starts[-1]) != rows or (users > 1 and bool((np.diff(starts) < 0).any())):
        raise ValueError(f"offsets must rise from 0 to {rows}, got {starts.tolist()[:5]}...; make them with cumsum")
    which = _flat(row, candidates, "row")
    if candidates and not 0 <= int(which.min()) <= int(which.max()) < users:
        raise ValueError(f"row must lie in [0, {users}), got {int(which.min())} .. {int(which.max())}")
    if decayed.shape != (rows, 2) or columns.shape != (candidates, PER_LEVEL) or columns.dtype != np.float32:
        raise ValueError(
            f"decayed must be ({rows}, 2) and columns ({candidates}, {PER_LEVEL}) float32, got {decayed.shape} and "
            f"{columns.shape} {columns.dtype}; give arrays of one level"
        )
    if candidates and (columns.strides[1] != 4 or columns.strides[0] % 4):
        raise ValueError("the columns of a row must lie side by side; give a part of a C-ordered array")
    held = [_flat(array, rows, name) for name, array in (("key", key), ("count", count), ("last_ms", last_ms))]
    wanted, weights = _flat(asked, candidates, "asked"), np.ascontiguousarray(decayed, np.float64)
    moments, lengths = _flat(moment, users, "moment"), _flat(length, users, "length")
    level = MetLevel(
        candidates=candidates,
        first_known=first_known,
        width=columns.strides[0] // 4,
        day_ms=day_ms,
        rate=rates,
        offsets=starts.ctypes.data,
        key=held[0].ctypes.data,
        count=held[1].ctypes.data,
        last_ms=held[2].ctypes.data,
        decayed=weights.ctypes.data,
        moment=moments.ctypes.data,
        length=lengths.ctypes.data,
    )
    to = (which.ctypes.data, wanted.ctypes.data, columns.ctypes.data)
    any_library().handle.sostenuto_met(ctypes.byref(level), *to)


__all__ = ["PER_LEVEL", "is_usable", "match_columns", "met_columns"]
