"""Offsets, indices and shapes that compiled code may trust: nothing is read beyond an array."""

from __future__ import annotations

import torch
from torch import Tensor


def checked_offsets(offsets: Tensor, rows: int, name: str = "offsets") -> Tensor:
    """Return (B + 1,) offsets, int64 and contiguous, that rise from 0 to `rows`.

    Raises:
        ValueError: they do not.
    """
    offsets = offsets.to(torch.int64).contiguous()
    if len(offsets) == 2 and offsets.tolist() == [0, rows]:  # one request: its work is as short as these few checks
        return offsets
    starts = offsets.numpy()
    if not len(starts) or starts[0] != 0 or starts[-1] != rows or (starts[1:] < starts[:-1]).any():
        raise ValueError(f"{name} must rise from 0 to {rows}, got {offsets.tolist()[:5]}...; make them with cumsum")
    return offsets


def checked_index(index: Tensor, size: int, name: str = "index", dtype: torch.dtype = torch.int64) -> Tensor:
    """Return the numbers, of `dtype` and contiguous, each of which is in [0, `size`).

    Raises:
        IndexError: one is not.
    """
    if index.numel():
        low, high = map(int, index.aminmax())
        if low < 0 or high >= size:
            raise IndexError(f"{name} must be in [0, {size}), got {low} to {high}; drop what points at nothing")
    return index.to(dtype).contiguous()


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape.

    Raises:
        ValueError: it has one.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be of shape {shape}, got {tuple(tensor.shape)}; see the operator's arguments")


__all__ = ["check_shape", "checked_index", "checked_offsets"]
