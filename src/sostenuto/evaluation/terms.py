"""Ratios of sums over groups: the form that nearly every metric here has, and that the bootstrap lives on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTerms:
    """A metric that is sum(numerator) / sum(denominator) over groups; groups without a say have denominator 0."""

    group: Array  # (G,) int64, increasing
    numerator: Array  # (G,) float64
    denominator: Array  # (G,) float64

    @property
    def value(self) -> float:
        """The metric; NaN when no group has a say."""
        total = float(self.denominator.sum())
        return float(self.numerator.sum()) / total if total > 0 else float("nan")


def dense_groups(group: Array) -> tuple[Array, Array]:
    """Return the distinct groups, increasing, and each row's place among them; linear where groups come sorted.

    >>> [a.tolist() for a in dense_groups(np.array([7, 7, 9, 12]))]
    [[7, 9, 12], [0, 0, 1, 2]]
    """
    group = np.asarray(group)
    if group.size == 0:
        return group.astype(np.int64), np.zeros(0, np.int64)
    step = group[1:] != group[:-1]
    if bool((group[1:] >= group[:-1]).all()):
        codes = np.concatenate([[0], np.cumsum(step)])
        return group[np.concatenate([[True], step])].astype(np.int64), codes
    names, codes = np.unique(group, return_inverse=True)
    return names.astype(np.int64), codes.reshape(-1)


def row_terms(group: Array, numerator: Array, denominator: Array) -> GroupTerms:
    """Sum per-row numerators and denominators by group."""
    names, codes = dense_groups(group)
    return GroupTerms(
        group=names,
        numerator=np.bincount(codes, weights=numerator, minlength=len(names)),
        denominator=np.bincount(codes, weights=denominator, minlength=len(names)),
    )


__all__ = ["Array", "GroupTerms", "dense_groups", "row_terms"]
