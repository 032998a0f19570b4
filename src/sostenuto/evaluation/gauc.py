"""Grouped AUC: the AUC inside each group, averaged with named weights.

Libraries mean different things by this name, and the differences exceed most claimed gains. Here a GAUC always says:

* group:   whatever the caller passes (the headline groups by request and candidate list);
* weight:  `exposures` (rows of the group, the default), `uniform`, `positives`, or `pairs` (positives x negatives);
* ties:    half a win, which is the AUC by average ranks;
* one-class groups: no AUC exists; they are dropped, weight and all, and the number dropped is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sostenuto.evaluation.score_counts import ScoreCounts, count_scores, merge_counts, sum_by_group
from sostenuto.evaluation.terms import Array, GroupTerms
from sostenuto.schema.errors import SpecError, did_you_mean

Weight = Literal["exposures", "uniform", "positives", "pairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GAUC:
    """A grouped AUC with what it stands on. `value` is NaN when every group is of one class."""

    value: float
    weight: Weight
    groups: int  # groups of both classes: those that count
    dropped_groups: int  # groups of one class
    dropped_exposures: int  # rows in them

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPairs:
    """Positive-negative pairs of each group, and how many the scores put right."""

    group: Array  # (G,) int64
    positives: Array  # (G,) int64
    negatives: Array  # (G,) int64
    wins: Array  # (G,) float64 pairs with the positive above; a tie is half


def count_pairs(state: ScoreCounts) -> GroupPairs:
    """Count won pairs by group, exactly (integers until the last halving)."""
    starts = state.starts
    below = np.cumsum(state.negatives) - state.negatives
    if len(starts):
        sizes = np.diff(starts, append=len(state.group))
        below = below - np.repeat(below[starts], sizes)
    doubled = state.positives * (2 * below + state.negatives)
    return GroupPairs(
        group=state.groups,
        positives=sum_by_group(state, state.positives),
        negatives=sum_by_group(state, state.negatives),
        wins=sum_by_group(state, doubled) / 2.0,
    )


state = count_scores
merge = merge_counts


def terms(state: ScoreCounts, weight: Weight = "exposures") -> GroupTerms:
    """Return the GAUC as a ratio of sums: weight x AUC over weight, 0 over 0 for one-class groups."""
    if weight not in get_args(Weight):
        known = get_args(Weight)
        raise SpecError(f"weight must be one of {', '.join(known)}, got {weight!r}.{did_you_mean(weight, known)}")
    pairs = count_pairs(state)
    both = (pairs.positives > 0) & (pairs.negatives > 0)
    product = pairs.positives.astype(np.float64) * pairs.negatives
    auc = pairs.wins / np.where(both, product, 1.0)
    weights = {
        "exposures": (pairs.positives + pairs.negatives).astype(np.float64),
        "uniform": np.ones(len(both)),
        "positives": pairs.positives.astype(np.float64),
        "pairs": product,
    }[weight] * both
    return GroupTerms(group=pairs.group, numerator=weights * auc, denominator=weights)


def value(state: ScoreCounts, weight: Weight = "exposures") -> GAUC:
    """Return the grouped AUC of a state."""
    ratio = terms(state, weight)
    kept = ratio.denominator > 0
    rows = sum_by_group(state, state.positives + state.negatives)
    return GAUC(
        value=ratio.value,
        weight=weight,
        groups=int(kept.sum()),
        dropped_groups=int((~kept).sum()),
        dropped_exposures=int(rows[~kept].sum()),
    )


def gauc(labels: Array, scores: Array, group: Array, weight: Weight = "exposures") -> GAUC:
    """Return the AUC inside each group, averaged over groups of both classes.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) logits or any ranking number.
        group:  (N,) integers; rows need not be sorted by it.
        weight: what a group counts: its rows, 1, its positives, or its pairs.

    >>> result = gauc(np.array([1, 0, 1, 1]), np.array([0.3, 0.1, 0.2, 0.9]), np.array([5, 5, 6, 6]))
    >>> result.value, result.groups, result.dropped_groups, result.dropped_exposures
    (1.0, 1, 1, 2)
    """
    return value(count_scores(labels, scores, group), weight)


__all__ = ["GAUC", "GroupPairs", "Weight", "count_pairs", "gauc", "merge", "state", "terms", "value"]
