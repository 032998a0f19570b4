"""The top k of each group: NDCG, Recall, HR, MRR and MAP, as expected values under random tie-breaking.

A model that gives equal scores must gain nothing by the order in which rows happen to lie. So a block of equal scores
counts with the mean over all its orders, in closed form (for DCG: McSherry and Najork, ECIR 2008). Labels are 0 or 1.
Groups without a positive have no value; they are dropped.

With P positives in a group, positions i = 1, 2, .. and r_i = 1 where a positive stands:

    NDCG@k    sum_{i <= k} r_i / log2(i + 1)  over the same sum for the best order
    Recall@k  sum_{i <= k} r_i / P
    HR@k      1 if any r_i = 1 with i <= k
    MRR@k     1 / i of the first positive if i <= k, else 0
    MAP@k     sum_{i <= k} r_i (positives up to i) / i  over min(P, k)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from sostenuto.evaluation.score_counts import ScoreCounts, count_scores, merge_counts, sum_by_group
from sostenuto.evaluation.terms import Array, GroupTerms
from sostenuto.schema.errors import SpecError

state = count_scores
merge = merge_counts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Positions:
    """The first k positions of every group, and the blocks of equal scores they lie in."""

    positives: Array  # (G,) P
    block_row: Array  # (T,) block of each position
    within: Array  # (T,) j, places of the block before this position
    position: Array  # (T,) 0-based position in the group
    group: Array  # (T,) group of each position
    size: Array  # (M,) n, rows of the block
    hits: Array  # (M,) p, positives of the block
    before: Array  # (M,) positives of the group above the block
    inside: Array  # (M,) m, places of the block among the first k

    def total(self, per_position: Array) -> Array:
        sums: Array = np.bincount(self.group, weights=per_position, minlength=len(self.positives))
        return sums


def _positions(state: ScoreCounts, k: int) -> _Positions:
    if k < 1:
        raise SpecError(f"k must be at least 1, got {k}")
    size = state.positives + state.negatives
    codes = np.repeat(np.arange(len(state.starts)), np.diff(state.starts, append=len(state.group)))
    rows, hits = sum_by_group(state, size), sum_by_group(state, state.positives)

    def above(column: Array, totals: Array) -> Array:  # sum over higher scores of the same group
        higher: Array = np.cumsum(totals)[codes] - np.cumsum(column)
        return higher

    start = above(size, rows)
    inside = np.clip(k - start, 0, size)
    block = np.repeat(np.arange(len(size)), inside)
    within = np.arange(len(block)) - np.repeat(np.cumsum(inside) - inside, inside)
    return _Positions(
        positives=hits,
        block_row=block,
        within=within,
        position=start[block] + within,
        group=codes[block],
        size=size,
        hits=state.positives,
        before=above(state.positives, hits),
        inside=inside,
    )


def _log_choose(n: Array, m: Array) -> Array:
    """Log of n over m; -inf where m is outside 0 .. n."""
    lawful = (m >= 0) & (m <= n)
    n, m = np.where(lawful, n, 0), np.where(lawful, m, 0)
    return np.where(lawful, gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1), -np.inf)


def _per_group(state: ScoreCounts, p: _Positions, gained: Array, best: Array) -> GroupTerms:
    has = p.positives > 0
    return GroupTerms(
        group=state.groups,
        numerator=np.where(has, gained / np.where(best > 0, best, 1), 0.0),
        denominator=has.astype(np.float64),
    )


def ndcg(state: ScoreCounts, k: int) -> GroupTerms:
    """NDCG@k of each group with a positive."""
    p = _positions(state, k)
    share = (p.hits / p.size)[p.block_row]
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2.0))])
    return _per_group(state, p, p.total(share / np.log2(p.position + 2.0)), ideal[np.minimum(p.positives, k)])


def recall(state: ScoreCounts, k: int) -> GroupTerms:
    """Recall@k of each group with a positive: the share of all its positives, so k < P caps it below 1."""
    p = _positions(state, k)
    return _per_group(state, p, p.total((p.hits / p.size)[p.block_row]), p.positives)


def hit_rate(state: ScoreCounts, k: int) -> GroupTerms:
    """HR@k of each group with a positive: the chance that the first k hold one at all."""
    p = _positions(state, k)
    none = np.exp(_log_choose(p.size - p.hits, p.inside) - _log_choose(p.size, p.inside))
    starts = state.starts
    missed = np.multiply.reduceat(none, starts) if len(starts) else none
    return _per_group(state, p, 1.0 - missed, np.ones(len(starts)))


def mrr(state: ScoreCounts, k: int) -> GroupTerms:
    """MRR@k of each group with a positive."""
    p = _positions(state, k)
    n, hits = p.size[p.block_row], p.hits[p.block_row]
    first = np.exp(_log_choose(n - p.within - 1, hits - 1) - _log_choose(n, hits))  # the block's first positive is here
    leads = (p.before[p.block_row] == 0) & (hits > 0)
    return _per_group(state, p, p.total(np.where(leads, first / (p.position + 1.0), 0.0)), np.ones(len(p.positives)))


def average_precision(state: ScoreCounts, k: int) -> GroupTerms:
    """MAP@k of each group with a positive."""
    p = _positions(state, k)
    n, hits = p.size[p.block_row], p.hits[p.block_row]
    upto = p.before[p.block_row] + 1 + p.within * (hits - 1) / np.maximum(n - 1, 1)  # expected, given a positive here
    precision = upto / (p.position + 1.0)
    return _per_group(state, p, p.total(hits / n * precision), np.minimum(p.positives, k))


TOP_K: dict[str, Callable[[ScoreCounts, int], GroupTerms]] = {
    "ndcg": ndcg,
    "recall": recall,
    "hr": hit_rate,
    "mrr": mrr,
    "map": average_precision,
}


def value(state: ScoreCounts, name: str, k: int) -> float:
    """Return the mean over groups of a measure of `TOP_K`.

    >>> everything_tied = state(np.array([1, 0, 0, 0]), np.zeros(4), np.zeros(4, int))
    >>> value(everything_tied, "hr", 2), round(value(everything_tied, "mrr", 4), 4)
    (0.5, 0.5208)
    """
    return TOP_K[name](state, k).value


__all__ = ["TOP_K", "average_precision", "hit_rate", "merge", "mrr", "ndcg", "recall", "state", "value"]
