"""Noise-contrastive loss of targets against shared negatives, with a guard against false negatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SAME_ITEM = 0.99  # a negative whose vector is nearer to the target's than this cosine is taken for the same item


def false_negatives(target: Tensor, negatives: Tensor, *, cosine: float = SAME_ITEM) -> Tensor:
    """Return (W, M) bool: negatives that are the target itself, or as good as.

    Args:
        target:    (W, D) vectors of any length.
        negatives: (M, D).
        cosine:    from which on two vectors count as one item.
    """
    with torch.no_grad():
        return F.normalize(target, dim=1) @ F.normalize(negatives, dim=1).T > cosine


def guarded_nce(positive: Tensor, negative: Tensor, excluded: Tensor) -> Tensor:
    """Return (W,) -log of exp(s+) / (exp(s+) + sum of exp(s_j) over the negatives that are not excluded).

    Args:
        positive: (W,) scores of the targets.
        negative: (W, M) scores of negatives.
        excluded: (W, M) bool.
    """
    scores = negative.masked_fill(excluded, torch.finfo(negative.dtype).min)
    return torch.logsumexp(torch.cat([positive[:, None], scores], 1), 1) - positive


def horizon_weights(steps: int, decay: float) -> Tensor:
    """Return (P,) weights decay^p, scaled to sum to 1.

    >>> horizon_weights(1, 0.99)
    tensor([1.])
    """
    weight = decay ** torch.arange(steps, dtype=torch.float64)
    return (weight / weight.sum()).float()


__all__ = ["SAME_ITEM", "false_negatives", "guarded_nce", "horizon_weights"]
