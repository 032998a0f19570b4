"""Looking rows up: of tables, with a gradient that holds the touched rows only, and of what was made once per item.

The plain form embeds every distinct row once and spreads the result. The compiled twin gathers straight from the table
and sums the gradient per distinct row, in the order of the indices, so both are the same at any number of threads.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sostenuto.native.library import Library, RowsShape, library


def lookup_rows(table: Tensor, index: Tensor, padding: int) -> Tensor:
    """Return (..., D) rows of a (R, D) table for (...) int64 indices.

    The gradient of the table is a sparse tensor over the rows that were looked up; row `padding` gets none.
    """
    twins = library()
    if twins is not None and table.device.type == "cpu" and table.dtype == torch.float32 and index.numel():
        found: Tensor = _Lookup.apply(table, index, padding, twins)  # type: ignore[no-untyped-call]
        return found
    if not torch.is_grad_enabled():
        return F.embedding(index, table)
    distinct, inverse = torch.unique(index, return_inverse=True)
    rows = F.embedding(distinct, table, padding_idx=padding, sparse=True)
    return F.embedding(inverse, rows)


class Distinct(NamedTuple):
    """The distinct values of an index, in rising order."""

    first: Tensor  # (U,) int64 a position at which each stands
    place: Tensor  # (N,) int64 which of them stands at each position


def distinct_values(index: Tensor, limit: int) -> Distinct:
    """Find the distinct values of (N,) int64 numbers in [0, limit)."""
    twins = library()
    if twins is not None and index.device.type == "cpu" and index.numel():
        index = index.contiguous()
        _check_range(index, limit)
        values, place = torch.empty_like(index), index.new_empty(index.shape[0], dtype=torch.int32)
        count = _call(twins, "distinct_rows", limit, index[:, None], index, values, place)
        where = place.long()
    else:
        values, where = torch.unique(index, return_inverse=True)
        count = values.shape[0]
    first = index.new_empty(count)
    first[where] = torch.arange(index.shape[0], device=index.device)
    return Distinct(first, where)


def spread_rows(values: Tensor, place: Tensor) -> Tensor:
    """Return (N, D) rows of (U, D) values for (N,) int64 places in [0, U); the gradient is dense."""
    twins = library()
    if twins is not None and values.device.type == "cpu" and values.dtype == torch.float32 and place.numel():
        found: Tensor = _Spread.apply(values, place, twins)  # type: ignore[no-untyped-call]
        return found
    return F.embedding(place, values)


class _Spread(torch.autograd.Function):
    """The compiled twin."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, place: Tensor, twins: Library) -> Tensor:
        place = place.contiguous()
        _check_range(place, values.shape[0])
        out = values.new_empty(place.shape[0], values.shape[1])
        held = values.contiguous()
        _call(twins, "gather_rows", values.shape[0], out, held, place, out)
        ctx.save_for_backward(place)
        ctx.rows, ctx.twins = values.shape[0], twins
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        held = d_out.contiguous()
        sums = held.new_empty(ctx.rows, held.shape[1])
        _call(ctx.twins, "sum_rows", ctx.rows, held, held, place.int(), sums)
        return sums, None, None


def _check_range(index: Tensor, limit: int) -> None:
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high >= limit:
        raise IndexError(f"index must be in [0, {limit}), got {low} to {high}; check the vocabulary")


class _Lookup(torch.autograd.Function):
    """The compiled twin."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, padding: int, twins: Library) -> Tensor:
        flat = index.reshape(-1).contiguous()
        _check_range(flat, table.shape[0])
        out = table.new_empty(flat.shape[0], table.shape[1])
        held = table.contiguous()
        _call(twins, "gather_rows", table.shape[0], out, held, flat, out)
        ctx.save_for_backward(flat)
        ctx.rows, ctx.padding, ctx.twins = table.shape[0], padding, twins
        return out.view(*index.shape, table.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, None, None, None]:
        (flat,) = ctx.saved_tensors
        dim = d_out.shape[-1]
        values = d_out.reshape(-1, dim).contiguous()
        distinct = torch.empty_like(flat)
        place = flat.new_empty(flat.shape[0], dtype=torch.int32)
        count = _call(ctx.twins, "distinct_rows", ctx.rows, values, flat, distinct, place)
        sums = values.new_empty(count, dim)
        _call(ctx.twins, "sum_rows", count, values, values, place, sums)
        rows = distinct[:count]
        kept = rows != ctx.padding
        if not bool(kept.all()):
            rows, sums = rows[kept], sums[kept]
        gradient = torch.sparse_coo_tensor(rows[None], sums, (ctx.rows, dim), check_invariants=False, is_coalesced=True)
        return gradient, None, None, None


def _call(twins: Library, name: str, rows: int, like: Tensor, *tensors: Tensor) -> int:
    shape = RowsShape(rows=rows, dim=like.shape[1], count=like.shape[0], threads=torch.get_num_threads())
    entry = getattr(twins.handle, f"sostenuto_{name}")
    return int(entry(ctypes.byref(shape), *(t.data_ptr() for t in tensors)) or 0)


__all__ = ["Distinct", "distinct_values", "lookup_rows", "spread_rows"]
