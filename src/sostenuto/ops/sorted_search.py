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

    Raises:
        ValueError: bound, low and high of different lengths.
    """
    found = library()
    if found is None:
        return np.searchsorted(values, bound)
    arrays = [np.ascontiguousarray(array, np.int64) for array in (values, bound, low, high)]
    if not arrays[1].shape == arrays[2].shape == arrays[3].shape == (len(bound),):
        shapes = ", ".join(str(array.shape) for array in arrays[1:])
        raise ValueError(f"bound, low and high must all be (Q,), got {shapes}; give one of each")
    position = np.empty(len(bound), np.int64)
    arrays.append(position)
    shape = RowsShape(rows=len(values), dim=1, count=len(bound), threads=1)
    found.handle.sostenuto_lower_bounds(ctypes.byref(shape), *(array.ctypes.data for array in arrays))
    return position


__all__ = ["lower_bounds"]
