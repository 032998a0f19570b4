"""Drawing by hash: equal numbers share a draw, and nothing is made for numbers that are not asked about."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_SEED = 2**62  # seeds are below it
_BITS = 31  # of a draw: shares are met to 5e-10
_ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # multipliers of splitmix64 (Steele 2014)


def drawn_bits(number: Tensor, seed: Tensor) -> Tensor:
    """Return for each int64 number, of any shape, 64 random bits as an int64; equal numbers have equal bits.

    Different numbers, and seeds, have independent ones for practical purposes.

    Args:
        seed: (1,) int64 in [0, MAX_SEED), of a generator.
    """
    mixed = (number + seed) * _ODD[0]  # wraps round
    for shift, odd in ((30, _ODD[1]), (27, _ODD[2])):
        mixed = (mixed ^ _shifted(mixed, shift)) * odd
    return mixed ^ _shifted(mixed, 31)


def drawn_per_number(number: Tensor, share: float, seed: Tensor) -> Tensor:
    """Return for each of (N,) int64 numbers whether it is drawn, with probability `share`; the work follows N.

    Args:
        seed: as for `drawn_bits`; equal numbers under one seed are drawn together.
    """
    return torch.lt(_shifted(drawn_bits(number, seed), 64 - _BITS), share * 2**_BITS)


def _shifted(number: Tensor, by: int) -> Tensor:
    return torch.bitwise_and(number >> by, 2 ** (64 - by) - 1)  # the sign must not come down with it


__all__ = ["MAX_SEED", "drawn_bits", "drawn_per_number"]
