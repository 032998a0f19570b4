"""What the time between a behaviour and a request says: how long ago, and whether at the same hour and weekday."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_OCTAVES = 30  # knots at 0 s, 1 s, 3 s, 7 s ... 2^29 - 1 s (17 years)
DAY_MS = 86_400_000
RHYTHMS_MS = (DAY_MS, 7 * DAY_MS)
NUM_GAP_FEATURES = NUM_OCTAVES + len(RHYTHMS_MS)


def octave_weights(gap_ms: Tensor) -> Tensor:
    """Spread a gap over its two neighbouring octaves.

    Gaps span seconds to years, so a linear map of these weights is a piecewise linear function of log2(1 + seconds):
    as free as a table of log2 buckets, without their jumps.

    Args:
        gap_ms: (N,) int64; negative gaps count as 0, gaps beyond the last knot as the last knot.

    Returns:
        (N, NUM_OCTAVES) float32; every row sums to 1.
    """
    octave = torch.log2(1.0 + gap_ms.clamp(min=0).double() / 1000.0).clamp(max=NUM_OCTAVES - 1).float()
    knots = torch.arange(NUM_OCTAVES, device=gap_ms.device, dtype=torch.float32)
    return (1.0 - (octave[:, None] - knots).abs()).clamp(min=0.0)


def rhythm_similarity(gap_ms: Tensor) -> Tensor:
    """Return (N, 2) float32 in [-1, 1]: 1 at the same hour of the day, at the same moment of the week.

    Hours are counted in elapsed time: a change to or from daylight saving shifts them by one hour.
    """
    phases = [(gap_ms % period).double() * (2.0 * math.pi / period) for period in RHYTHMS_MS]
    return torch.stack(phases, 1).cos().float()


def gap_features(gap_ms: Tensor) -> Tensor:
    """Return (N, NUM_GAP_FEATURES) float32: octave weights, then rhythms."""
    return torch.cat([octave_weights(gap_ms), rhythm_similarity(gap_ms)], 1)


__all__ = ["NUM_GAP_FEATURES", "NUM_OCTAVES", "gap_features", "octave_weights", "rhythm_similarity"]
