"""How vectors are stored: half precision, or eight bits with one scale a row."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sostenuto.schema.errors import SpecError

Array = npt.NDArray[Any]
Dtype = Literal["float16", "int8"]
DTYPES: tuple[Dtype, ...] = ("float16", "int8")

LARGEST_CODE = 127


def encoded(vectors: Array, dtype: Dtype) -> tuple[Array, Array | None]:
    """Return rows as they are stored, and the (N,) float32 scale of int8 codes (None for float16).

    An int8 row is rounded to 127 steps of its own largest entry, so a cosine does not depend on the row's length. A row
    of whole numbers within 127 is codes already (TAOBAO-MM publishes such) and stays as it is, with scale 1.

    Args:
        vectors: (N, W) float32, finite.
        dtype:   of the stored rows.
    """
    if dtype == "float16":
        if np.abs(vectors).max(initial=0.0) > float(np.finfo(np.float16).max):
            raise SpecError(
                f"vectors stored as float16 must stay within 65,504, got {np.abs(vectors).max():.3g}; take --dtype int8"
            )
        return vectors.astype(np.float16), None
    largest = np.abs(vectors).max(1, initial=0.0)
    are_codes = (largest > 0) & (largest <= LARGEST_CODE) & (vectors == np.rint(vectors)).all(1)
    scale = np.where(are_codes, 1.0, largest / LARGEST_CODE).astype(np.float32)
    codes = np.rint(vectors / np.where(scale > 0, scale, 1.0)[:, None])
    return np.clip(codes, -LARGEST_CODE, LARGEST_CODE).astype(np.int8), scale


def decoded(stored: Array, scale: Array | None) -> Array:
    """Return (N, W) float32 of what `encoded` gave."""
    rows = np.asarray(stored, np.float32)
    return rows if scale is None else rows * scale[:, None]


__all__ = ["DTYPES", "Dtype", "decoded", "encoded"]
