"""Moments: behaviours of one row and one time. They have no order among themselves, so places count moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentPlaces:
    """Of N behaviours in jagged rows, which hold M moments in all."""

    moment: Tensor  # (N,) int64 which moment of the batch
    size: Tensor  # (M,) int64 behaviours of each
    index: Tensor  # (N,) int64 which moment of its row, from 0
    end: Tensor  # (N,) int64 behaviours of the row up to and with its moment

    @property
    def start(self) -> Tensor:
        """(N,) int64 behaviours of the row before its moment."""
        return self.end - self.size[self.moment]

    @property
    def first(self) -> Tensor:
        """(N,) int64 position of the first behaviour of the moment."""
        return (self.size.cumsum(0) - self.size)[self.moment]

    def from_end(self, offsets: Tensor) -> Tensor:
        """Return (N,) int64 which moment of its row, 0 for the newest, of rows that start at (B + 1,) offsets."""
        if not self.index.numel():
            return self.index
        lengths = offsets[1:] - offsets[:-1]
        newest = self.index[(offsets[1:] - 1).clamp(min=0)]
        return torch.repeat_interleave(newest, lengths, output_size=self.index.shape[0]) - self.index

    def asked(self, first: Tensor, prefix: Tensor) -> Tensor:
        """Return (R,) int64: 1 + the moment that closes the first `prefix` behaviours of rows; 0 where there is none.

        Args:
            first:  (R,) flat position where each row begins.
            prefix: (R,) whole moments.
        """
        if not self.moment.numel():
            return torch.zeros_like(prefix)
        return torch.where(prefix > 0, self.moment[(first + prefix - 1).clamp(min=0)] + 1, 0)

    def mean(self, values: Tensor) -> Tensor:
        """Return (M, D), the mean of (N, D) values over each moment."""
        if self.size.shape[0] == values.shape[0]:
            return values
        total = values.new_zeros(self.size.shape[0], values.shape[1]).index_add(0, self.moment, values)
        return total / self.size[:, None]


def moment_places(offsets: Tensor, time_ms: Tensor) -> MomentPlaces:
    """Count the moments of every row.

    Args:
        offsets: (B + 1,).
        time_ms: (N,) never decreasing inside a row.
    """
    total = time_ms.shape[0]
    real = offsets[1:] > offsets[:-1]
    starts = offsets[:-1][real]
    opens = torch.ones(total, dtype=torch.bool, device=time_ms.device)
    opens[1:] = time_ms[1:] != time_ms[:-1]
    opens[starts] = True
    moment = opens.cumsum(0) - 1
    size = torch.bincount(moment)
    row_start = torch.repeat_interleave(starts, (offsets[1:] - offsets[:-1])[real], output_size=total)
    return MomentPlaces(
        moment=moment, size=size, index=moment - moment[row_start], end=size.cumsum(0)[moment] - row_start
    )


__all__ = ["MomentPlaces", "moment_places"]
