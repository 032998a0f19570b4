"""Do probabilities mean what they say: reliability curve over equal-mass bins, and ECE.

Bins hold (nearly) equally many rows: a row goes to the bin of the middle rank of its score, so equal scores share a
bin, whatever the order of rows, and merged states bin alike. ECE is the mean over rows of |mean probability - observed
rate| of their bin. With sampled negatives it speaks of the sampled rate, not of the rate in the shop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from sostenuto.evaluation.score_counts import ScoreCounts, count_scores, merge_counts
from sostenuto.evaluation.terms import Array
from sostenuto.schema.errors import SpecError

BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """One entry per bin that holds rows, by rising probability."""

    probability: Array  # mean predicted probability
    observed: Array  # share of positives
    rows: Array  # rows in the bin
    low: Array  # 95 % Wilson interval of `observed`; rows taken as independent
    high: Array

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 .. 1; NaN without rows."""
        if not self.rows.sum():
            return float("nan")
        return float((np.abs(self.probability - self.observed) * self.rows).sum() / self.rows.sum())


def state(labels: Array, logits: Array) -> ScoreCounts:
    """Count rows by logit."""
    return count_scores(labels, logits)


merge = merge_counts


def _wilson(rate: Array, rows: Array, z: float = 1.959964) -> tuple[Array, Array]:
    centre = (rate + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * np.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows)) / (1 + z * z / rows)
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def value(state: ScoreCounts, bins: int = BINS) -> Reliability:
    """Return the reliability curve of logits over `bins` bins of equal mass."""
    if bins < 1:
        raise SpecError(f"bins must be at least 1, got {bins}")
    rows = state.positives + state.negatives
    total = int(rows.sum())
    middle = np.cumsum(rows) - rows / 2.0
    which = np.minimum((middle * bins / max(total, 1)).astype(np.int64), bins - 1)
    mass = np.bincount(which, weights=rows, minlength=bins)
    kept = mass > 0
    mass_or_one = np.where(kept, mass, 1.0)
    probability = np.bincount(which, weights=expit(state.score) * rows, minlength=bins) / mass_or_one
    observed = np.bincount(which, weights=state.positives, minlength=bins) / mass_or_one
    low, high = _wilson(observed[kept], mass[kept])
    return Reliability(
        probability=probability[kept], observed=observed[kept], rows=mass[kept].astype(np.int64), low=low, high=high
    )


def ece(labels: Array, logits: Array, bins: int = BINS) -> float:
    """Return the expected calibration error.

    >>> ece(np.array([1, 0]), np.array([0.0, 0.0]))
    0.0
    """
    return value(state(labels, logits), bins).ece


__all__ = ["BINS", "Reliability", "ece", "merge", "state", "value"]
