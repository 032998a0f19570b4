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
PAIRS_AT_ONCE = 1 << 18


@torch.no_grad()
def pair_cosines(query: Tensor, key: Tensor, candidate: Tensor, behaviour: Tensor) -> Tensor:
    """Return the (M,) float32 products of pairs of unit vectors, added up in float64 and without gradient.

    Args:
        query: (Nc, W).
        key: (N, W).
        candidate: (M,) int64.
        behaviour: (M,) int64.
    """
    found = query.new_empty(candidate.shape[0])
    for start in range(0, candidate.shape[0], PAIRS_AT_ONCE):  # bounds what is gathered at once
        some = slice(start, start + PAIRS_AT_ONCE)
        found[some] = (query[candidate[some]].double() * key[behaviour[some]].double()).sum(1).float()
    return found


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


__all__ = ["MIDDLE", "TIERS", "TIER_WIDTH", "pair_cosines", "tier_counts", "tier_of"]
