"""Rows of items that are expensive to make: kept while training, and brought up to date a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

ITEMS_AT_ONCE = 8_192  # bounds memory while many rows are made


def _pieces(num_items: int, device: torch.device) -> list[Tensor]:
    starts = range(0, num_items, ITEMS_AT_ONCE)
    return [torch.arange(start, min(start + ITEMS_AT_ONCE, num_items), device=device) for start in starts]


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
        for item in _pieces(self.num_items, self.rows.device):
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


class EvaluatedRows(nn.Module):
    """Columns of all items, made once for the parameters of now, for evaluation without gradients.

    Whatever may change a parameter empties them: training mode, loading, moving, and changes in place, which the
    tensors' version counters tell. They are no part of a state dict.
    """

    def __init__(self) -> None:
        super().__init__()
        self._columns: tuple[Tensor, ...] | None = None
        self._stamp: tuple[tuple[int, int], ...] = ()

    @torch.no_grad()
    def columns(
        self, num_items: int, make: Callable[[Tensor], Sequence[Tensor]], sources: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return (num_items, width) columns; they are made where they are not at hand.

        Args:
            num_items: I.
            make: gives columns of (n,) items.
            sources: parameters and buffers that `make` reads.
        """
        stamp = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in sources)
        if self._columns is None or stamp != self._stamp:
            parts = [make(item) for item in _pieces(num_items, sources[0].device)]
            self._columns, self._stamp = tuple(torch.cat(column) for column in zip(*parts, strict=True)), stamp
        return self._columns

    def empty(self) -> None:
        """Forget them."""
        self._columns = None

    @property
    def num_bytes(self) -> int:
        """Bytes kept."""
        return sum(column.nbytes for column in self._columns or ())

    def train(self, mode: bool = True) -> Self:
        """Empty in training mode."""
        if mode:
            self.empty()
        return super().train(mode)

    def _apply(self, *given: Any, **named: Any) -> Self:
        self.empty()
        moved: Self = super()._apply(*given, **named)  # type: ignore[no-untyped-call]
        return moved

    def _load_from_state_dict(self, *given: Any, **named: Any) -> None:
        self.empty()
        super()._load_from_state_dict(*given, **named)


__all__ = ["EvaluatedRows", "RefreshedRows"]
