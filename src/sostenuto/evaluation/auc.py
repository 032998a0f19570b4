"""Pooled AUC: the chance that a positive outranks a negative, over all rows; ties are half a win."""

from __future__ import annotations

from sostenuto.evaluation.gauc import count_pairs
from sostenuto.evaluation.score_counts import ScoreCounts, count_scores, merge_counts
from sostenuto.evaluation.terms import Array


def state(labels: Array, scores: Array) -> ScoreCounts:
    """Count rows by score."""
    return count_scores(labels, scores)


merge = merge_counts


def value(state: ScoreCounts) -> float:
    """Return the exact AUC, NaN when only one class is there."""
    pairs = count_pairs(state)
    product = float((pairs.positives.astype(float) * pairs.negatives).sum())
    return float(pairs.wins.sum()) / product if product > 0 else float("nan")


def auc(labels: Array, scores: Array) -> float:
    """Return the exact pooled AUC.

    >>> import numpy as np
    >>> auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.5, 0.5, 0.9]))
    0.875
    """
    return value(state(labels, scores))


__all__ = ["auc", "merge", "state", "value"]
