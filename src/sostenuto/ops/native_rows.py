"""The compiled twin of indexing rows, as a torch operator; the definition is `values[index]`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from sostenuto.native.library import RowsShape, any_library
from sostenuto.ops.checked_arrays import checked_index
from sostenuto.ops.operators import operator


def _call(name: str, rows: int, like: Tensor, *tensors: Tensor) -> None:
    shape = RowsShape(rows=rows, dim=like.shape[1], count=like.shape[0], threads=torch.get_num_threads())
    getattr(any_library().handle, name)(ctypes.byref(shape), *(t.data_ptr() for t in tensors))


def gathered(values: Tensor, index: Tensor) -> Tensor:
    """Return (M, D) rows of (R, D) float32 values at an (M,) int64 index."""
    rows = values.shape[0]
    held, places = values.contiguous(), checked_index(index, rows)
    out = values.new_empty(index.shape[0], values.shape[1])
    _call("sostenuto_gather_rows", rows, out, held, places, out)
    return out


def _fake_gathered(values: Tensor, index: Tensor) -> Tensor:
    return values.new_empty(index.shape[0], values.shape[1])


def _summed(d_out: Tensor, index: Tensor, rows: int) -> Tensor:
    """Return the (rows, D) gradient of the values, summed in the order of the index."""
    upstream, places = d_out.contiguous(), index.to(torch.int32)
    sums = upstream.new_empty(rows, upstream.shape[1])
    _call("sostenuto_sum_rows", rows, upstream, upstream, places, sums)
    return sums


def _fake_summed(d_out: Tensor, index: Tensor, rows: int) -> Tensor:
    return d_out.new_empty(rows, d_out.shape[1])


gather_backward = operator("gather_rows_backward", _summed, fake=_fake_summed)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, index = inputs
    ctx.rows = values.shape[0]
    ctx.save_for_backward(index)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    d_out = d_out.to_dense() if d_out.is_sparse else d_out  # of some rows only: nothing else used the others
    return gather_backward(d_out, index, ctx.rows), None


gather = operator("gather_rows", gathered, fake=_fake_gathered, backward=_backward, setup_context=_setup)

__all__ = ["gather", "gather_backward", "gathered"]
