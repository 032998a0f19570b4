"""Piecewise-linear bins of numbers times a matrix, in one step; the bins are those of `layers/quantile_bins.py`."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from sostenuto.native.library import BinsShape, any_library
from sostenuto.ops.backend import is_usable
from sostenuto.ops.operators import operator

NARROWEST = 1e-6  # a bin without width is a step just above its knot


def bin_shares(values: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """Return (N, K * B) in [0, 1]: how much of every bin lies below a number.

    Args:
        values: (N, K).
        low, width: (K, B) of the bins.
    """
    share = (values[:, :, None] - low) / width.clamp(min=NARROWEST)
    return share.clamp(0.0, 1.0).flatten(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class BinnedWeights:
    """A matrix as the product wants it."""

    low: Tensor  # (K, B), never falling inside a column
    inverse: Tensor  # (K, B) of the widths
    weight: Tensor  # (K, B, H)
    sums: Tensor  # (K, B, H) running sums of `weight` over bins
    bias: Tensor  # (H,)


def binned_weights(low: Tensor, width: Tensor, weight: Tensor, bias: Tensor) -> BinnedWeights | None:
    """Return what `binned_product` takes, None where a bin begins or ends before the one below it.

    Args:
        low, width: (K, B) of the bins, K and B at least 1.
        weight: (K * B, H).
        bias: (H,).
    """
    high = low + width.clamp(min=NARROWEST)
    slack = 1e-6 * high.abs()  # the width of a bin is a rounded difference
    rise = (low.diff(dim=1) >= 0).all() & (high.diff(dim=1) >= -slack[:, 1:]).all()
    if not bool(rise & low.isfinite().all() & high.isfinite().all()):
        return None
    by_bin = weight.reshape(*low.shape, -1).contiguous()
    return BinnedWeights(
        low=low.contiguous(),
        inverse=(1.0 / width.clamp(min=NARROWEST)).contiguous(),
        weight=by_bin,
        sums=by_bin.double().cumsum(1).to(by_bin.dtype),
        bias=bias.contiguous(),
    )


def binned_product(values: Tensor, weights: BinnedWeights) -> Tensor:
    """Return (N, H): the shares of (N, K) numbers times the matrix, and the bias; no gradient."""
    values, held = values.contiguous(), (weights.low, weights.inverse, weights.weight, weights.sums, weights.bias)
    if is_usable(values, *held):
        found: Tensor = _native(values, *held)
        return found
    _check(values, *held)
    shares = ((values[:, :, None] - weights.low) * weights.inverse).clamp(0.0, 1.0).flatten(1)
    return torch.addmm(weights.bias, shares, weights.weight.flatten(0, 1))


def _check(values: Tensor, low: Tensor, inverse: Tensor, weight: Tensor, sums: Tensor, bias: Tensor) -> None:
    columns, bins, units = weight.shape
    if not (
        values.shape[1:] == (columns,)
        and low.shape == inverse.shape == (columns, bins)
        and sums.shape == weight.shape
        and bias.shape == (units,)
    ):
        raise ValueError(
            f"values must be (N, {columns}) and weights of ({columns}, {bins}, {units}), got {tuple(values.shape)} and "
            f"{tuple(low.shape)}, {tuple(sums.shape)}, {tuple(bias.shape)}; take them from binned_weights"
        )


def _product(values: Tensor, low: Tensor, inverse: Tensor, weight: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
    _check(values, low, inverse, weight, sums, bias)
    columns, bins, units = weight.shape
    out = values.new_empty(values.shape[0], units)
    shape = BinsShape(rows=values.shape[0], columns=columns, bins=bins, units=units, threads=torch.get_num_threads())
    given = (values, low, inverse, weight, sums, bias, out)
    any_library().handle.sostenuto_binned_product(ctypes.byref(shape), *(t.data_ptr() for t in given))
    return out


def _fake_product(values: Tensor, low: Tensor, inverse: Tensor, weight: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
    return values.new_empty(values.shape[0], weight.shape[2])


_native = operator("binned_product", _product, fake=_fake_product)

__all__ = ["BinnedWeights", "bin_shares", "binned_product", "binned_weights"]
