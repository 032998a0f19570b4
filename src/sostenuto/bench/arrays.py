"""What runs in numpy beside the models: the match index, and grouped AUC."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sostenuto.bench.case import Case
from sostenuto.bench.work import Work

FLOAT, DOUBLE, INT64 = 4, 8, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchSizes:
    """Sizes of one batch with one level of keys."""

    users: int
    length: int  # behaviours of each user
    candidates: int  # of each user
    keys: int = 5_000  # different ones


@dataclass(frozen=True, slots=True, kw_only=True)
class AucSizes:
    """Sizes of one evaluation."""

    rows: int
    groups: int


def match_work(sizes: MatchSizes, half_lives: int, columns: int) -> Work:
    """Count building the index and looking candidates up.

    Per behaviour: log2 L comparisons to put its key into order, and an age, an exp and an addition a half-life. Per
    candidate: log2 L comparisons, and as much for each half-life. Read: key and time of each behaviour, user and
    key of each candidate; written: the features.
    """
    behaviours, asked = sizes.users * sizes.length, sizes.users * sizes.candidates
    each = math.log2(max(sizes.length, 2)) + 3 * half_lives
    return Work(
        double_flops=(behaviours + asked) * each,
        streamed_bytes=2.0 * INT64 * (behaviours + asked) + FLOAT * asked * columns,
    )


def auc_work(sizes: AucSizes) -> Work:
    """Count a grouped AUC: each score is put into the order of its group, log2 (rows of a group) comparisons a row.

    Read: label, score and group of each row.
    """
    return Work(
        double_flops=sizes.rows * math.log2(max(sizes.rows / sizes.groups, 2.0)),
        streamed_bytes=float(sizes.rows) * (FLOAT + DOUBLE + INT64),
    )


def gauc(sizes: AucSizes, seed: int) -> Case:
    """Take the AUC of every group and their mean."""
    import numpy as np
    from scipy.stats import rankdata

    from sostenuto.evaluation.gauc import gauc as grouped

    rng = np.random.default_rng(seed)
    label = (rng.random(sizes.rows) < 0.2).astype(np.float32)
    score = np.round(rng.normal(size=sizes.rows) + label, 2)
    group = rng.integers(0, sizes.groups, sizes.rows)

    def plain() -> float:
        order = np.argsort(group, kind="stable")
        total = weight = 0.0
        for at in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
            y, positives = label[at], int(label[at].sum())
            if 0 < positives < len(at):
                wins = rankdata(score[at])[y > 0].sum() - positives * (positives + 1) / 2
                total += len(at) * wins / (positives * (len(at) - positives))
                weight += len(at)
        return total / weight

    against = "a loop over groups with scipy ranks"
    return Case(work=auc_work(sizes), ours=lambda: grouped(label, score, group), plain=plain, against=against)


def match_index(sizes: MatchSizes, seed: int) -> Case:
    """Build the match index of some users and look their candidates up."""
    import numpy as np

    from sostenuto.features.match import DAY_MS, HALF_LIVES_DAYS, MatchIndex, match_names

    rng = np.random.default_rng(seed)
    offsets = np.arange(sizes.users + 1) * sizes.length
    time_ms = np.sort(rng.integers(0, 300 * DAY_MS, (sizes.users, sizes.length)), axis=1).ravel()
    key = rng.integers(2, sizes.keys, sizes.users * sizes.length)
    row = np.repeat(np.arange(sizes.users), sizes.candidates)
    wanted = rng.integers(2, sizes.keys, sizes.users * sizes.candidates)
    moment = np.full(sizes.users, 301 * DAY_MS)

    def plain() -> object:
        answers = []
        for user in range(sizes.users):
            met: dict[int, list[int]] = {}
            for at in range(offsets[user], offsets[user + 1]):
                met.setdefault(int(key[at]), []).append(int(time_ms[at]))
            for item in wanted[row == user].tolist():
                ages = [(int(moment[user]) - t) / DAY_MS for t in met.get(item, [])]
                decayed = [sum(0.5 ** (age / half) for age in ages) for half in HALF_LIVES_DAYS]
                answers.append((len(ages), min(ages, default=-1.0), *decayed))
        return answers

    def ours() -> object:
        return MatchIndex.build(offsets, time_ms, [key]).features(row, moment, [wanted])

    work = match_work(sizes, len(HALF_LIVES_DAYS), len(match_names(("item",))))
    return Case(work=work, ours=ours, plain=plain, against="dictionaries and loops")


__all__ = ["AucSizes", "MatchSizes", "auc_work", "gauc", "match_index", "match_work"]
