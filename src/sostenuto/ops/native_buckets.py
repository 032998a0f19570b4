"""Compiled twins of hashing, bucket sums and bucket interests, as torch operators.

The definitions are the plain forms in `simhash` and `bucket_sum`.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sostenuto.native.library import BucketShape, HashShape, InterestShape, any_library
from sostenuto.ops.checked_arrays import checked_index, checked_offsets
from sostenuto.ops.operators import operator


def _call(name: str, shape: ctypes.Structure, *tensors: Tensor) -> None:
    getattr(any_library().handle, f"sostenuto_{name}")(ctypes.byref(shape), *(t.data_ptr() for t in tensors))


def _hash_rows(vectors: Tensor, planes: Tensor) -> Tensor:
    """Return (N, G) int32 bucket ids of (N, D) float32 vectors by (D, G, tau) planes."""
    vectors = vectors.contiguous()
    dim, groups, bits = planes.shape
    ids = vectors.new_empty(vectors.shape[0], groups, dtype=torch.int32)
    shape = HashShape(rows=vectors.shape[0], dim=dim, groups=groups, bits=bits, threads=torch.get_num_threads())
    _call("hash_rows", shape, vectors, planes.double().contiguous(), ids)
    return ids


def _fake_hash_rows(vectors: Tensor, planes: Tensor) -> Tensor:
    return vectors.new_empty(vectors.shape[0], planes.shape[1], dtype=torch.int32)


hash_rows = operator("hash_rows", _hash_rows, fake=_fake_hash_rows)


def _bucket_shape(weights: Tensor, ids: Tensor, offsets: Tensor, buckets: int, width: int) -> BucketShape:
    return BucketShape(
        rows=offsets.shape[0] - 1,
        groups=ids.shape[1],
        buckets=buckets,
        sets=weights.shape[1],
        width=width,
        threads=torch.get_num_threads(),
        offsets=offsets.data_ptr(),
    )


def _empty_table(values: Tensor, weights: Tensor, ids: Tensor, offsets: Tensor, buckets: int) -> Tensor:
    """Return room for (B, G, K, S, V) float64 sums."""
    return weights.new_empty(offsets.shape[0] - 1, ids.shape[1], buckets, weights.shape[1], values.shape[1])


def _bucket_sums(values: Tensor, weights: Tensor, ids: Tensor, place: Tensor, offsets: Tensor, buckets: int) -> Tensor:
    """Return (B, G, K, S, V) float64 sums.

    Args:
        values: (N, V) float32.
        weights: (N, S) float64.
        ids: (U, G) int32 in [0, K).
        place: (N,) int64 in [0, U).
        offsets: (B + 1,).
        buckets: K.
    """
    offsets = checked_offsets(offsets, values.shape[0])
    ids, place = checked_index(ids, buckets, "ids", torch.int32), checked_index(place, ids.shape[0], "place")
    shape = _bucket_shape(weights, ids, offsets, buckets, values.shape[1])
    table = _empty_table(values, weights, ids, offsets, buckets)
    _call("bucket_sums", shape, values.contiguous(), weights.contiguous(), place, ids, table)
    return table


def _fake_bucket_sums(
    values: Tensor, weights: Tensor, ids: Tensor, place: Tensor, offsets: Tensor, buckets: int
) -> Tensor:
    return _empty_table(values, weights, ids, offsets, buckets)


def _sums_to_values(d_table: Tensor, weights: Tensor, ids: Tensor, place: Tensor, offsets: Tensor) -> Tensor:
    """Return the (N, V) float32 gradient of the values."""
    offsets, width = offsets.contiguous(), d_table.shape[-1]
    d_values = d_table.new_empty(place.shape[0], width, dtype=torch.float32)
    shape = _bucket_shape(weights, ids, offsets, d_table.shape[2], width)
    upstream = d_table.contiguous()
    _call(
        "bucket_sums_backward",
        shape,
        weights.contiguous(),
        place.contiguous(),
        ids.contiguous(),
        upstream,
        d_values,
    )
    return d_values


def _fake_sums_to_values(d_table: Tensor, weights: Tensor, ids: Tensor, place: Tensor, offsets: Tensor) -> Tensor:
    return d_table.new_empty(place.shape[0], d_table.shape[-1], dtype=torch.float32)


bucket_sums_backward = operator("bucket_sums_backward", _sums_to_values, fake=_fake_sums_to_values)


def _setup_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weights, ids, place, offsets, _ = inputs
    ctx.save_for_backward(weights, ids, place, offsets)


def _sums_backward(ctx: Any, d_table: Tensor) -> tuple[Tensor | None, ...]:
    return bucket_sums_backward(d_table, *ctx.saved_tensors), None, None, None, None, None


bucket_sums = operator(
    "bucket_sums", _bucket_sums, fake=_fake_bucket_sums, backward=_sums_backward, setup_context=_setup_sums
)


def _interest_shape(table: Tensor, offsets: Tensor, ends: Tensor) -> InterestShape:
    rows, groups, buckets, sets, width = table.shape
    return InterestShape(
        rows=rows,
        groups=groups,
        buckets=buckets,
        sets=sets,
        width=width,
        parts=ends.shape[0],
        threads=torch.get_num_threads(),
        offsets=offsets.data_ptr(),
        part_ends=ends.data_ptr(),
    )


def _ends(parts: Sequence[int], width: int) -> Tensor:
    return _ends_of(tuple(parts), width)


@functools.cache  # a request of a few hundred candidates would notice
def _ends_of(parts: tuple[int, ...], width: int) -> Tensor:
    if parts and sum(parts) != width:
        raise ValueError(f"parts must add up to the width {width}, got {list(parts)}; give the widths of all parts")
    return torch.tensor(list(itertools.accumulate(parts)), dtype=torch.int64)


def _interests(table: Tensor, ids: Tensor, offsets: Tensor, parts: list[int]) -> Tensor:
    """Return (Nc, S, V) float32: what (Nc, G) int32 ids find in a (B, G, K, S, V) float64 table, averaged over G.

    Args:
        table: bucket sums.
        ids: bucket of every candidate.
        offsets: (B + 1,) row starts of the candidates.
        parts: widths of the slices of V that are brought to length 1 each; empty: sums are taken as they are.
    """
    offsets = checked_offsets(offsets, ids.shape[0])
    table, ids, ends = (
        table.contiguous(),
        checked_index(ids, table.shape[2], "ids", torch.int32),
        _ends(parts, table.shape[4]),
    )
    out = table.new_empty(ids.shape[0], table.shape[3], table.shape[4], dtype=torch.float32)
    _call("interests", _interest_shape(table, offsets, ends), table, ids, out)
    return out


def _fake_interests(table: Tensor, ids: Tensor, offsets: Tensor, parts: list[int]) -> Tensor:
    return table.new_empty(ids.shape[0], table.shape[3], table.shape[4], dtype=torch.float32)


def _interests_to_table(d_out: Tensor, table: Tensor, ids: Tensor, offsets: Tensor, parts: list[int]) -> Tensor:
    """Return the gradient of the table."""
    offsets, table, ids = offsets.contiguous(), table.contiguous(), ids.contiguous()
    ends, upstream = _ends(parts, table.shape[4]), d_out.contiguous()
    d_table = torch.empty_like(table)
    _call("interests_backward", _interest_shape(table, offsets, ends), table, ids, upstream, d_table)
    return d_table


def _fake_interests_to_table(d_out: Tensor, table: Tensor, ids: Tensor, offsets: Tensor, parts: list[int]) -> Tensor:
    return torch.empty_like(table)


interests_backward = operator("interests_backward", _interests_to_table, fake=_fake_interests_to_table)


def _setup_interests(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, ids, offsets, ctx.parts = inputs
    ctx.save_for_backward(table, ids, offsets)


def _interests_backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return interests_backward(d_out, *ctx.saved_tensors, ctx.parts), None, None, None


interests = operator(
    "interests", _interests, fake=_fake_interests, backward=_interests_backward, setup_context=_setup_interests
)


def _asked_sums(
    values: Tensor,
    weights: Tensor,
    ids: Tensor,
    place: Tensor,
    offsets: Tensor,
    buckets: int,
    query_ids: Tensor,
    query_offsets: Tensor,
) -> Tensor:
    """Return the table of `bucket_sums` of which only the buckets of (Nc, G) candidates are sure to be written."""
    offsets, query_offsets = checked_offsets(offsets, values.shape[0]), checked_offsets(query_offsets, len(query_ids))
    ids, place = checked_index(ids, buckets, "ids", torch.int32), checked_index(place, ids.shape[0], "place")
    query_ids = checked_index(query_ids, buckets, "query_ids", torch.int32)
    if query_offsets.shape != offsets.shape:
        raise ValueError(
            f"candidates must have the {offsets.shape[0] - 1} rows of the behaviours, "
            f"got {query_offsets.shape[0] - 1}; give every row an offset, also those without candidates"
        )
    table = _empty_table(values, weights, ids, offsets, buckets)
    held = [t.contiguous() for t in (values, weights, place, ids, query_ids)]
    any_library().handle.sostenuto_asked_sums(
        ctypes.byref(_interest_shape(table, query_offsets, _ends([], 0))),
        ctypes.byref(_bucket_shape(weights, ids, offsets, buckets, values.shape[1])),
        *(t.data_ptr() for t in held),
        table.data_ptr(),
    )
    return table


def _fake_asked_sums(
    values: Tensor,
    weights: Tensor,
    ids: Tensor,
    place: Tensor,
    offsets: Tensor,
    buckets: int,
    query_ids: Tensor,
    query_offsets: Tensor,
) -> Tensor:
    return _empty_table(values, weights, ids, offsets, buckets)


asked_sums = operator("asked_sums", _asked_sums, fake=_fake_asked_sums)


class _InterestsOfValues(torch.autograd.Function):
    """See `interests_of_values`."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weights: Tensor,
        ids: Tensor,
        place: Tensor,
        offsets: Tensor,
        buckets: int,
        query_ids: Tensor,
        query_offsets: Tensor,
        parts: list[int],
    ) -> Tensor:
        ctx.parts = parts
        table = asked_sums(values, weights, ids, place, offsets, buckets, query_ids, query_offsets)
        ctx.save_for_backward(weights, ids, place, offsets, table, query_ids, query_offsets)
        found: Tensor = interests(table, query_ids, query_offsets, parts)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        weights, ids, place, offsets, table, query_ids, query_offsets = ctx.saved_tensors
        width = table.shape[4]
        ends, starts, query_starts = _ends(ctx.parts, width), offsets.contiguous(), query_offsets.contiguous()
        d_values = d_out.new_empty(place.shape[0], width)
        held = [t.contiguous() for t in (table, query_ids, d_out, weights, place, ids)]
        any_library().handle.sostenuto_interests_to_values(
            ctypes.byref(_interest_shape(table, query_starts, ends)),
            ctypes.byref(_bucket_shape(weights, ids, starts, table.shape[2], width)),
            *(t.data_ptr() for t in held),
            d_values.data_ptr(),
        )
        return d_values, None, None, None, None, None, None, None, None


