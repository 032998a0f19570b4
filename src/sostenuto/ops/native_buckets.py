"""The compiled twin of `weighted_bucket_sum`, as a torch operator; the definition is the plain form in `bucket_sum`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from sostenuto.native.library import BucketShape, any_library


def _shape(weights: Tensor, ids: Tensor, offsets: Tensor, buckets: int, width: int) -> BucketShape:
    return BucketShape(
        rows=offsets.shape[0] - 1,
        groups=ids.shape[1],
        buckets=buckets,
        sets=weights.shape[1],
        width=width,
        threads=torch.get_num_threads(),
        offsets=offsets.data_ptr(),
    )


def _call(name: str, shape: BucketShape, *tensors: Tensor) -> None:
    getattr(any_library().handle, name)(ctypes.byref(shape), *(t.data_ptr() for t in tensors))


@torch.library.custom_op("sostenuto::bucket_sums", mutates_args=())
def bucket_sums(values: Tensor, weights: Tensor, ids: Tensor, offsets: Tensor, buckets: int) -> Tensor:
    """Return (B, G, K, S, V) float64 for (N, V) float32 values, (N, S) float64 weights and (N, G) ids in [0, K)."""
    rows = values.shape[0]
    offsets = offsets.contiguous()
    if int(offsets[0]) != 0 or int(offsets[-1]) != rows or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets must rise from 0 to {rows}, got {offsets.tolist()[:5]}...; make them with cumsum")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < buckets:
        raise ValueError(f"ids must be in [0, {buckets}), got {int(ids.min())} to {int(ids.max())}; hash them anew")
    shape = _shape(weights, ids, offsets, buckets, values.shape[1])
    table = weights.new_empty(offsets.shape[0] - 1, ids.shape[1], buckets, weights.shape[1], values.shape[1])
    _call("sostenuto_bucket_sums", shape, values.contiguous(), weights.contiguous(), ids.contiguous(), table)
    return table


@bucket_sums.register_fake
def _(values: Tensor, weights: Tensor, ids: Tensor, offsets: Tensor, buckets: int) -> Tensor:
    return weights.new_empty(offsets.shape[0] - 1, ids.shape[1], buckets, weights.shape[1], values.shape[1])


@torch.library.custom_op("sostenuto::bucket_sums_backward", mutates_args=())
def bucket_sums_backward(d_table: Tensor, weights: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    """Return the (N, V) float32 gradient of the values."""
    offsets, width = offsets.contiguous(), d_table.shape[-1]
    d_values = d_table.new_empty(ids.shape[0], width, dtype=torch.float32)
    shape = _shape(weights, ids, offsets, d_table.shape[2], width)
    upstream = d_table.contiguous()
    _call("sostenuto_bucket_sums_backward", shape, weights.contiguous(), ids.contiguous(), upstream, d_values)
    return d_values


@bucket_sums_backward.register_fake
def _(d_table: Tensor, weights: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    return d_table.new_empty(ids.shape[0], d_table.shape[-1], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weights, ids, offsets, _ = inputs
    ctx.save_for_backward(weights, ids, offsets)


def _backward(ctx: Any, d_table: Tensor) -> tuple[Tensor | None, ...]:
    return bucket_sums_backward(d_table, *ctx.saved_tensors), None, None, None, None


bucket_sums.register_autograd(_backward, setup_context=_setup)

__all__ = ["bucket_sums", "bucket_sums_backward"]
