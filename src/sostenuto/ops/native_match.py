"""The compiled twin of the match features, on numpy arrays and without torch; the definition is `features/match.py`."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.native.library import MatchInputs, MatchShape, any_library, library

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


__all__ = ["is_usable", "match_columns"]
