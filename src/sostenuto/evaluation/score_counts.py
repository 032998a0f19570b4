"""How many positives and negatives hold each score, group by group: the state behind every rank metric.

Two states merge exactly, also when a group was cut between them, because nothing about order is thrown away:
equal scores of a group are counted, not listed. AUC, GAUC, NDCG@k and the rest, and the reliability curve are
functions of this one state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sostenuto.evaluation.terms import Array, dense_groups
from sostenuto.schema.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCounts:
    """M distinct (group, score) pairs, sorted by group, then by score."""

    group: Array  # (M,) int64
    score: Array  # (M,) float64
    positives: Array  # (M,) int64
    negatives: Array  # (M,) int64

    @property
    def starts(self) -> Array:
        """(G,) where each group starts."""
        if self.group.size == 0:
            return np.zeros(0, np.int64)
        return np.flatnonzero(np.concatenate([[True], self.group[1:] != self.group[:-1]]))

    @property
    def groups(self) -> Array:
        """(G,) the groups, increasing."""
        return self.group[self.starts]


def checked(labels: Array, scores: Array, group: Array | None = None) -> tuple[Array, Array]:
    """Return labels as bool and scores as they came; refuse what no rank metric is defined for."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise DataError(f"labels and scores must be flat and of one length, got {labels.shape} and {scores.shape}")
    if group is not None and np.shape(group) != labels.shape:
        raise DataError(f"group must have one entry per label, got {np.shape(group)} for {labels.shape}")
    if np.isnan(scores).any():
        row = int(np.flatnonzero(np.isnan(scores))[0])
        raise DataError(f"scores must not be NaN, row {row} is; look for a division by 0 in the ranker")
    positive = labels == 1
    if not bool((positive | (labels == 0)).all()):
        bad = labels[~(positive | (labels == 0))][0]
        raise DataError(f"labels must be 0 or 1, one is {bad}; set a threshold before evaluating")
    return positive, scores


def _ordered_bits(scores: Array) -> tuple[Array, Array | None]:
    """Map scores to uint32 of the same order; float64 that float32 cannot hold goes through its ranks."""
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float32)
    if scores.dtype == np.float32 or bool((narrow == scores).all()):
        bits = (narrow + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0: they are one score
        return bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000)), None
    values, ranks = np.unique(scores, return_inverse=True)
    return ranks.reshape(-1).astype(np.uint32), values


def _scores_of(bits: Array, values: Array | None) -> Array:
    if values is not None:
        return values[bits].astype(np.float64)
    raw = bits ^ np.where(bits >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    return raw.view(np.float32).astype(np.float64)


def count_scores(labels: Array, scores: Array, group: Array | None = None) -> ScoreCounts:
    """Count positives and negatives by group and score.

    Group, score and label of a row are packed into one integer, so that a single sort of plain integers does all.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) any ranking number; logits do. Infinite is allowed, NaN is refused.
        group:  (N,) integers, or None for one group named 0.
    """
    positive, scores = checked(labels, scores, group)
    if group is None:
        group = np.zeros(len(positive), np.int64)
    if len(positive) == 0:
        none = np.zeros(0, np.int64)
        return ScoreCounts(group=none, score=np.zeros(0), positives=none, negatives=none)
    names, codes = dense_groups(group)
    bits, values = _ordered_bits(scores)
    packed = (codes.astype(np.uint64) << np.uint64(33)) | (bits.astype(np.uint64) << np.uint64(1)) | positive
    packed.sort()
    key = packed >> np.uint64(1)
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    total = np.diff(starts, append=len(key))
    positives = np.add.reduceat((packed & np.uint64(1)).astype(np.int64), starts)
    key = key[starts]
    return ScoreCounts(
        group=names[(key >> np.uint64(32)).astype(np.int64)],
        score=_scores_of((key & np.uint64(0xFFFFFFFF)).astype(np.uint32), values),
        positives=positives,
        negatives=total - positives,
    )


def merge_counts(a: ScoreCounts, b: ScoreCounts) -> ScoreCounts:
    """Join two states; the result equals the state of all their rows."""
    group = np.concatenate([a.group, b.group])
    if group.size == 0:
        return a
    score = np.concatenate([a.score, b.score])
    order = np.lexsort((score, group))
    group, score = group[order], score[order]
    fresh = np.concatenate([[True], (group[1:] != group[:-1]) | (score[1:] != score[:-1])])
    starts = np.flatnonzero(fresh)
    return ScoreCounts(
        group=group[starts],
        score=score[starts],
        positives=np.add.reduceat(np.concatenate([a.positives, b.positives])[order], starts),
        negatives=np.add.reduceat(np.concatenate([a.negatives, b.negatives])[order], starts),
    )


def sum_by_group(counts: ScoreCounts, column: Array) -> Array:
    """Sum a column of (M,) over each group, (G,)."""
    starts = counts.starts
    return np.add.reduceat(column, starts) if len(starts) else column[:0]


__all__ = ["ScoreCounts", "checked", "count_scores", "merge_counts", "sum_by_group"]
