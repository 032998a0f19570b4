"""Logloss, and NE: the logloss over that of always saying the base rate (1 = no better than the base rate)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sostenuto.evaluation.score_counts import checked
from sostenuto.evaluation.terms import Array, GroupTerms, row_terms


@dataclass(frozen=True, slots=True, kw_only=True)
class LoglossState:
    """Sums over rows."""

    loss: float
    positives: int
    rows: int


def row_loss(labels: Array, logits: Array) -> Array:
    """(N,) float64 loss of each row in nats, from the logit: no clipping of probabilities is needed."""
    positive, logits = checked(labels, logits)
    signed = np.where(positive, -1.0, 1.0) * logits.astype(np.float64)
    loss: Array = np.logaddexp(0.0, signed)
    return loss


def state(labels: Array, logits: Array) -> LoglossState:
    """Sum the loss of rows."""
    loss = row_loss(labels, logits)
    return LoglossState(loss=float(loss.sum()), positives=int((np.asarray(labels) == 1).sum()), rows=len(loss))


def merge(a: LoglossState, b: LoglossState) -> LoglossState:
    """Join two states."""
    return LoglossState(loss=a.loss + b.loss, positives=a.positives + b.positives, rows=a.rows + b.rows)


def value(state: LoglossState) -> float:
    """Return the mean loss per row, nats; NaN without rows."""
    return state.loss / state.rows if state.rows else float("nan")


def normalised_entropy(state: LoglossState) -> float:
    """Return NE; NaN when only one class is there, because the base rate is then certain."""
    if not 0 < state.positives < state.rows:
        return float("nan")
    rate = state.positives / state.rows
    return value(state) / float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))


def terms(labels: Array, logits: Array, group: Array) -> GroupTerms:
    """Return the logloss as a ratio of sums by group."""
    loss = row_loss(labels, logits)
    return row_terms(group, loss, np.ones(len(loss)))


def logloss(labels: Array, logits: Array) -> float:
    """Return the mean negative log-likelihood of 0 / 1 labels under logits.

    >>> round(logloss(np.array([1, 0]), np.array([0.0, 0.0])), 4)
    0.6931
    """
    return value(state(labels, logits))


__all__ = ["LoglossState", "logloss", "merge", "normalised_entropy", "row_loss", "state", "terms", "value"]
