"""Intervals and paired tests: users resampled with replacement, all their requests with them.

Every metric used here is a ratio of sums over users, so a draw of the bootstrap is a matrix product: counts of each
user in the draw, times each user's sums. All runs, metrics and seeds share the same draws, which makes differences
paired. Requests of one user are alike; resampling requests instead would give intervals that are too narrow.

* Seeds are resampled inside each draw: seed s of a run is drawn with replacement, the same s for both runs of a pair
  (seed s of both saw the same training sample). A run with one seed (a rule, a stored model) stands for all seeds.
* p is two-sided: twice the smaller share of draws on one side of 0, each count plus one. Where fewer than 10 draws
  lie there, the tail of a normal with the draws' own spread is used if it is smaller: 2,000 draws cannot show less
  than .001, and a table of 60 rows needs that.
* Holm's correction runs over all comparisons handed in together.
* A beats B: corrected p below .05, the 95 % interval of A - B above 0, and every seed on A's side.
* Pooled AUC is no ratio of sums over users; its interval is the cluster-robust normal one, from the share of opponents
  that each row beats, summed by user (Obuchowski, Biometrics 1997).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy.special import ndtr, ndtri

from sostenuto.evaluation.score_counts import checked
from sostenuto.evaluation.terms import Array, GroupTerms, dense_groups
from sostenuto.schema.errors import DataError, SpecError

DRAWS = 2000
LEVEL = 0.95
ALPHA = 0.05
SMALLEST_P = 1e-6  # the normal tail is trusted no further out
THIN_TAIL = 10  # draws below which a tail share is too coarse to read off
Name = TypeVar("Name", bound=Hashable)
_CELLS = 1 << 23  # cells of the resampling matrix held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its interval; all NaN when the metric does not exist."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Run A against run B on one metric; `difference` is A - B, turned so that positive is better."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    per_seed: tuple[float, ...]
    seeds_agree: bool
    beats: bool  # A beats B
    loses: bool  # B beats A


def user_sums(terms: GroupTerms, user_of_group: Array, users: Array) -> Array:
    """(U, 2) numerator and denominator of each user of `users` (increasing)."""
    place = np.searchsorted(users, user_of_group)
    return np.stack(
        [np.bincount(place, weights=column, minlength=len(users)) for column in (terms.numerator, terms.denominator)], 1
    )


def user_draws(num_users: int, *, draws: int = DRAWS, seed: int = 0) -> Iterator[Array]:
    """Yield blocks (D, U) of how often each user is drawn; the blocks hold `draws` rows together."""
    if draws < 2:
        raise SpecError(f"draws must be at least 2, got {draws}")
    generator = np.random.default_rng(seed)
    left = draws
    while left > 0:
        block = min(left, max(1, _CELLS // max(num_users, 1)))
        drawn = generator.integers(0, num_users, (block, num_users), dtype=np.int32)
        drawn += (np.arange(block, dtype=np.int64) * num_users)[:, None].astype(np.int32)
        yield np.bincount(drawn.reshape(-1), minlength=block * num_users).reshape(block, num_users).astype(np.float32)
        left -= block


def bootstrap_ratios(sums: Array, *, draws: int = DRAWS, seed: int = 0) -> Array:
    """(draws, M) resampled ratios of M metrics given as (U, M, 2) sums by user; the draws are common to all.

    A draw in which a metric has no denominator repeats the metric's value on all users.
    """
    num_users, metrics, _ = sums.shape
    if num_users == 0:
        return np.full((draws, metrics), np.nan)
    flat = np.ascontiguousarray(sums.reshape(num_users, metrics * 2), np.float64)
    total = flat.sum(0).reshape(metrics, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = total[:, 0] / total[:, 1]
        parts = []
        for counts in user_draws(num_users, draws=draws, seed=seed):
            drawn = (counts.astype(np.float64) @ flat).reshape(-1, metrics, 2)
            parts.append(np.where(drawn[:, :, 1] > 0, drawn[:, :, 0] / drawn[:, :, 1], whole))
    return np.concatenate(parts)


def percentile_interval(value: float, draws: Array, level: float = LEVEL) -> Interval:
    """Return the percentile interval of bootstrap draws around a value."""
    if not np.isfinite(value):
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(value), low=float(low), high=float(high))


def bootstrap_interval(
    terms: GroupTerms, user_of_group: Array, *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Return a metric with its user-clustered bootstrap interval.

    Args:
        terms:         the metric as sums by group.
        user_of_group: (G,) the user that owns each group.
        draws:         resamples.
        seed:          of the resampling.
        level:         two-sided coverage.
    """
    users = np.unique(user_of_group)
    sums = user_sums(terms, user_of_group, users)
    return percentile_interval(terms.value, bootstrap_ratios(sums[:, None], draws=draws, seed=seed)[:, 0], level)


def auc_interval(labels: Array, scores: Array, user: Array, *, level: float = LEVEL) -> Interval:
    """Return the pooled AUC with its cluster-robust normal interval (users as clusters), clipped to 0 .. 1."""
    positive, scores = checked(labels, scores, user)
    _, ranks = np.unique(scores, return_inverse=True)
    ranks = ranks.reshape(-1)
    pos = np.bincount(ranks, weights=positive)
    neg = np.bincount(ranks, weights=~positive)
    num_pos, num_neg = float(pos.sum()), float(neg.sum())
    if num_pos == 0 or num_neg == 0:
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    beaten = (np.cumsum(neg) - neg / 2)[ranks] / num_neg  # negatives below a positive, as a share
    beating = (num_pos - np.cumsum(pos) + pos / 2)[ranks] / num_pos  # positives above a negative
    auc = float(beaten[positive].mean())
    influence = np.where(positive, (beaten - auc) / num_pos, (beating - auc) / num_neg)
    names, codes = dense_groups(user)
    by_user = np.bincount(codes, weights=influence)
    count = len(names)
    spread = float(np.sqrt((by_user**2).sum() * count / max(count - 1, 1)))
    half = float(ndtri((1 + level) / 2)) * spread
    return Interval(value=auc, low=max(auc - half, 0.0), high=min(auc + half, 1.0))


