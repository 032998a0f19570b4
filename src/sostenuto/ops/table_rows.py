"""Looking rows of a table up, with a gradient that holds the touched rows only.

The plain form embeds every distinct row once and spreads the result. The compiled twin gathers straight from the table
and sums the gradient per distinct row, in the order of the indices, so both are the same at any number of threads.
"""

from __future__ import annotations

import ctypes
from typing import Any

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


class _Lookup(torch.autograd.Function):
    """The compiled twin."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, padding: int, twins: Library) -> Tensor:
        flat = index.reshape(-1).contiguous()
        low, high = flat.aminmax()
        if int(low) < 0 or int(high) >= table.shape[0]:
            raise IndexError(
                f"index must be in [0, {table.shape[0]}), got {int(low)} to {int(high)}; check the vocabulary"
            )
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


__all__ = ["lookup_rows"]
