"""Numbers as piecewise-linear bins, so that a tower can bend where the data are.

Every column x becomes K columns clip((x - low_k) / width_k, 0, 1) between K + 1 knots (the piecewise-linear encoding
of Gorishniy, Rubachev and Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022,
with its open ends closed: values outside the knots are clipped). Knots are quantiles of a sample of
training candidates. Ours: the sample's smallest value is a knot of its own, and the quantiles are those of the values
above it, because counts of past purchases are zero for most candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sostenuto.ops.binned_product import bin_shares
from sostenuto.schema.errors import SpecError


class QuantileBins(nn.Module):
    """K piecewise-linear columns for each of `dim` numbers; before `calibrate` the knots are even over [0, 8]."""

    low: Tensor
    width: Tensor

    def __init__(self, dim: int, bins: int) -> None:
        super().__init__()
        if bins < 1:
            raise SpecError(f"bins must be at least 1, or 0 for none, got {bins}; set bins to 12 or so")
        self.dim, self.bins = dim, bins
        self.out_dim = dim * bins
        knots = torch.linspace(0.0, 8.0, bins + 1).expand(dim, -1)  # log counts live there
        self.register_buffer("low", knots[:, :-1].clone())
        self.register_buffer("width", (knots[:, 1:] - knots[:, :-1]).clone())

    @torch.no_grad()
    def calibrate(self, values: Tensor) -> None:
        """Set the knots from a sample (N, dim) of training candidates, N >= 1."""
        values = values.detach().double()
        smallest = values.min(0).values
        shares = torch.linspace(0.0, 1.0, self.bins, dtype=torch.float64, device=values.device)
        for column in range(self.dim):
            above = values[values[:, column] > smallest[column], column]
            # torch.quantile refuses more than 2^24 values; a sample this small never comes near
            tops = torch.quantile(above, shares) if len(above) else smallest[column].expand(self.bins) + 1.0
            knots = torch.cat([smallest[column : column + 1], tops])
            self.low[column] = knots[:-1].to(self.low.dtype)
            self.width[column] = (knots[1:] - knots[:-1]).to(self.width.dtype)

    def forward(self, values: Tensor) -> Tensor:
        """Return (N, dim * K) in [0, 1]; a bin without width is a step just above its knot."""
        return bin_shares(values, self.low, self.width)


__all__ = ["QuantileBins"]
