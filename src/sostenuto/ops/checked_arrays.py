"""Offsets and indices that compiled code may trust: nothing is read beyond an array."""

from __future__ import annotations

from torch import Tensor


def checked_offsets(offsets: Tensor, rows: int, name: str = "offsets") -> Tensor:
    """Return (B + 1,) offsets, contiguous, that rise from 0 to `rows`.

    Raises:
        ValueError: they do not.
    """
    offsets = offsets.contiguous()
    if len(offsets) == 2 and offsets.tolist() == [0, rows]:  # one request: its work is as short as these few checks
        return offsets
    starts = offsets.numpy()
    if not len(starts) or starts[0] != 0 or starts[-1] != rows or (starts[1:] < starts[:-1]).any():
        raise ValueError(f"{name} must rise from 0 to {rows}, got {offsets.tolist()[:5]}...; make them with cumsum")
    return offsets


def checked_index(index: Tensor, size: int, name: str = "index") -> Tensor:
    """Return the numbers, contiguous, each of which is in [0, `size`).

    Raises:
        IndexError: one is not.
    """
    if index.numel():
        low, high = map(int, index.aminmax())
        if low < 0 or high >= size:
            raise IndexError(f"{name} must be in [0, {size}), got {low} to {high}; drop what points at nothing")
    return index.contiguous()


__all__ = ["checked_index", "checked_offsets"]
