"""Products of chosen pairs of a candidate and a behaviour, in float64: what is compared, tied or counted in tiers.

The plain form gathers the vectors of both sides, so many pairs at once; the compiled twin reads them where they are.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from sostenuto.native.library import RowsShape, any_library
from sostenuto.ops.backend import is_usable
from sostenuto.ops.checked_arrays import check_shape, checked_index
from sostenuto.ops.operators import operator

PAIRS_AT_ONCE = 1 << 18


class PairProducts(NamedTuple):
    """Of M pairs."""

    product: Tensor  # (M,) float64
    magnitude: Tensor  # (M,) float64 the sum of the absolute values of what is added up; (0,) where not asked for


@torch.no_grad()
def pair_products(
    query: Tensor, key: Tensor, candidate: Tensor, behaviour: Tensor, *, with_magnitude: bool = False
) -> PairProducts:
    """Multiply M pairs of rows; one pair has one product wherever it stands, and no gradient flows back.

    Args:
        query: (Nc, D) float32.
        key: (N, D) float32.
        candidate: (M,) int64 rows of `query`.
        behaviour: (M,) int64 rows of `key`.
        with_magnitude: whether the sums of absolute values are made, too.

    Raises:
        IndexError: a row that is not there.
        ValueError: vectors of two widths, or not as many candidates as behaviours.
    """
    check_shape("key", key, (key.shape[0], query.shape[1]))
    check_shape("behaviour", behaviour, tuple(candidate.shape))
    if is_usable(query, key):
        return PairProducts(*_twin(query.detach(), key.detach(), candidate, behaviour, with_magnitude))
    product = query.new_empty(candidate.shape[0], dtype=torch.float64)
    magnitude = torch.empty_like(product[: candidate.shape[0] if with_magnitude else 0])
    for start in range(0, candidate.shape[0], PAIRS_AT_ONCE):  # bounds what is gathered at once
        some = slice(start, start + PAIRS_AT_ONCE)
        both = query[candidate[some]].double() * key[behaviour[some]].double()
        product[some] = both.sum(1)
        if with_magnitude:
            magnitude[some] = both.abs().sum(1)
    return PairProducts(product, magnitude)


def _multiplied(
    query: Tensor, key: Tensor, candidate: Tensor, behaviour: Tensor, with_magnitude: bool
) -> tuple[Tensor, Tensor]:
    count = candidate.shape[0]
    product = query.new_empty(count, dtype=torch.float64)
    magnitude = torch.empty_like(product[: count if with_magnitude else 0])
    shape = RowsShape(rows=key.shape[0], dim=key.shape[1], count=count, threads=torch.get_num_threads())
    rows = (checked_index(candidate, len(query), "candidate"), checked_index(behaviour, len(key), "behaviour"))
    held = (query.contiguous(), key.contiguous(), *rows)
    any_library().handle.sostenuto_pair_products(
        ctypes.byref(shape),
        *(tensor.data_ptr() for tensor in held),
        product.data_ptr(),
        magnitude.data_ptr() if with_magnitude else None,
    )
    return product, magnitude


def _fake_multiplied(
    query: Tensor, key: Tensor, candidate: Tensor, behaviour: Tensor, with_magnitude: bool
) -> tuple[Tensor, Tensor]:
    product = query.new_empty(candidate.shape[0], dtype=torch.float64)
    return product, torch.empty_like(product[: candidate.shape[0] if with_magnitude else 0])


_twin = operator("pair_products", _multiplied, fake=_fake_multiplied)

__all__ = ["PairProducts", "pair_products"]
