"""A drawn world as arrays, and the AUC that its own probabilities would have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sostenuto.data.prepared import Array
from sostenuto.data.worlds.table import GROUPS, KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldLog:
    """A world's events, items and exposures as arrays. Users, items, kinds, groups and places count from 0."""

    name: str
    seed: int
    num_users: int
    event_user: Array  # (N,) int32, ascending
    event_time_ms: Array  # (N,) int64, ascending inside a user
    event_item: Array  # (N,) int32
    event_place: Array  # (N,) int16
    event_action: Array  # (N,) int8: 0 view, 1 buy
    event_value: Array  # (N,) float32
    item_kind: Array  # (I,) int16
    item_vector: Array  # (I, VECTOR) float32
    request_user: Array  # (R,) int32; requests are in order of time
    request_time_ms: Array  # (R,) int64
    request_place: Array  # (R,) int16
    candidate_item: Array  # (R, CANDIDATES) int32
    logit: Array  # (R, CANDIDATES) float32, the truth
    label: Array  # (R, CANDIDATES) float32
    part: Array  # (R, CANDIDATES) int8, habits: drawn for the taste (1), the weekday (2), the place (3), nothing (0)
    item_content: Mapping[str, Array] = field(default_factory=dict)  # (I, CONTENT) float32 by name; most have none

    @property
    def item_group(self) -> Array:
        """(I,) int16 coarse category."""
        return (self.item_kind.astype(np.int32) * GROUPS // KINDS).astype(np.int16)

    @property
    def oracle_auc(self) -> float:
        """Expected pooled AUC of the true probabilities, from the probabilities themselves."""
        return expected_auc(1 / (1 + np.exp(-self.logit.astype(np.float64).ravel())))


def expected_auc(probability: Array, score: Array | None = None) -> float:
    """Return the AUC of `score` (default: the probabilities themselves) when labels are drawn from `probability`.

    Every candidate counts as `probability` positives and `1 - probability` negatives; ties count one half.

    >>> expected_auc(np.array([0.5, 0.5]))
    0.5
    """
    score = probability if score is None else score
    levels, which = np.unique(score, return_inverse=True)
    positive = np.bincount(which, probability, len(levels))
    negative = np.bincount(which, 1 - probability, len(levels))
    below = np.cumsum(negative) - negative
    return float(np.sum(positive * (below + negative / 2)) / (positive.sum() * negative.sum()))


__all__ = ["WorldLog", "expected_auc"]
