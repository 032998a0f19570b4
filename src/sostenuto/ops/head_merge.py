"""From the scores of several heads to one list: the best K of each, pooled, each item once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Merged(NamedTuple):
    """The best K items of B users."""

    item: Tensor  # (B, K) int64 column of the scores, -1 where fewer than K are open
    score: Tensor  # (B, K) falling
    head: Tensor  # (B, K) int64 head that each came from, -1 as above


def merge_heads(scores: Tensor, k: int) -> Merged:
    """Take the top K of each head, pool them, sort by score and drop repeated items: the first of each stays.

    This is ranking by the maximum over heads, without scoring every item with every head: each head may be a search
    of its own in an index.

    Args:
        scores: (B, H, I), -inf where a head may not propose an item.
        k:      at least 1; more than I gives I.
    """
    best = scores.topk(min(k, scores.shape[2]), 2)
    head = torch.arange(scores.shape[1], device=scores.device)[None, :, None].expand_as(best.indices)
    pooled, order = best.values.flatten(1).sort(dim=1, descending=True, stable=True)
    item, head = best.indices.flatten(1).gather(1, order), head.flatten(1).gather(1, order)
    by_item = item.sort(dim=1, stable=True)  # stable: of one item, the better score stays first
    first = torch.ones_like(by_item.values, dtype=torch.bool)
    first[:, 1:] = by_item.values[:, 1:] != by_item.values[:, :-1]
    kept = torch.zeros_like(first).scatter(1, by_item.indices, first) & pooled.isfinite()
    place = torch.where(kept, kept.cumsum(1) - 1, k)
    width = min(k, scores.shape[2])

    def laid(column: Tensor, empty: float) -> Tensor:
        out = column.new_full((column.shape[0], width + 1), empty)
        return out.scatter(1, place.clamp(max=width), column)[:, :width]

    return Merged(laid(item, -1), laid(pooled, -torch.inf), laid(head, -1))


__all__ = ["Merged", "merge_heads"]
