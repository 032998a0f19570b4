"""Dropout (Srivastava et al., JMLR 2014) whose mask is cheap to draw on a processor.

torch draws a 64-bit number per entry; here one makes four entries. At widths of 200 a mask was a tenth of a training
step of `dfgr`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sostenuto.ops.drawing import MAX_SEED, drawn_bits

LEVELS = 1 << 16  # a probability is rounded to this many levels; entries are divided by the share that is really kept


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, with 16 random bits per entry on a processor; elsewhere torch's own."""

    def forward(self, values: Tensor) -> Tensor:
        """Return `values` of any shape with a share `p` of the entries 0 and the others divided by 1 - p."""
        dropped = round(self.p * LEVELS)
        if not self.training or not 0 < dropped < LEVELS or values.device.type != "cpu":
            return super().forward(values)
        drawn = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        return _kept(values, drawn.view(torch.int16)[: values.numel()].view(values.shape), dropped)


class DropoutByItem(nn.Module):
    """Dropout of item vectors that an item cannot evade: it loses the same entries wherever it is met.

    One mask per item lasts from `renew` to `renew`, a training step: what a user read and what is searched for, target
    or negative, are the same item with the same entries left. RecTools' transformers drop out the table itself.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self._seed: Tensor | None = None

    def renew(self) -> None:
        """Draw other masks from now on."""
        self._seed = None

    def forward(self, values: Tensor, item: Tensor) -> Tensor:
        """Return (N, D) `values` of (N,) int64 items, a share of each item's entries 0 and the others scaled."""
        dropped = min(round(self.share * LEVELS), LEVELS - 1)
        if not self.training or not dropped:
            return values
        if self._seed is None:
            self._seed = torch.randint(MAX_SEED, (1,), device=item.device)
        words = -(-values.shape[1] // 4)  # of 64 bits, for four entries each
        number = item[:, None] * words + torch.arange(words, device=item.device)
        return _kept(values, drawn_bits(number, self._seed).view(torch.int16)[:, : values.shape[1]], dropped)


def _kept(values: Tensor, drawn: Tensor, dropped: int) -> Tensor:
    """Return the values whose random 16 bits are not among the lowest `dropped` levels, scaled by what is kept."""
    return values * (drawn >= dropped - LEVELS // 2).to(values.dtype).mul_(LEVELS / (LEVELS - dropped))


__all__ = ["Dropout", "DropoutByItem"]
