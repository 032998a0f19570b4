"""Items that the requests of a batch are held against when the next item is learnt: drawn anew for each batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.schema.errors import DataError, SpecError
from sostenuto.schema.features import FIRST_KNOWN

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Negatives:
    """M drawn items; of several draws one after another, all of one size."""

    item: Array  # (M,) int64
    log_q: Array | None  # (M,) float32 log of how often each is expected among M draws; None = uncorrected
    draws: int = 1
    pool: Array | None = None  # (M,) int64 group that each was drawn from, -1 = from all items; None = all so


class NegativeSampler:
    """Draws items with replacement, in proportion to a power of how often they occur in training.

    Args:
        counts: (num_items,) occurrences in training time; items without any are never drawn.
        count:  items per draw.
        draws:  of a batch.
        power:  0 draws all items alike, 1 by frequency.
        log_q:  also hand over the logarithm of `count` times the chance of each (the log-Q correction of sampled
                softmax; Bengio and Senecal, 2008; Yi et al., RecSys 2019).
        groups: (num_items, C) bool; when given, half of the negatives are drawn from all items and the rest from the
                items of one group after another, so that rare groups have enough of their own. Not with `log_q`.
    """

    def __init__(
        self, counts: Array, *, count: int, power: float, log_q: bool, draws: int = 1, groups: Array | None = None
    ) -> None:
        if count < 1:
            raise SpecError(f"training.negatives must be at least 1, got {count}; 256 is usual")
        if draws < 1 or (groups is not None and draws > 1):
            raise SpecError(
                f"training.negative_draws must be 1 where items have groups and at least 1 elsewhere, got {draws}; "
                "leave it at 1"
            )
        weight = np.asarray(counts, np.float64).copy()
        weight[:FIRST_KNOWN] = 0.0
        known = weight > 0
        if not known.any():
            raise DataError("training must hold known items to draw negatives from, it has none; prepare more events")
        weight[known] = weight[known] ** power
        chance = weight / weight.sum()
        self._bounds = np.cumsum(chance)
        self._log_chance = np.log(np.maximum(chance, np.finfo(np.float64).tiny))
        self.count, self.log_q, self.draws = count, log_q, draws
        self._pools: list[tuple[int, Array, Array]] = []  # group, its items, their bounds
        if groups is not None:
            if log_q:
                raise SpecError("training.log_q must be false for negatives drawn by group, got true; leave it out")
            for group in range(groups.shape[1]):
                items = np.flatnonzero(np.asarray(groups)[:, group] & (weight > 0))
                if len(items):
                    self._pools.append((group, items, np.cumsum(weight[items])))

    def draw(self, generator: np.random.Generator) -> Negatives:
        """Return the negatives of a batch."""
        if self._pools:
            return self._by_group(generator)
        item = np.searchsorted(self._bounds, generator.random(self.count * self.draws) * self._bounds[-1], side="right")
        log_q = (self._log_chance[item] + np.log(self.count)).astype(np.float32) if self.log_q else None
        return Negatives(item=item.astype(np.int64), log_q=log_q, draws=self.draws)

    def _by_group(self, generator: np.random.Generator) -> Negatives:
        shared = self.count - self.count // 2
        number = np.concatenate((np.full(shared, -1), np.arange(self.count // 2) % len(self._pools)))
        item = np.zeros(self.count, np.int64)
        pool = np.full(self.count, -1)
        drawn = generator.random(self.count)
        everything = number < 0
        item[everything] = np.searchsorted(self._bounds, drawn[everything] * self._bounds[-1], side="right")
        for n, (group, items, bounds) in enumerate(self._pools):
            mine = number == n
            item[mine] = items[np.searchsorted(bounds, drawn[mine] * bounds[-1], side="right")]
            pool[mine] = group
        return Negatives(item=item, log_q=None, pool=pool.astype(np.int64))


__all__ = ["NegativeSampler", "Negatives"]
