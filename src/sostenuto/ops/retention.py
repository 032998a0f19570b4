"""How much of a behaviour is left: a forgetting curve that repetition slows down.

    R = exp(-age / S)        S = S_0 (1 + alpha ln(1 + n))

n is how often the user did the same again. The curve is Ebbinghaus' as memory research writes it; what counts as "the
same", and that ages may go by whole periods, is ours (docs/models/stim.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sostenuto.ops.jagged import row_index
from sostenuto.ops.local_time import DAY_MS
from sostenuto.ops.table_rows import distinct_values


def repetitions(key: Tensor, offsets: Tensor) -> Tensor:
    """Count the other behaviours of the same row that have the same key. O(N log N), or O(N) where keys are few.

    Args:
        key: (N,) int64, 0 or more.
        offsets: (B + 1,) int64 row starts; a row is what is known at the request, so nothing later can count.

    Returns:
        (N,) int64: 0 for a key that stands once in its row. The order of a row does not matter.
    """
    if not key.numel():
        return key
    width = int(key.max()) + 1
    joint = row_index(offsets) * width + key
    place = distinct_values(joint, (offsets.shape[0] - 1) * width).place
    return torch.bincount(place)[place] - 1


def strength_days(repeated: Tensor, base_days: Tensor, reinforcement: Tensor) -> Tensor:
    """Return S in days of behaviours repeated (N,) times, for S_0 in days and alpha, both scalars."""
    return base_days * (1.0 + reinforcement * torch.log1p(repeated.to(base_days.dtype)))


def log_retention(age_days: Tensor, strength: Tensor) -> Tensor:
    """Return ln R, 0 at age 0 and falling; ages below 0 count as 0."""
    return -age_days.clamp(min=0.0) / strength


def age_in_days(time_ms: Tensor, asked_ms: Tensor, period_days: int = 0) -> Tensor:
    """Return (N,) float32 ages; with a period, as whole periods passed: 0 until the first is over, then 1 period ...

    Args:
        time_ms, asked_ms: (N,) int64; for periods in local time, so that a clock change does not move them.
    """
    gap = asked_ms - time_ms
    if not period_days:
        return gap.float() / DAY_MS
    return (gap // (period_days * DAY_MS) * period_days).float()


__all__ = ["age_in_days", "log_retention", "repetitions", "strength_days"]
