"""Several interests of a few recent behaviours, read layer by layer: what they are, then what they mean together."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.layers.initialise import xavier_linear
from sostenuto.layers.learned_queries import CrossAttention, LearnedQueries

Levels = Literal["both", "shallow", "deep"]
LEVELS: tuple[Levels, ...] = ("both", "shallow", "deep")


class SelfAttentionBlock(nn.Module):
    """Behaviours that look at each other: attention, then two linear layers, each added to what came in."""

    def __init__(self, dim: int, *, heads: int = 2) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, heads=heads)
        self.before_units = nn.LayerNorm(dim)
        self.units = nn.Sequential(xavier_linear(dim, 2 * dim), nn.ReLU(), xavier_linear(2 * dim, dim))

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """Return (B, L, D)."""
        normed = self.before_attention(vectors)
        vectors = vectors + self.attention(normed, normed, mask)
        out: Tensor = vectors + self.units(self.before_units(vectors))
        return out


class LayeredInterests(nn.Module):
    """K learned interests that read shallow semantics first, then deeper and deeper ones.

        I^(l+1) = I^(l) + CrossAttn(I^(l), H^(l)),   H^(0) = behaviours,   H^(l) = Block_l(H^(l-1))

    and at the end a gate between the interests after the first reading and those after the last. A realisation of what
    STIM's abstract (arXiv:2508.02451) calls hierarchical interaction between shallow and deep semantics; ours.

    Args:
        dim: D of behaviours and interests.
        interests: K.
        depth: blocks.
        levels: which readings count: both, mixed by the gate; the first alone; or the last alone.
    """

    def __init__(self, dim: int, *, interests: int, depth: int, levels: Levels = "both") -> None:
        super().__init__()
        depth = 0 if levels == "shallow" else depth
        self.queries = LearnedQueries(interests, dim)
        self.blocks = nn.ModuleList(SelfAttentionBlock(dim) for _ in range(depth))
        self.readings = nn.ModuleList(CrossAttention(dim) for _ in range(depth + 1))
        self.gate = xavier_linear(2 * dim, dim) if levels == "both" and depth else None

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """Return (B, K, D) interests of padded (B, L, D) behaviours; the order of these means nothing."""
        interests: Tensor = self.queries(vectors.shape[0])
        shallow: Tensor = interests + self.readings[0](interests, vectors, mask)
        interests = shallow
        for block, reading in zip(self.blocks, self.readings[1:], strict=True):
            vectors = block(vectors, mask)
            interests = interests + reading(interests, vectors, mask)
        if self.gate is None:
            return interests
        share: Tensor = torch.sigmoid(self.gate(torch.cat([shallow, interests], -1)))
        return torch.lerp(interests, shallow, share.to(interests.dtype))


def interest_for(interests: Tensor, target: Tensor, row: Tensor) -> Tensor:
    """Return (Nc, D): interests weighted by softmax(I . target / sqrt(D)).

    Args:
        interests: (B, K, D).
        target: (Nc, D).
        row: (Nc,) int64 request of each candidate.
    """
    own = interests[row]
    weights = ((own @ target[:, :, None]) * target.shape[1] ** -0.5).softmax(1)
    found: Tensor = (weights * own).sum(1)
    return found


def interest_overlap(interests: Tensor) -> Tensor:
    """Return the mean over rows of the sum of squared cosines between different interests."""
    unit = F.normalize(interests, dim=-1)
    cosines = unit @ unit.mT
    overlap: Tensor = cosines.square().sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).square().sum(1)
    return overlap.mean()


__all__ = ["LEVELS", "LayeredInterests", "Levels", "SelfAttentionBlock", "interest_for", "interest_overlap"]
