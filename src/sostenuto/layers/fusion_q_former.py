"""The Fusion-Q-Former of EM3 (arXiv:2404.06078): any number of modality vectors in, one vector of fixed width out.

The equations are those of the public code of the paper. With tokens X = [q_1 .. q_Q ; x_1 .. x_M], queries learned and
the same for every item, a block is

    A = softmax(X W_Q (X W_K)^T / sqrt(d_head + 1e-5)),   X <- LayerNorm(X + Dropout(Dense(A X W_V)))

over all Q + M tokens: queries attend to modalities and to one another, and so do modalities. There is no feed-forward
part and no position. The first Q tokens, flattened, are what `forward` returns; the linear map of them to the content
vector is left to the caller, because a long history wants a cheaper one than the target.

The mask of missing modalities is ours: nothing attends to a missing token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sostenuto.layers.dropout import Dropout
from sostenuto.layers.initialise import xavier_linear
from sostenuto.schema.errors import SpecError

SCALE_EPS = 1e-5  # of the public code
NORM_EPS = 1e-5


class JointSelfAttention(nn.Module):
    """One block: self-attention over all tokens, residual, layer norm."""

    def __init__(self, dim: int, *, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise SpecError(f"heads must divide the width {dim}, got {heads}; take 1, 2 or 4")
        self.heads = heads
        self.query, self.key, self.value = (xavier_linear(dim, dim) for _ in range(3))
        self.dense = xavier_linear(dim, dim)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (N, T, D) of (N, T, D) tokens; nothing attends to tokens that are False in the (N, T) mask."""

        rows, count, dim = tokens.shape

        def split(values: Tensor) -> Tensor:
            return values.view(rows, count, self.heads, dim // self.heads).transpose(1, 2)

        query, key, value = (split(layer(tokens)) for layer in (self.query, self.key, self.value))
        scores = query @ key.mT / math.sqrt(query.shape[-1] + SCALE_EPS)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        out: Tensor = self.norm(tokens + self.dropout(self.dense(mixed)))
        return out


class FusionQFormer(nn.Module):
    """Learned queries and modality tokens under joint self-attention.

    Args:
        dim: D, width of tokens and queries.
        queries: Q.
        blocks: self-attention blocks.
        heads: of each block; divides D.
        dropout: behind each block's dense layer.
    """

    def __init__(self, dim: int, *, queries: int = 2, blocks: int = 1, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.queries = nn.Parameter(nn.init.xavier_uniform_(torch.empty(queries, dim)))
        self.blocks = nn.ModuleList(JointSelfAttention(dim, heads=heads, dropout=dropout) for _ in range(blocks))
        self.out_dim = queries * dim

    def forward(self, modalities: Tensor, present: Tensor | None = None) -> Tensor:
        """Return (N, Q * D).

        Args:
            modalities: (N, M, D), M >= 0.
            present: (N, M) bool, True = the item has this modality; None = all.
        """
        rows, (count, _) = modalities.shape[0], self.queries.shape
        tokens = torch.cat([self.queries.expand(rows, -1, -1), modalities], 1)
        mask = None
        if present is not None:
            mask = torch.cat([present.new_ones(rows, count), present], 1)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return tokens[:, :count].flatten(1)


__all__ = ["FusionQFormer", "JointSelfAttention"]
