"""Many searches in one sorted array, on numpy arrays and without torch."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.native.library import RowsShape, library

Array = npt.NDArray[Any]


def lower_bounds(values: Array, bound: Array, low: Array, high: Array) -> Array:
    """Return np.searchsorted(values, bound), where it is known to lie in [low, high].

    The twin searches between the two, a few bounds at once, so that their reads wait for memory together.

    Args:
        values:     (N,) int64, rising.
        bound:      (Q,) int64.
        low, high:  (Q,) int64: values before low are below the bound, values from high on are not.

    Returns:
        (Q,) int64.
    """
    found = library()
    if found is None or not (values.dtype == np.int64 and values.flags.c_contiguous):
        return np.asarray(np.searchsorted(values, bound))
    given = [np.ascontiguousarray(np.broadcast_to(array, bound.shape), np.int64) for array in (bound, low, high)]
    position = np.empty(bound.shape, np.int64)
    shape = RowsShape(rows=len(values), dim=1, count=len(bound), threads=1)
    arrays = (values, *given, position)
    found.handle.sostenuto_lower_bounds(ctypes.byref(shape), *(array.ctypes.data for array in arrays))
    return position


__all__ = ["lower_bounds"]
