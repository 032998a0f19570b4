"""A few learned queries that read any number of vectors: cross attention whose result has a fixed size.

Queries read and are not read: nothing changes the vectors. In `layers/fusion_q_former.py`, as published, modalities
attend to queries and to one another too, which is why the two share no code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sostenuto.layers.initialise import xavier_linear


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return (B, H, Q, D) of softmax(q . k / sqrt(D)) v over the real positions; zeros for a row without any.

    Args:
        query: (B, H, Q, D).
        key, value: (B, H, L, D).
        mask: (B, L) bool, True = real.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    real = mask[:, None, None, :]
    scores = scores.masked_fill(~real, torch.finfo(scores.dtype).min)
    weights: Tensor = scores.softmax(-1) * real
    return weights @ value


class CrossAttention(nn.Module):
    """Multi-head attention of (B, Q, D) queries over padded (B, L, D) vectors. Order means nothing to it."""

    def __init__(self, dim: int, *, heads: int = 1) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide the width {dim}, got {heads}; take 1 or 2")
        self.heads = heads
        self.query = xavier_linear(dim, dim, bias=False)
        self.key = xavier_linear(dim, dim, bias=False)
        self.value = xavier_linear(dim, dim, bias=False)
        self.out = xavier_linear(dim, dim, bias=False)

    def forward(self, queries: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """Return (B, Q, D); zeros where a row of `mask` (B, L) holds nothing."""

        def split(values: Tensor) -> Tensor:
            return values.view(*values.shape[:2], self.heads, values.shape[2] // self.heads).transpose(1, 2)

        found = masked_attention(split(self.query(queries)), split(self.key(vectors)), split(self.value(vectors)), mask)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out


class LearnedQueries(nn.Module):
    """K vectors that start from N(0, 1 / sqrt(D)), one set for every row."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(count, dim) * dim**-0.5)

    def forward(self, rows: int) -> Tensor:
        """Return (rows, K, D)."""
        return self.vectors.expand(rows, -1, -1)


__all__ = ["CrossAttention", "LearnedQueries", "masked_attention"]
