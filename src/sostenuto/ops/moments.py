"""Moments: behaviours of one row and one time. They have no order among themselves."""

from __future__ import annotations

import torch
from torch import Tensor


def moment_starts(offsets: Tensor, time_ms: Tensor) -> Tensor:
    """Return (N,) int64: how many behaviours of its row lie at strictly earlier times.

    Args:
        offsets: (B + 1,).
        time_ms: (N,) never decreasing inside a row.
    """
    count = time_ms.shape[0]
    at = torch.arange(count, device=time_ms.device)
    if not count:
        return at
    opens = torch.ones(count, dtype=torch.bool, device=time_ms.device)
    opens[1:] = time_ms[1:] != time_ms[:-1]
    starts = offsets[:-1][offsets[1:] > offsets[:-1]]
    opens[starts] = True
    row_start = torch.zeros_like(at)
    row_start[starts] = starts
    return torch.where(opens, at, 0).cummax(0).values - row_start.cummax(0).values


__all__ = ["moment_starts"]
