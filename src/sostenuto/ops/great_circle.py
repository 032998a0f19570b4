"""How far apart two points on earth are."""

from __future__ import annotations

import torch
from torch import Tensor

EARTH_KM = 6_371.0  # mean radius
NUM_DISTANCE_OCTAVES = 12  # knots at 0 km, 0.1 km, 0.3 km, 0.7 km ... 205 km
NEAREST_KM = 0.1  # what the knots tell apart


def great_circle_km(first: Tensor, second: Tensor) -> Tensor:
    """Return (N,) distances in km of (N, 2) latitudes and longitudes in degrees, NaN where one is NaN."""
    a, b = torch.deg2rad(first.double()), torch.deg2rad(second.double())
    half = ((b - a) / 2).sin().square()
    chord = half[:, 0] + a[:, 0].cos() * b[:, 0].cos() * half[:, 1]
    return (2 * EARTH_KM * chord.clamp(0, 1).sqrt().asin()).to(first.dtype)


def distance_octaves(km: Tensor) -> Tensor:
    """Spread a distance over its two neighbouring octaves of log2(1 + km / 0.1), as gaps in time are.

    Args:
        km: (N,); NaN is missing, beyond the last knot counts as the last knot.

    Returns:
        (N, NUM_DISTANCE_OCTAVES + 1) float32; rows sum to 1, the last column is 1 where it is missing.
    """
    missing = km.isnan()
    octave = torch.log2(1.0 + torch.nan_to_num(km.double()) / NEAREST_KM).clamp(0, NUM_DISTANCE_OCTAVES - 1).float()
    knots = torch.arange(NUM_DISTANCE_OCTAVES, device=km.device, dtype=torch.float32)
    weights = (1.0 - (octave[:, None] - knots).abs()).clamp(min=0.0) * ~missing[:, None]
    return torch.cat([weights, missing[:, None].float()], 1)


__all__ = ["EARTH_KM", "NUM_DISTANCE_OCTAVES", "distance_octaves", "great_circle_km"]
