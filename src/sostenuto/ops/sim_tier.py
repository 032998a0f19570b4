"""How many behaviours are how like a candidate: cosines counted in tiers (MUSE, arXiv:2512.07216, section 3.3).

Letters: Nc candidates, M pairs of a candidate and a behaviour.
"""

from __future__ import annotations

import torch
from torch import Tensor

TIERS = 22  # 0 is a cosine of -1, 10 one of 0, 20 one of 1; the last is for cosines that rounding puts above 1
TIER_WIDTH = 0.1
MIDDLE = 10  # of a cosine of 0
GRAIN = 100_000  # cosines are read to five decimals, so that rounding does not move what lies on an edge


def tier_of(cosine: Tensor) -> Tensor:
    """Return int64 ceil(cosine / 0.1) + 10.

    >>> tier_of(torch.tensor([-1.0, -0.95, 0.0, 0.05, 0.1, 1.0, 1.0001])).tolist()
    [0, 1, 10, 11, 11, 20, 21]
    """
    grains = (cosine.double() * GRAIN).round().long()
    width = round(TIER_WIDTH * GRAIN)
    return (-(-grains // width) + MIDDLE).clamp(0, TIERS - 1)


def tier_counts(cosine: Tensor, candidate: Tensor, num_candidates: int) -> Tensor:
    """Return (Nc, TIERS) float32 how many of the (M,) cosines of each candidate lie in each tier."""
    flat = torch.bincount(candidate * TIERS + tier_of(cosine), minlength=num_candidates * TIERS)
    return flat.view(num_candidates, TIERS).float()


__all__ = ["MIDDLE", "TIERS", "TIER_WIDTH", "tier_counts", "tier_of"]
