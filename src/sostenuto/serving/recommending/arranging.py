"""From scored candidates to a list: rules hold for every list, diversity moves items, a few places explore.

The list is filled from the top. At each place the candidate of the largest

    (1 - diversity) * score / spread  -  diversity * (similarity to the most similar item above)

is taken (maximal marginal relevance; Carbonell and Goldstein, SIGIR 1998), `spread` being the standard deviation of the
candidates' scores. So at diversity .5 one standard deviation weighs as much as the step from wholly different to alike,
and at 0 the list stands in order of score. Candidates that a cap forbids are passed over. Items that must be included
have their room kept free: under caps, and in the list, where the last places are theirs if they did not earn others.

Exploring is a policy of its own, with propensities that are exact. Places of the configuration are taken out of the
list before it is filled. Eligible are the best `pool` lawful candidates that the rest of the list does not show, fewer
where caps ask for it: of a value with room for r more items only r are eligible, so that no draw can break a cap. Each
place draws uniformly among those not drawn yet. So each eligible item stands at each such place with probability
1 / (number of eligible items), and a list of s such places has probability 1 / (n (n - 1) ... (n - s + 1)); everything
else stands where it stands with probability 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.schema.errors import RequestError
from sostenuto.schema.features import FIRST_KNOWN

Array = npt.NDArray[Any]

LEAST_SPREAD = 1e-12  # below it all scores count as equal
MUST_INCLUDE, EXPLORED = "must_include", "explored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """Places of a list that explore."""

    positions: tuple[int, ...]  # 1 = first; those beyond a list's end stay unused
    pool: int = 50  # most items that are eligible

    def __post_init__(self) -> None:
        if any(p < 1 for p in self.positions) or len(set(self.positions)) < len(self.positions):
            raise ValueError(
                f"Exploration.positions must be distinct and count from 1, got {self.positions}; name each once"
            )
        if self.pool < 1:
            raise ValueError(f"Exploration.pool must be at least 1, got {self.pool}; leave exploration out for none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """At most so many items of one value."""

    name: str
    value: Array  # (C,) int64 of the candidates; missing and unknown (0 and 1) are never capped
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lawful:
    """Candidates that may be shown, with what arranging needs to know of them."""

    score: Array  # (C,) float64, finite
    is_must: Array  # (C,) bool
    caps: Sequence[Cap] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arranged:
    """A list: positions of candidates, first place first."""

    row: Array  # (n,) int64
    is_explored: Array  # (n,) bool
    propensity: Array  # (n,) float64 of standing at this place
    eligible: int = 0  # items that each exploring place drew from

    @property
    def list_propensity(self) -> float:
        """Probability of the whole list."""
        drawn = int(self.is_explored.sum())
        return float(1.0 / np.prod(np.arange(self.eligible, self.eligible - drawn, -1, dtype=np.float64)))


class _Room:
    """What caps leave free while a list is filled; what must be included has its room from the start."""

    def __init__(self, lawful: Lawful) -> None:
        self._caps = [(cap, np.where(cap.value >= FIRST_KNOWN, cap.value, 0).astype(np.int64)) for cap in lawful.caps]
        self._left = []
        for cap, value in self._caps:
            left = np.full(int(value.max(initial=0)) + 1, cap.most, np.int64)
            np.subtract.at(left, value[lawful.is_must], 1)
            left[0] = len(value) + 1  # not capped
            if (left < 0).any():
                raise RequestError(
                    f"must_include must fit the caps, it has more than {cap.most} items of one {cap.name}; "
                    "raise the cap or leave items out"
                )
            self._left.append(left)

    def is_free(self) -> Array | bool:
        """Return (C,) bool: candidates that are no must and could be taken now; True where nothing is capped."""
        free: Array | bool = True
        for (_, value), left in zip(self._caps, self._left, strict=True):
            free = free & (left[value] > 0)
        return free

    def take(self, row: int) -> None:
        """Count a candidate that is no must."""
        for (_, value), left in zip(self._caps, self._left, strict=True):
            if value[row]:
                left[value[row]] -= 1

    def limits(self, places: int) -> list[tuple[Array, Array]]:
        """Return values (C,) and how many items by value may be eligible for so many further places."""
        limits = []
        for (_, value), left in zip(self._caps, self._left, strict=True):
            limits.append((value, np.where(left >= places, len(value), left)))
        return limits


def arrange(
    lawful: Lawful,
    k: int,
    *,
    diversity: float = 0.0,
    similarity: Callable[[int], Array] | None = None,
    exploration: Exploration | None = None,
    draw: np.random.Generator | None = None,
) -> Arranged:
    """Make a list of at most `k` candidates; shorter only where rules leave no more.

    Args:
        lawful:      candidates; equal scores stand in their order.
        k:           length, at least 1.
        diversity:   in [0, 1].
        similarity:  of one candidate (position) to all (C,), in [0, 1]; None = all are wholly different.
        exploration: places that explore; None = the list is deterministic.
        draw:        randomness of the exploring places; needed with `exploration`.

    Raises:
        RequestError: what must be included is more than `k`, or more than a cap.
    """
    if k < 1 or not 0 <= diversity <= 1:
        raise ValueError(f"k must be at least 1 and diversity in 0 .. 1, got {k} and {diversity}")
    if (musts := int(lawful.is_must.sum())) > k:
        raise RequestError(f"must_include must fit the list of {k}, it has {musts} items; raise k or leave items out")
    places = []
    if exploration is not None:
        places = [p - 1 for p in exploration.positions if p <= k][: max(k - musts, 0)]
    while True:  # a place without anybody to draw from is no exploring place
        room = _Room(lawful)
        settled = _settled(lawful, k - len(places), room, diversity, similarity)
        if exploration is None or not places:
            return Arranged(row=settled, is_explored=np.zeros(len(settled), np.bool_), propensity=np.ones(len(settled)))
        eligible = _eligible(lawful, settled, room, exploration.pool, len(places))
        if len(eligible) >= len(places):
            break
        places = places[: len(eligible)]
    if draw is None:
        raise ValueError("exploration must have a generator to draw from, got none; pass `draw`")
    row = np.empty(len(settled) + len(places), np.int64)
    is_explored = np.zeros(len(row), np.bool_)
    is_explored[places] = True
    row[~is_explored] = settled
    row[is_explored] = eligible[draw.permutation(len(eligible))[: len(places)]]
    return Arranged(
        row=row,
        is_explored=is_explored,
        propensity=np.where(is_explored, 1.0 / len(eligible), 1.0),
        eligible=len(eligible),
    )


def _settled(lawful: Lawful, k: int, room: _Room, diversity: float, similarity: Callable[[int], Array] | None) -> Array:
    """Return the deterministic list, first place first."""
    score = lawful.score
    spread = float(score.std()) if len(score) else 1.0
    value = (1.0 - diversity) * (score - score.max(initial=-np.inf)) / (spread if spread > LEAST_SPREAD else 1.0)
    alike = np.zeros(len(score))
    open_ = np.ones(len(score), np.bool_)
    waiting = int(lawful.is_must.sum())
    order = np.lexsort((np.arange(len(score)), -score))  # equal values go by score, then by order
    chosen: list[int] = []
    while len(chosen) < k:
        may = lawful.is_must if waiting == k - len(chosen) else lawful.is_must | room.is_free()
        rows = order[(open_ & may)[order]]
        if not len(rows):
            break
        row = int(rows[np.argmax(value[rows] - diversity * alike[rows])])
        chosen.append(row)
        open_[row] = False
        if lawful.is_must[row]:
            waiting -= 1
        else:
            room.take(row)
        if diversity > 0 and similarity is not None and len(chosen) < k:
            alike = np.maximum(alike, similarity(row))
    return np.array(chosen, np.int64)


def _eligible(lawful: Lawful, settled: Array, room: _Room, most: int, places: int) -> Array:
    """Return the candidates of which any `places` may be added to a list; best first."""
    others = np.ones(len(lawful.score), np.bool_)
    others[settled] = False
    others &= ~lawful.is_must
    limits = room.limits(places)
    found: list[int] = []
    for row in np.lexsort((np.arange(len(others)), -lawful.score)).tolist():
        if len(found) == most:
            break
        if others[row] and all(left[value[row]] > 0 for value, left in limits):
            found.append(row)
            for value, left in limits:
                left[value[row]] -= 1
    return np.array(found, np.int64)


__all__ = ["EXPLORED", "MUST_INCLUDE", "Arranged", "Cap", "Exploration", "Lawful", "arrange"]
