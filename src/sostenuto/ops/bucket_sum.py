"""Sums of behaviours by hash bucket, and what a candidate finds in its buckets.

Letters: B rows, N behaviours (flat), Nc candidates, G signatures, K = 2 ** tau buckets each, V width of a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sostenuto.native.library import library
from sostenuto.ops.backend import is_usable
from sostenuto.ops.jagged import row_index
from sostenuto.ops.native_buckets import bucket_sums, interests_of_values, looked_up

# Behaviours handled at once: bounds the (rows, G K) indicator matrix.
ROW_BLOCK = 4096


def _indicators(ids: Tensor, offsets: list[int], buckets: int, like: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield (row, behaviours, (rows, G K) matrix with a 1 in each behaviour's bucket of every signature)."""
    groups = ids.shape[1]
    columns = ids + torch.arange(groups, device=ids.device) * buckets
    for b in range(len(offsets) - 1):
        for start in range(offsets[b], offsets[b + 1], ROW_BLOCK):
            part = slice(start, min(start + ROW_BLOCK, offsets[b + 1]))
            matrix = like.new_zeros(part.stop - part.start, groups * buckets)
            yield b, part, matrix.scatter_(1, columns[part], 1.0)


class _BucketSum(torch.autograd.Function):
    """Sum by a product with the indicator matrix: faster than scattered additions, and it is rebuilt, not kept."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ids: Tensor, offsets: list[int], buckets: int) -> Tensor:
        table = values.new_zeros(len(offsets) - 1, ids.shape[1] * buckets, values.shape[1])
        for b, part, matrix in _indicators(ids, offsets, buckets, values):
            table[b].addmm_(matrix.T, values[part])
        ctx.save_for_backward(ids)
        ctx.offsets, ctx.buckets = offsets, buckets
        return table.view(-1, ids.shape[1], buckets, values.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_table: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        flat = d_table.flatten(1, 2)
        d_values = d_table.new_zeros(ids.shape[0], d_table.shape[-1])
        for b, part, matrix in _indicators(ids, ctx.offsets, ctx.buckets, d_table):
            torch.mm(matrix, flat[b], out=d_values[part])
        return d_values, None, None, None


def bucket_sum(values: Tensor, ids: Tensor, offsets: Tensor, buckets: int) -> Tensor:
    """Sum the values of every row by bucket, in float64: a bucket may hold thousands of terms.

    Args:
        values: (N, V) of any float type.
        ids: (N, G) int64 bucket of each behaviour in every signature.
        offsets: (B + 1,) row starts.
        buckets: K.

    Returns:
        (B, G, K, V) float64; a bucket without behaviours is zero.
    """
    table: Tensor = _BucketSum.apply(values.double(), ids, offsets.tolist(), buckets)  # type: ignore[no-untyped-call]
    return table


def weighted_bucket_sum(
    values: Tensor, weights: Tensor, ids: Tensor, place: Tensor, offsets: Tensor, buckets: int
) -> Tensor:
    """Sum the values of every row by bucket, once for each set of weights, in float64.

    Args:
        values: (N, V) float32 or float64.
        weights: (N, S) float64; no gradient flows back to them.
        ids: (U, G) int32 bucket of each distinct behaviour in every signature.
        place: (N,) int64 which of them a behaviour is.
        offsets: (B + 1,) row starts.
        buckets: K.

    Returns:
        (B, G, K, S, V) float64.
    """
    if is_usable(values):
        found: Tensor = bucket_sums(values, weights, ids, place, offsets, buckets)
        return found
    weighted = weights[:, :, None] * values.double()[:, None, :]
    table = bucket_sum(weighted.flatten(1), ids[place].long(), offsets, buckets)
    return table.view(*table.shape[:3], weights.shape[1], values.shape[1])


class BucketTerms(NamedTuple):
    """What a table is the sum of; see `weighted_bucket_sum`."""

    values: Tensor  # (N, V)
    weights: Tensor  # (N, S)
    ids: Tensor  # (U, G)
    place: Tensor  # (N,)
    offsets: Tensor  # (B + 1,)
    buckets: int  # K


def summed_or_terms(terms: BucketTerms) -> tuple[Tensor | None, BucketTerms | None]:
    """Return the (B, G, K, S, V) table and None, or None and the terms where `bucket_interest` had better sum them.

    In training the compiled form sums the few buckets that candidates ask for, and goes back from what they found to
    the values at once: a whole table is large, and its gradient nearly empty.
    """
    if torch.is_grad_enabled() and terms.values.requires_grad and is_usable(terms.values):
        return None, terms
    return weighted_bucket_sum(*terms), None


def bucket_interest(
    table: Tensor | None, ids: Tensor, offsets: Tensor, parts: Sequence[int], terms: BucketTerms | None = None
) -> Tensor:
    """Average over signatures the direction of what a candidate finds in its buckets (SDIM, section 3.2).

    Args:
        table: (B, G, K, S, V) float64 bucket sums, None with `terms`.
        ids: (Nc, G) int32 bucket of each candidate.
        offsets: (B + 1,) row starts of the candidates.
        parts: widths of the slices of V that are brought to length 1 each; empty: the sums are averaged as they are.
        terms: what the table is the sum of, from `summed_or_terms`.

    Returns:
        (Nc, S, V) float32; what is found in an empty bucket is zero.
    """
    if table is None:
        assert terms is not None, "neither a table nor its terms were given"
        return interests_of_values(*terms, ids, offsets, list(parts))
    if library() is not None and table.device.type == "cpu":
        return looked_up(table, ids, offsets, list(parts))

    def pointed(sums: Tensor) -> Tensor:
        return torch.cat([direction(part) for part in torch.split(sums, list(parts), -1)], -1) if parts else sums

    rows, groups, buckets = table.shape[:3]
    row = row_index(offsets)
    if ids.shape[0] < rows * buckets:  # fewer lookups than buckets: only what is asked for is brought to length 1
        columns = torch.arange(groups, device=ids.device)
        return pointed(table[row[:, None], columns, ids.long()]).mean(1).float()
    return bucket_mean(pointed(table).flatten(3), ids, row).view(-1, *table.shape[3:]).float()


def bucket_mean(table: Tensor, ids: Tensor, row: Tensor) -> Tensor:
    """Average what a candidate finds in its bucket of every signature.

    Args:
        table: (B, G, K, V).
        ids: (Nc, G) bucket of each candidate.
        row: (Nc,) int64 row of each candidate.

    Returns:
        (Nc, V).
    """
    rows, groups, buckets, width = table.shape
    if not rows:
        return table.new_zeros(0, width)
    flat = (row[:, None] * groups + torch.arange(groups, device=ids.device)) * buckets + ids
    return F.embedding_bag(flat, table.reshape(-1, width), mode="mean")


def direction(vectors: Tensor) -> Tensor:
    """Scale the last axis to length 1; a zero vector stays zero and gets no gradient.

    There is no epsilon: decayed sums may be as small as 1e-200 and still have a direction.
    """
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    real = largest > 0
    scaled = vectors / torch.where(real, largest, 1.0)
    length = scaled.square().sum(-1, keepdim=True).clamp(min=1.0).sqrt()
    return torch.where(real, scaled / length, 0.0)


__all__ = [
    "BucketTerms",
    "bucket_interest",
    "bucket_mean",
    "bucket_sum",
    "direction",
    "summed_or_terms",
    "weighted_bucket_sum",
]
