"""The cheap stage: a weighted sum of a few numbers per candidate, to find those that the ranker should see.

    weights.decayed   * log(1 + decayed count)        the user's own behaviours with the item, halving in 28 days
    weights.count     * log(1 + count)
    weights.recency   * 1 / (1 + days since the last)
    weights.popular   * popularity_28d / 10           features/popularity.py: log(1 + share per million)
    weights.at_place  * popularity_place / 10
    weights.proposed  * sum over sources of 1 / (1 + rank / 25), ranks from 0

It is computed from the same point-in-time counts that rankers read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.match import DAY_MS
from sostenuto.features.popularity import popularity_features

if TYPE_CHECKING:
    from sostenuto.serving.recommending.source import Merged, Seeker

Array = npt.NDArray[Any]

RANK_SCALE = 25.0
COLUMNS = ("decayed", "count", "recency", "popular", "at_place", "proposed")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheapWeights:
    """Weights of the columns.

    The defaults were chosen by hand; a logistic fit (`benchmarks/candidates.py --fit`) finds as much among 500.
    """

    decayed: float = 1.0
    count: float = 0.5
    recency: float = 0.5
    popular: float = 1.0
    at_place: float = 1.0
    proposed: float = 1.0

    def __post_init__(self) -> None:
        for name in COLUMNS:
            if not np.isfinite(getattr(self, name)):
                raise ValueError(f"CheapWeights.{name} must be finite, got {getattr(self, name)}")


def cheap_columns(merged: Merged, seeker: Seeker) -> Array:
    """Return (C, 6) float64 columns of COLUMNS for merged candidates."""
    past, item = seeker.past, merged.item
    found, at = past.find(item)
    columns = np.zeros((len(item), len(COLUMNS)))
    if found.any():
        at = at[found]
        columns[found, 0] = np.log1p(past.decayed_at(seeker.time_ms)[at])
        columns[found, 1] = np.log1p(past.count[at])
        columns[found, 2] = 1.0 / (1.0 + np.maximum(seeker.time_ms - past.last_ms[at], 0) / DAY_MS)
    row = np.zeros(len(item), np.int64)
    popular = popularity_features(seeker.popularity, item, row, np.array([seeker.time_ms]), np.array([seeker.place]))
    columns[:, 3] = popular["popularity_28d"] / 10.0
    columns[:, 4] = popular["popularity_place"] / 10.0
    proposed = 1.0 / (1.0 + np.maximum(merged.rank, 0) / RANK_SCALE)
    columns[:, 5] = np.where(merged.rank >= 0, proposed, 0.0).sum(1)
    return columns


def cheap_scores(merged: Merged, seeker: Seeker, weights: CheapWeights) -> Array:
    """Return (C,) float64 scores."""
    return np.asarray(cheap_columns(merged, seeker) @ np.array([getattr(weights, name) for name in COLUMNS]))


def cut(scores: Array, kept: Array, most: int) -> Array:
    """Return the positions of at most `most` candidates in their order: all of `kept` (C,), then the best scores.

    Equal scores stand in their order. More `kept` than `most` all stay: somebody named them.
    """
    order = np.lexsort((np.arange(len(scores)), -scores, ~kept))
    return np.sort(order[: max(most, int(kept.sum()))])


__all__ = ["COLUMNS", "CheapWeights", "cheap_columns", "cheap_scores", "cut"]
