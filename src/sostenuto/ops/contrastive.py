"""Contrast of two views of the same rows, each against sampled rows of the other view."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5  # smallest length that vectors are divided by


def sampled_negatives(rows: int, count: int, *, exclude_self: bool, like: Tensor) -> Tensor:
    """Return (rows, count) int64 in [0, rows), drawn with replacement; never the row itself with `exclude_self`."""
    drawn = torch.randint(max(rows - exclude_self, 1), (rows, count), device=like.device)
    if not exclude_self:
        return drawn
    return (torch.arange(rows, device=like.device)[:, None] + 1 + drawn) % max(rows, 1)


def contrastive_loss(left: Tensor, right: Tensor, negative: Tensor, *, temperature: float) -> Tensor:
    """Return 1/2 (left against right + right against left), a mean over rows; see EM3, arXiv:2404.06078.

    With a and b the rows scaled to length 1: cross-entropy of a_k . b_k / temperature against the a_k . b_j of row k's
    negatives j, and the same with the roles exchanged and the same negatives. Random rows at a high temperature give
    log(1 + J). Gradients go into both sides.

    Args:
        left, right: (N, D), row k of both is of one item.
        negative: (N, J) int64 rows.
        temperature: above 0.
    """
    a, b = F.normalize(left, dim=1, eps=EPS), F.normalize(right, dim=1, eps=EPS)
    positive = (a * b).sum(1, keepdim=True)

    def one_way(query: Tensor, key: Tensor) -> Tensor:
        others = torch.einsum("nd,njd->nj", query, key[negative])
        scores = torch.cat([positive, others], 1) / temperature
        return (scores.logsumexp(1) - scores[:, 0]).mean()

    return 0.5 * (one_way(a, b) + one_way(b, a))


__all__ = ["contrastive_loss", "sampled_negatives"]
