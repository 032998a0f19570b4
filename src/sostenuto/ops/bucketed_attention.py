"""Softmax attention inside jagged rows: rows of like length are laid side by side and go through one call each.

A query sees the first `visible` keys of its row. Scores are never held for more than a strip of queries, so a row of
10,000 takes strips of 128 x 10,000, never 10,000 x 10,000.

This form is plain softmax with dropout of the weights over short windows (SASRec): each bucket is one call of torch's
own kernel. `causal_attention` adds relative biases, pointwise weights and keys of a query's own, and keeps no scores
for the backward pass; `biased_attention` is of candidates over behaviours.

Letters: B rows, N tokens, H heads, D width of a head, G rows of a bucket, L its padded length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SHORTEST = 8  # padded length of the first bucket; the next are twice as long each
STRIP = 128  # queries at once
MOST_SCORES = 1 << 22  # of a strip of all rows of a bucket; more rows take several calls


class _Bucket(NamedTuple):
    first: int  # slots first .. first + rows * length
    rows: int
    length: int
    visible: Tensor  # (G, L) int64, 1 for padding: a row of nothing would be NaN


class IdlePlaces(NamedTuple):
    """Keys that hold nothing and are all alike: a query may look at them in place of a behaviour."""

    key: Tensor  # (H, D)
    value: Tensor  # (H, D)
    places: int  # of a row; a query that sees n keys has max(places - n, 0) idle ones beside them


@dataclass(frozen=True, slots=True)
class LengthBuckets:
    """Jagged rows arranged by length; made once for all layers of a pass."""

    slot: Tensor  # (N,) int64 place of each token among the padded ones
    slots: int
    buckets: tuple[_Bucket, ...]


def length_buckets(offsets: Tensor, visible: Tensor) -> LengthBuckets:
    """Arrange rows.

    Args:
        offsets: (B + 1,).
        visible: (N,) int64 at least 1: how many of its row's first keys a query sees.
    """
    lengths = offsets[1:] - offsets[:-1]
    padded = torch.full_like(lengths, SHORTEST)
    while bool((padded < lengths).any()):
        padded = torch.where(padded < lengths, padded * 2, padded)
    padded = torch.where(lengths > 0, padded, 0)
    order = torch.argsort(padded, stable=True)
    starts = torch.zeros_like(lengths)
    starts[order] = padded[order].cumsum(0) - padded[order]
    total = visible.shape[0]
    slot = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=total)
    slot = slot + torch.arange(total, device=slot.device)
    slots = int(padded.sum())
    seen = visible.new_ones(slots)
    seen[slot] = visible
    buckets, first = [], 0
    distinct, counts = torch.unique(padded, return_counts=True)
    for length, rows in zip(distinct.tolist(), counts.tolist(), strict=True):
        most = max(1, MOST_SCORES // max(length * min(length, STRIP), 1))
        while length and rows:
            here = min(rows, most)
            end = first + here * length
            buckets.append(_Bucket(first, here, length, seen[first:end].view(here, length)))
            first, rows = end, rows - here
    return LengthBuckets(slot=slot, slots=slots, buckets=tuple(buckets))


def bucketed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    buckets: LengthBuckets,
    *,
    dropout: float = 0.0,
    idle: IdlePlaces | None = None,
) -> Tensor:
    """Return (N, H, D) softmax(q k / sqrt(D)) v over the keys that each query sees.

    Args:
        query, key, value: (N, H, D).
        buckets:           of the rows.
        dropout:           of the weights; 0 outside of training.
        idle:              further keys of every row.
    """
    shape = query.shape
    whole = torch.cat([query.flatten(1), key.flatten(1), value.flatten(1)], 1)
    laid = whole.new_zeros(buckets.slots, whole.shape[1]).index_copy(0, buckets.slot, whole)
    parts = []
    for first, rows, length, visible in buckets.buckets:
        at = laid[first : first + rows * length].view(rows, length, 3, shape[1], shape[2])
        q, k, v = (at[:, :, n].transpose(1, 2) for n in range(3))  # (G, H, L, D)
        keys = torch.arange(length, device=visible.device)
        strips = []
        for start in range(0, length, STRIP):
            sees = visible[:, start : start + STRIP]
            end = length if length <= STRIP else int(sees.max())
            mask = keys[:end] < sees[:, :, None]
            kept, held = k[:, :, :end], v[:, :, :end]
            if idle is not None:
                mask = _with_idle(mask, idle.places - sees)
                kept, held = (
                    torch.cat([one[None, :, None].expand(rows, -1, 1, -1), all_], 2)
                    for one, all_ in ((idle.key, kept), (idle.value, held))
                )
            strips.append(
                F.scaled_dot_product_attention(
                    q[:, :, start : start + STRIP],
                    kept,
                    held,
                    attn_mask=mask[:, None],
                    dropout_p=dropout,
                )
            )
        out = strips[0] if len(strips) == 1 else torch.cat(strips, 2)
        parts.append(out.transpose(1, 2).reshape(rows * length, shape[1], shape[2]))
    if not parts:
        return value
    return torch.cat(parts).index_select(0, buckets.slot)


def _with_idle(mask: Tensor, count: Tensor) -> Tensor:
    """Return (G, L, 1 + K) what is added to scores: one key stands for `count` (G, L) alike, before K by mask."""
    lowest = torch.finfo(torch.float32).min / 2
    idle = torch.where(count > 0, count.clamp(min=1).float().log(), lowest)
    return torch.cat([idle[:, :, None], torch.where(mask, 0.0, lowest)], 2)


__all__ = ["IdlePlaces", "LengthBuckets", "bucketed_attention", "length_buckets"]
