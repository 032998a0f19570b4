"""Dice: an activation whose turning point follows the data (Zhou et al. 2018, arXiv:1706.06978, section 5.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dice(nn.Module):
    """f(s) = p s + (1 - p) alpha s with p = sigmoid((s - E[s]) / sqrt(Var[s] + eps)).

    Training takes E and Var over the rows of the call, which are real candidates only, and remembers their moving
    averages; evaluation uses the remembered ones (the released code takes batch statistics even there). With E = 0
    and Var -> 0 it is a PReLU; with alpha = 1 it is the identity.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, *, momentum: float = 0.05, eps: float = 1e-8) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(dim))
        self.momentum = momentum
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, values: Tensor) -> Tensor:
        """Activate (N, dim)."""
        if self.training and values.shape[0] > 1:
            kept = values.to(self.running_mean.dtype)  # autocast may hand lower precision in
            mean, var = kept.mean(0), kept.var(0, unbiased=False)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        gate = torch.sigmoid((values - mean) * torch.rsqrt(var + self.eps))
        return values * (gate + (1.0 - gate) * self.alpha)


__all__ = ["Dice"]
