"""Which past behaviours carried a score: by taking them out and asking the ranker again.

Behaviours are grouped by item. Each group of a shortlist is taken out of what the ranker sees, match features included,
and the ranker is asked again. What is reported lowered the score when it was removed; that is what "carried it" means
here. The groups that are named are taken out together too, and only named if that lowers the score as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.schema.features import FIRST_KNOWN

Array = npt.NDArray[Any]

CANDIDATES_AT_ONCE = 16_384  # of all variants of a history in one call: bounds memory, changes no score
BEHAVIOURS_AT_ONCE = 200_000  # of all variants of a history in one call: bounds memory, changes no score
SHORTLIST = 24  # item groups tried per explained candidate
REASONS = 3  # groups named per candidate
LEAST_DROP = 1e-4  # times max(1, |logit|); a smaller difference may be rounding (law 3)

# logits (V, C) of versions of a past, each the rising positions of the behaviours that are left, for candidates given
# by position
Ask = Callable[[Sequence[Array], Array], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """The behaviours with one item, and what their removal does to a score."""

    item: int  # index
    count: int
    last_time_ms: int
    drop: float  # logit with them minus logit without them, > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """What carried the score of one candidate, strongest first."""

    carriers: tuple[Carrier, ...] = ()
    joint_drop: float = 0.0  # logit minus logit without all of them


NO_REASONS = Reasons()


def explain_by_deletion(
    ask: Ask, past_item: Array, past_ms: Array, item: Array, logits: Array, category: Array
) -> list[Reasons]:
    """Return the reasons of each candidate: the groups whose removal lowers its score most.

    Args:
        ask:       scores candidates for versions of the past.
        past_item: (L,) int64 item indices of the behaviours that the ranker sees, oldest first.
        past_ms:   (L,) their times.
        item:      (C,) int64 item indices of the candidates.
        logits:    (C,) what `ask` says with the whole past.
        category:  (I, K) of every item index.
    """
    if not len(past_item) or not len(item):
        return [NO_REASONS] * len(item)
    everybody = np.arange(len(item))
    groups = shortlist(past_item, item, category)
    at_once = max(1, min(BEHAVIOURS_AT_ONCE // len(past_item), CANDIDATES_AT_ONCE // len(item)))
    drops = np.zeros((len(groups), len(item)))
    for at in range(0, len(groups), at_once):
        without = [np.flatnonzero(past_item != group) for group in groups[at : at + at_once]]
        drops[at : at + at_once] = logits - ask(without, everybody)
    least = LEAST_DROP * np.maximum(1.0, np.abs(logits))
    answers = []
    for c in everybody:
        order = [int(g) for g in np.argsort(-drops[:, c], kind="stable") if drops[g, c] > least[c]]
        answer = NO_REASONS
        for kept in (order[:REASONS], order[:1]):  # together they may cancel; the strongest alone cannot
            if not kept:
                break
            without = [np.flatnonzero(~np.isin(past_item, groups[kept]))]
            joint = float(logits[c] - ask(without, everybody[c : c + 1])[0, 0])
            if joint > least[c]:
                named = [_carrier(int(groups[g]), past_item, past_ms, float(drops[g, c])) for g in kept]
                answer = Reasons(carriers=tuple(named), joint_drop=joint)
                break
        answers.append(answer)
    return answers


def _carrier(item: int, past_item: Array, past_ms: Array, drop: float) -> Carrier:
    with_it = past_item == item
    return Carrier(item=item, count=int(with_it.sum()), last_time_ms=int(past_ms[with_it].max()), drop=drop)


def shortlist(past_item: Array, item: Array, category: Array) -> Array:
    """Return item groups worth trying: the same item, then the same kind from fine to coarse, then the frequent.

    Behaviours with an item that is not known are left out: nobody could read such a reason.
    """
    met, count = np.unique(past_item[past_item >= FIRST_KNOWN], return_counts=True)
    chosen: list[int] = []
    for one in item:
        same = (met == one).astype(np.int64)
        if category.shape[1]:
            kin = (category[met] == category[one]) & (category[met] >= FIRST_KNOWN)
            same = same + kin.sum(1)
        order = np.lexsort((met, -count, -same))
        chosen += met[order[:SHORTLIST]].tolist()
    return np.unique(np.array(chosen, np.int64))


__all__ = ["NO_REASONS", "Carrier", "Reasons", "explain_by_deletion", "shortlist"]
