"""PCOC: predicted clicks over observed clicks. 1 is calibrated on the whole, above 1 promises too much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from sostenuto.evaluation.score_counts import checked
from sostenuto.evaluation.terms import Array, GroupTerms, row_terms


@dataclass(frozen=True, slots=True, kw_only=True)
class PCOCState:
    """Sums over rows."""

    predicted: float
    observed: int


def state(labels: Array, logits: Array) -> PCOCState:
    """Sum probabilities and labels."""
    positive, logits = checked(labels, logits)
    return PCOCState(predicted=float(expit(logits.astype(np.float64)).sum()), observed=int(positive.sum()))


def merge(a: PCOCState, b: PCOCState) -> PCOCState:
    """Join two states."""
    return PCOCState(predicted=a.predicted + b.predicted, observed=a.observed + b.observed)


def value(state: PCOCState) -> float:
    """Return predicted / observed; NaN without a positive."""
    return state.predicted / state.observed if state.observed else float("nan")


def terms(labels: Array, logits: Array, group: Array) -> GroupTerms:
    """Return PCOC as a ratio of sums by group."""
    positive, logits = checked(labels, logits, group)
    return row_terms(group, expit(logits.astype(np.float64)), positive.astype(np.float64))


def pcoc(labels: Array, logits: Array) -> float:
    """Return the sum of probabilities over the number of positives.

    >>> pcoc(np.array([1, 0]), np.array([0.0, 0.0]))
    1.0
    """
    return value(state(labels, logits))


__all__ = ["PCOCState", "merge", "pcoc", "state", "terms", "value"]
