"""A linear map whose base is frozen and whose change has low rank (LoRA, Hu et al., ICLR 2022, arXiv:2106.09685).

    y = W0 f + b0 + (alpha / r) B (A f),   A (r, d_in), B (d_out, r), B = 0 at the start

Where f is a constant of an item, W0 f + b0 is one too: it is computed once and looked up, and a training step makes
A f only. `from_rows` keeps r numbers per row for the backward pass; a plain linear map keeps the d_in numbers of f.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sostenuto.schema.errors import SpecError


class _LowRankRows(torch.autograd.Function):
    """B (A f) of rows of a constant table; keeps the rows' numbers and A f, never f."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(table.device.type, enabled=False):  # narrow products; the backward pass meets one precision
            inner = table.index_select(0, index) @ a.T
            ctx.save_for_backward(table, index, inner, b)  # the table itself, not a copy: its version is checked
            return inner @ b.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor, Tensor]:
        table, index, inner, b = ctx.saved_tensors
        of_inner = gradient @ b
        return None, None, of_inner.T @ table.index_select(0, index), gradient.T @ inner


class LoRALinear(nn.Module):
    """A frozen linear map plus a trained one of rank r.

    Args:
        in_dim, out_dim: of the map.
        rank: r; 0 leaves the frozen map alone.
        alpha: the change counts alpha / r.
        persistent: the frozen map is part of the state dict; False where it is handed in anew after loading.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, in_dim: int, out_dim: int, *, rank: int, alpha: float = 8.0, persistent: bool = True) -> None:
        super().__init__()
        if rank < 0:
            raise SpecError(f"the rank of a low-rank map must be 0, which leaves it out, or more, got {rank}; raise it")
        self.rank, self.factor = rank, alpha / max(rank, 1)
        self.register_buffer("weight", torch.zeros(out_dim, in_dim), persistent=persistent)
        self.register_buffer("bias", torch.zeros(out_dim), persistent=persistent)
        self.a = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, in_dim), a=math.sqrt(5))) if rank else None
        self.b = nn.Parameter(torch.zeros(out_dim, rank)) if rank else None

    @torch.no_grad()
    def set_base(self, weight: Tensor, bias: Tensor) -> None:
        """Take a copy of a map over as the frozen one."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def base(self, features: Tensor) -> Tensor:
        """Return W0 f + b0, (N, out_dim)."""
        return nn.functional.linear(features, self.weight, self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return (..., out_dim) of (..., in_dim)."""
        if self.a is None or self.b is None:
            return self.base(features)
        return self.base(features) + self.factor * ((features @ self.a.T) @ self.b.T)

    def from_rows(self, base: Tensor, table: Tensor, index: Tensor) -> Tensor:
        """Return (N, out_dim), equal to `forward(table[index])`, for constant features whose base is at hand.

        Args:
            base:  (N, out_dim) `base(table[index])`, looked up.
            table: (I, in_dim) features without gradient.
            index: (N,) int64 rows of it.
        """
        if self.a is None or self.b is None:
            return base
        change: Tensor = _LowRankRows.apply(table, index, self.a, self.b)  # type: ignore[no-untyped-call]
        return base + self.factor * change

    def merged(self) -> tuple[Tensor, Tensor]:
        """Return (out_dim, in_dim) and (out_dim,): weight and bias of the one linear map that this is equal to."""
        if self.a is None or self.b is None:
            return self.weight, self.bias
        return self.weight + self.factor * (self.b @ self.a), self.bias


__all__ = ["LoRALinear"]
