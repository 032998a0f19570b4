"""Rows of items that are expensive to make: kept while training, and brought up to date a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

ITEMS_AT_ONCE = 8_192  # bounds memory while many rows are made


class RefreshedRows(nn.Module):
    """One row per item as an encoder made it at some earlier step; part of the state dict, so that a run can go on.

    Rows are written as they come by (`write`); `refresh` makes the next few in turn, so every row is at most
    num_items / count steps old. Nothing is written between a lookup and its backward pass as long as a step writes
    first and looks up afterwards.
    """

    rows: Tensor
    cursor: Tensor
    filled: Tensor

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.register_buffer("rows", torch.zeros(num_items, dim))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fill(self, make: Callable[[Tensor], Tensor]) -> None:
        """Make every row."""
        for start in range(0, self.num_items, ITEMS_AT_ONCE):
            item = torch.arange(start, min(start + ITEMS_AT_ONCE, self.num_items), device=self.rows.device)
            self.rows[item] = make(item)
        self.cursor.zero_()
        self.filled.fill_(True)

    @torch.no_grad()
    def write(self, item: Tensor, rows: Tensor) -> None:
        """Take rows over that were made anyway; items are distinct."""
        self.rows[item] = rows.detach()

    @torch.no_grad()
    def refresh(self, make: Callable[[Tensor], Tensor], count: int) -> bool:
        """Make the next `count` rows in turn; say whether this was the end of a round."""
        if not count:
            return False
        begin = int(self.cursor)
        end = min(begin + count, self.num_items)
        item = torch.arange(begin, end, device=self.rows.device)
        self.rows[item] = make(item)
        self.cursor.fill_(end % self.num_items)
        return end == self.num_items


__all__ = ["RefreshedRows"]