def interests_of_values(
    values: Tensor,
    weights: Tensor,
    ids: Tensor,
    place: Tensor,
    offsets: Tensor,
    buckets: int,
    query_ids: Tensor,
    query_offsets: Tensor,
    parts: list[int],
) -> Tensor:
    """Return the `interests` of candidates in the buckets of some values, with the gradient of the values.

    The same as `bucket_sums` and `interests` one after the other, but only the buckets that candidates ask for are
    summed, and the table's gradient, as large as the table, is never made.
    """
    found: Tensor = _InterestsOfValues.apply(  # type: ignore[no-untyped-call]
        values, weights, ids, place, offsets, buckets, query_ids, query_offsets, parts
    )
    return found


def hashed(vectors: Tensor, planes: Tensor) -> Tensor:
    """Return what `hash_rows` returns: the operator where torch looks on, a direct call elsewhere, which costs less."""
    found: Tensor = hash_rows(vectors, planes) if torch.compiler.is_compiling() else _hash_rows(vectors, planes)
    return found


def looked_up(table: Tensor, ids: Tensor, offsets: Tensor, parts: list[int]) -> Tensor:
    """Return what `interests` returns, called directly where nobody looks on and no gradient is wanted."""
    watched = torch.compiler.is_compiling() or (torch.is_grad_enabled() and table.requires_grad)
    found: Tensor = (interests if watched else _interests)(table, ids, offsets, parts)
    return found


__all__ = [
    "asked_sums",
    "bucket_sums",
    "bucket_sums_backward",
    "hash_rows",
    "hashed",
    "interests",
    "interests_backward",
    "interests_of_values",
    "looked_up",
]
