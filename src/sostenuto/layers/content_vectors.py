"""Content vectors of items, looked up by item index; frozen."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from sostenuto.schema.content import ItemContent
from sostenuto.schema.errors import RunError, SpecError
from sostenuto.schema.features import ContentField

ROWS_AT_ONCE = 65_536  # bounds memory while lengths are taken


class ContentVectors(nn.Module):
    """Rows of one kind of content: codes times scale, float32, without gradient.

    Codes are dequantised for the rows asked for only; the whole table stays as it is stored, memory-mapped on a CPU.
    A projection that learns is the ranker's own.

    Args:
        content:   sizes of the content.
        num_items: item vocabulary.
    """

    vectors: Tensor
    scale: Tensor
    known: Tensor
    inverse: Tensor

    def __init__(self, content: ContentField, num_items: int) -> None:
        super().__init__()
        self.name = content.name
        self.num_items = num_items
        self.out_dim = content.vector_dim
        self.register_buffer("vectors", torch.zeros(0, self.out_dim, dtype=torch.float16), persistent=False)
        self.register_buffer("scale", torch.zeros(0), persistent=False)
        self.register_buffer("known", torch.zeros(0, dtype=torch.bool), persistent=False)
        self.register_buffer("inverse", torch.zeros(0, dtype=torch.float64), persistent=False)  # made when asked for

    def set_content(self, content: ItemContent) -> None:
        """Take the vectors over; they may lie in a memory-mapped file.

        Raises:
            SpecError: their shape is not what the ranker was built for.
        """
        shape = (self.num_items, self.out_dim)
        if tuple(content.vectors.shape) != shape:
            raise SpecError(
                f"vectors of content {self.name!r} must have the shape {shape} that the ranker was built with, got "
                f"{tuple(content.vectors.shape)}; build the content again, or train on it"
            )
        self.vectors = content.vectors
        self.scale = torch.zeros(0, device=content.vectors.device) if content.scale is None else content.scale
        self.known = content.known
        self.inverse = self.inverse.new_zeros(0, device=content.vectors.device)

    @torch.no_grad()
    def forward(self, item: Tensor) -> Tensor:
        """Return (N, vector_dim) float32 of (N,) items; zero where an item has no content."""
        self._check()
        rows = self.vectors[item].float()
        return rows * self.scale[item][:, None] if len(self.scale) else rows

    def stored(self, item: Tensor) -> Tensor:
        """Return (N, vector_dim) rows as they are stored, codes or half precision: what a cache would keep."""
        self._check()
        return self.vectors[item]

    def is_known(self, item: Tensor) -> Tensor:
        """Return (N,) bool: the item has content."""
        self._check()
        return self.known[item]

    @torch.no_grad()
    def inverse_length(self, item: Tensor) -> Tensor:
        """Return (N,) float64, 1 / length of the `stored` rows of (N,) items; 0 where an item has no content.

        The lengths of all items are taken together, once per content that is set: that reads the whole table.
        """
        self._check()
        if len(self.inverse) != self.num_items:
            starts = range(0, self.num_items, ROWS_AT_ONCE)
            length = torch.cat([self.vectors[at : at + ROWS_AT_ONCE].float().double().norm(dim=1) for at in starts])
            self.inverse = torch.where(self.known & (length > 0), 1.0 / length.clamp(min=1e-12), 0.0)
        return self.inverse[item]

    def _apply(self, *given: Any, **named: Any) -> Self:
        moved: Self = super()._apply(*given, **named)  # type: ignore[no-untyped-call]
        if self.inverse.dtype != torch.float64:  # another type was asked for: lengths would lose digits
            self.inverse = torch.zeros(0, dtype=torch.float64, device=self.inverse.device)
        return moved

    def _check(self) -> None:
        if not len(self.known):
            raise RunError(
                f"content {self.name!r} must be handed over before a ranker is asked, nothing came; "
                "call take_content with content.store.open_content, or open the run with `open_run`"
            )


__all__ = ["ContentVectors"]
