"""Bring hand-made numbers to mean 0 and spread 1 with statistics gathered while training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningScale(nn.Module):
    """(x - mean) / std per column, with the mean and variance of everything seen in training so far.

    The same stored statistics are used in training and in evaluation, so a score never depends on its batch. Before
    the first training batch it is the identity. A column that never varied only loses its mean. Results are clipped
    to +-`limit`: one outlier (a bulk purchase) must not own the logit.
    """

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, dim: int, *, limit: float = 8.0) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(dim, dtype=torch.float64))  # sum of squared deviations

    @torch.no_grad()
    def _gather(self, values: Tensor) -> None:
        rows = values.double()
        added = rows.shape[0]
        total = self.count + added
        mean = rows.mean(0)
        delta = mean - self.mean
        self.square += ((rows - mean) ** 2).sum(0) + delta**2 * self.count * added / total
        self.mean += delta * added / total
        self.count.copy_(total)

    def forward(self, values: Tensor) -> Tensor:
        """Return (N, dim) scaled; in training mode the rows are counted first."""
        if self.training and values.shape[0]:
            self._gather(values)
        if not values.shape[1]:
            return values
        std = (self.square / self.count).sqrt()
        std = torch.where(std > 1e-6, std, torch.ones_like(std))  # also where nothing was seen: 0 / 0
        scaled = ((values - self.mean) / std).to(values.dtype).clamp(-self.limit, self.limit)
        return torch.where(self.count < 2, values, scaled)  # no branch: `torch.export` must not look at the number


__all__ = ["RunningScale"]