def holm(p: Array) -> Array:
    """Return Holm's step-down adjusted p-values.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = np.minimum(adjusted, 1.0)
    return out


def two_sided_p(differences: Array) -> float:
    """Return the two-sided p of "no difference" from bootstrap draws of a difference."""
    differences = np.asarray(differences, np.float64)
    thin = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p = 2.0 * (thin + 1) / (len(differences) + 1)
    spread = float(differences.std(ddof=1))
    if thin < THIN_TAIL and spread > 0:
        p = min(p, max(2.0 * float(ndtr(-abs(float(differences.mean())) / spread)), SMALLEST_P))
    return min(p, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDraws:
    """One metric of one run: value and draws by seed."""

    values: Array  # (S,)
    draws: Array  # (D, S)


def bootstrap_runs(sums: Mapping[Name, Sequence[Array]], *, draws: int = DRAWS, seed: int = 0) -> dict[Name, RunDraws]:
    """Bootstrap a metric of several runs over common draws of users.

    Args:
        sums:  run (any key) -> per seed (U, 2) sums by user; the same users, in the same order, everywhere.
        draws: resamples.
        seed:  of the resampling.
    """
    stacked = np.stack([one for seeds in sums.values() for one in seeds], 1)
    ratios = bootstrap_ratios(stacked, draws=draws, seed=seed)
    total = stacked.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = total[:, 0] / total[:, 1]
    out, place = {}, 0
    for name, seeds in sums.items():
        out[name] = RunDraws(values=values[place : place + len(seeds)], draws=ratios[:, place : place + len(seeds)])
        place += len(seeds)
    return out


def _mean_over_seeds(draws: Array, picks: Array) -> Array:
    """(D,) mean of each draw over its picked seeds."""
    if draws.shape[1] == 1:
        return draws[:, 0]
    mean: Array = np.take_along_axis(draws, picks % draws.shape[1], axis=1).mean(1)
    return mean


def _seed_picks(num_draws: int, num_seeds: int, seed: int) -> Array:
    """(D, S) which seeds each draw uses."""
    return np.random.default_rng((seed, num_seeds)).integers(0, num_seeds, (num_draws, num_seeds))


def run_interval(run: RunDraws, *, seed: int = 0, level: float = LEVEL) -> Interval:
    """Return the mean over seeds with its interval, users and seeds resampled."""
    picks = _seed_picks(len(run.draws), len(run.values), seed)
    mean = _mean_over_seeds(run.draws, picks)
    return percentile_interval(float(run.values.mean()), mean, level)


def compare_pair(
    a: str,
    b: str,
    runs: Mapping[str, RunDraws],
    *,
    larger_is_better: bool = True,
    seed: int = 0,
    alpha: float = ALPHA,
) -> Comparison:
    """Set run `a` against run `b`; alone, so `p_holm` is `p` until `corrected` sees the whole table.

    Args:
        a:                name of the run that should win.
        b:                name of the other.
        runs:             what `bootstrap_runs` returned: common draws.
        larger_is_better: False for losses; the difference is turned so that positive is better for A.
        seed:             of the resampling of seeds.
        alpha:            the interval has coverage 1 - alpha.
    """
    one, two = runs[a], runs[b]
    seeds = max(len(one.values), len(two.values))
    if min(len(one.values), len(two.values)) not in (1, seeds):
        raise DataError(
            f"runs must have equally many seeds or one, {a} has {len(one.values)} and {b} has {len(two.values)}; "
            "train the missing seeds or compare fewer"
        )
    sign = 1.0 if larger_is_better else -1.0
    picks = _seed_picks(len(one.draws), seeds, seed)
    drawn = sign * (_mean_over_seeds(one.draws, picks) - _mean_over_seeds(two.draws, picks))
    per_seed = sign * (one.values - two.values)  # a single seed is broadcast
    interval = percentile_interval(float(per_seed.mean()), drawn, 1 - alpha)
    p = two_sided_p(drawn)
    return _judged(
        Comparison(
            a=a,
            b=b,
            difference=interval.value,
            low=interval.low,
            high=interval.high,
            p=p,
            p_holm=p,
            per_seed=tuple(float(d) for d in per_seed),
            seeds_agree=bool((per_seed > 0).all() or (per_seed < 0).all()),
            beats=False,
            loses=False,
        ),
        alpha,
    )


def _judged(c: Comparison, alpha: float) -> Comparison:
    sure = c.p_holm < alpha and c.seeds_agree
    return replace(c, beats=sure and c.low > 0 and c.difference > 0, loses=sure and c.high < 0 and c.difference < 0)


def corrected(comparisons: Sequence[Comparison], *, alpha: float = ALPHA) -> list[Comparison]:
    """Correct all comparisons of a table together by Holm, and judge who beats whom."""
    adjusted = holm(np.array([c.p for c in comparisons]))
    return [_judged(replace(c, p_holm=float(p)), alpha) for c, p in zip(comparisons, adjusted, strict=True)]


__all__ = [
    "ALPHA",
    "DRAWS",
    "LEVEL",
    "Comparison",
    "Interval",
    "RunDraws",
    "auc_interval",
    "bootstrap_interval",
    "bootstrap_ratios",
    "bootstrap_runs",
    "compare_pair",
    "corrected",
    "holm",
    "percentile_interval",
    "run_interval",
    "two_sided_p",
    "user_draws",
    "user_sums",
]
