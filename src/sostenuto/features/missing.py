"""Columns of values that nobody gave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sostenuto.schema.features import Field


def missing_column(field: Field, rows: int) -> npt.NDArray[Any]:
    """Return (rows,) or (rows, width) missing values of a field: 0 for categories, NaN for numbers, zero vectors."""
    if field.kind == "categorical":
        return np.zeros(rows, np.int64)
    if field.kind == "numeric":
        return np.full(rows, np.nan, np.float32)
    return np.zeros((rows, field.width), np.int64 if field.kind == "multi" else np.float32)


__all__ = ["missing_column"]
