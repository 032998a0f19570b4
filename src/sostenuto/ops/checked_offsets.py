"""Offsets that compiled code may trust: nothing is read beyond an array."""

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


__all__ = ["checked_offsets"]
