"""Two ways to do one thing, timed in turns, so that a busy machine is unfair to neither."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of ours and of its plain twin over the rounds."""

    ours_s: tuple[float, ...]
    plain_s: tuple[float, ...]

    @property
    def ours(self) -> float:
        """Median seconds of ours."""
        return statistics.median(self.ours_s)

    @property
    def plain(self) -> float:
        """Median seconds of the plain twin."""
        return statistics.median(self.plain_s)

    @property
    def ratio(self) -> float:
        """Median over the rounds of plain / ours: how many times faster ours is."""
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Plain / ours of each round."""
        return tuple(plain / ours for ours, plain in zip(self.ours_s, self.plain_s, strict=True))


def time_in_turns(ours: Callable[[], object], plain: Callable[[], object], *, rounds: int) -> Timing:
    """Call both once unmeasured, then `rounds` times in turns; who comes first changes every round."""
    ours()
    plain()
    taken: dict[str, list[float]] = {"ours": [], "plain": []}
    pair = (("ours", ours), ("plain", plain))
    for number in range(rounds):
        for name, call in pair if number % 2 == 0 else reversed(pair):
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return Timing(ours_s=tuple(taken["ours"]), plain_s=tuple(taken["plain"]))


__all__ = ["Timing", "time_in_turns"]
