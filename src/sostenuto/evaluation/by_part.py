"""A measure of several seeds inside each part of a slice, with intervals over users and seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sostenuto.evaluation.measures import HEADLINE, measure_terms
from sostenuto.evaluation.predictions import Predictions
from sostenuto.evaluation.significance import DRAWS, Interval, bootstrap_runs, run_interval, user_sums
from sostenuto.evaluation.slices import Slice


def measure_by_part(
    seeds: Sequence[Predictions], cut: Slice, *, name: str = HEADLINE, draws: int = DRAWS, seed: int = 0
) -> list[Interval]:
    """Return one interval per part of `cut`, which was made from rows in the order of each of `seeds`.

    Args:
        seeds: predictions of one run by seed, over the same rows in the same order.
        cut:   a slice of these rows.
        name:  a measure of `measures`.
        draws: resamples over users.
        seed:  of the resampling.
    """
    users = np.unique(seeds[0].user)
    sums = {}
    for part in range(len(cut.parts)):
        rows = np.flatnonzero(cut.rows(part, seeds[0].label))
        owned = [measure_terms(p.take(rows), [name])[name] for p in seeds]
        sums[part] = [user_sums(o.terms, o.user, users) for o in owned]
    runs = bootstrap_runs(sums, draws=draws, seed=seed)
    return [run_interval(runs[part], seed=seed) for part in range(len(cut.parts))]


__all__ = ["measure_by_part"]
