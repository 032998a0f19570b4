"""Parameters of the exact attention over what a search has selected; the maths is `ops.selected_attention`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sostenuto.layers.initialise import xavier_linear
from sostenuto.ops.steady_product import steady_product


class ExactAttention(nn.Module):
    """Scores of multi-head target attention: (W_q q) . (W_k k) / sqrt(d), per head.

    The value projection of the papers is left to the first layer of the tower, which is linear in the averages. W_q
    starts equal to W_k, so that a candidate looks for what is like it from the first step; scores have a learned factor
    per head, because item vectors start too short to tell behaviours apart. Both are ours.

    Args:
        dim: D, width of item vectors.
        heads: H.
        head_dim: d, width of a head.
        gain: factor of the scores at the start.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, *, gain: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.key = xavier_linear(dim, heads * head_dim, bias=False)
        self.query = xavier_linear(dim, heads * head_dim, bias=False)
        with torch.no_grad():
            self.query.weight.copy_(self.key.weight)
        self.log_gain = nn.Parameter(torch.full((heads,), math.log(gain)))

    def queries(self, target: Tensor) -> Tensor:
        """Return (Nc, H, d) of (Nc, D) candidates: their products with `keys` are the scores."""
        asked = steady_product(target, self.query.weight).view(-1, self.heads, self.head_dim)
        return asked * (self.log_gain.exp() / math.sqrt(self.head_dim))[:, None]

    def keys(self, vectors: Tensor) -> Tensor:
        """Return (N, H, d) of (N, D) item vectors: what can be made once per behaviour or item."""
        projected: Tensor = self.key(vectors).view(-1, self.heads, self.head_dim)
        return projected

    def folded(self, target: Tensor) -> Tensor:
        """Return (Nc, H, D): queries whose products with item vectors as they are, are the scores.

        W_k goes to the query, of which there is one, and not to the K behaviours that it meets.
        """
        return self.fold(self.queries(target))

    def fold(self, query: Tensor) -> Tensor:
        """Return the same of the (Nc, H, d) `queries`."""
        weight = self.key.weight.view(self.heads, self.head_dim, -1)
        found: Tensor = torch.einsum("nhd,hdk->nhk", query, weight)
        return found


__all__ = ["ExactAttention"]
