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

from sostenuto.native.library import Library, RowsShape
from sostenuto.ops.backend import is_usable, library
from sostenuto.ops.checked_arrays import checked_index
from sostenuto.ops.native_rows import gather, gathered

FEW = 4_096  # rows that torch's own lookup gives as soon: it costs less to call
STAMPS_AT_MOST = 1 << 26  # numbers of 4 bytes that tell distinct values apart; beyond it they are sorted


def lookup_rows(table: Tensor, index: Tensor, padding: int) -> Tensor:
    """Return (..., D) rows of a (R, D) table for (...) int64 indices.

    The gradient of the table is a sparse tensor over the rows that were looked up; row `padding` gets none.
    """
    twins, learns = library(), torch.is_grad_enabled() and table.requires_grad
    if twins is not None and is_usable(table) and index.numel() > (0 if learns else FEW):
        if not learns:
            return gathered(table, index.reshape(-1)).view(*index.shape, table.shape[1])
        found: Tensor = _Lookup.apply(table, index, padding, twins)  # type: ignore[no-untyped-call]
        return found
    if not learns:
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
    if twins is not None and index.device.type == "cpu" and index.numel() and limit <= STAMPS_AT_MOST:
        index = checked_index(index, limit)
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
    """Return (N, D) rows of (U, D) values for (N,) int64 places in [0, U); the gradient is dense.

    For what a batch has made: keys of distinct items, or behaviours that a search has found. Most of it is met, so a
    gradient of the touched rows alone would save nothing, and layers behind the values could not take it.
    """
    if is_usable(values) and place.numel():
        found: Tensor = gather(values, place)
        return found
    return F.embedding(place, values)


def few_rows(values: Tensor, place: Tensor) -> Tensor:
    """Return (M, D) rows of (N, D) values at (M,) rising places, for values of which most rows are used elsewhere.

    The gradient holds the taken rows only: torch adds it to the dense one of the other use, in place, instead of
    making (N, D) zeros for it. `spread_rows` takes it too, should there be no other.
    """
    learns = torch.is_grad_enabled() and values.requires_grad
    if not learns or not is_usable(values) or torch.compiler.is_compiling():
        return spread_rows(values, place)
    found: Tensor = _Few.apply(values, place)  # type: ignore[no-untyped-call]
    return found


class _Few(torch.autograd.Function):
    """See `few_rows`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.rows = values.shape[0]
        return gathered(values, place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        return _sparse(place, d_out, ctx.rows), None


class _Lookup(torch.autograd.Function):
    """The compiled twin."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, padding: int, twins: Library) -> Tensor:
        flat = index.reshape(-1).contiguous()
        out = gathered(table, flat)
        ctx.save_for_backward(flat)
        ctx.rows, ctx.padding, ctx.twins = table.shape[0], padding, twins
        return out.view(*index.shape, table.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, None, None, None]:
        (flat,) = ctx.saved_tensors
        rows, sums = _sum_compiled(ctx.twins, ctx.rows, flat, d_out.reshape(-1, d_out.shape[-1]).contiguous())
        kept = rows != ctx.padding
        if not bool(kept.all()):
            rows, sums = rows[kept], sums[kept]
        return _sparse(rows, sums, ctx.rows), None, None, None


def sum_repeated_rows(gradient: Tensor) -> Tensor:
    """Return a sparse (R, D) gradient with each row once, rows rising; the given one where that holds already.

    The compiled twin sums in the order the rows were given, so any number of threads gives the same bits.
    """
    if gradient.is_coalesced():
        return gradient
    row, values = gradient._indices()[0], gradient._values()
    if bool((row[1:] > row[:-1]).all()):  # autograd drops the mark that we set, and merges what rises so that it rises
        return _sparse(row, values, gradient.shape[0])
    twins = library()
    if twins is None or not is_usable(values):
        return gradient.coalesce()
    row = checked_index(row, gradient.shape[0], "row")
    return _sparse(*_sum_compiled(twins, gradient.shape[0], row, values.contiguous()), gradient.shape[0])


def _sum_compiled(twins: Library, num_rows: int, row: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    distinct = torch.empty_like(row)
    place = row.new_empty(row.shape[0], dtype=torch.int32)
    count = _call(twins, "distinct_rows", num_rows, values, row, distinct, place)
    sums = values.new_empty(count, values.shape[1])
    _call(twins, "sum_rows", count, values, values, place, sums)
    return distinct[:count], sums


def _sparse(row: Tensor, values: Tensor, num_rows: int) -> Tensor:
    shape = (num_rows, values.shape[1])
    if values.stride() != (shape[1], 1):
        # a single row cut from a wider matrix counts as contiguous, and torch's sum into a dense gradient would add as
        # many numbers as its stride says: beyond the row, and beyond the memory
        values = values.clone(memory_format=torch.contiguous_format)
    return torch.sparse_coo_tensor(row[None], values, shape, check_invariants=False, is_coalesced=True)


def _call(twins: Library, name: str, rows: int, like: Tensor, *tensors: Tensor) -> int:
    shape = RowsShape(rows=rows, dim=like.shape[1], count=like.shape[0], threads=torch.get_num_threads())
    entry = getattr(twins.handle, f"sostenuto_{name}")
    return int(entry(ctypes.byref(shape), *(t.data_ptr() for t in tensors)) or 0)


__all__ = ["Distinct", "distinct_values", "few_rows", "lookup_rows", "spread_rows", "sum_repeated_rows"]
