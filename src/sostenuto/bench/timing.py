"""Two or three ways to do one thing, timed in turns, so that a busy machine is unfair to none."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

MOST_REPEATS = 1_000
LONG = 20  # times what a round must last at least: surely no need to repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of ours, of its plain twin and perhaps of a naive form, over the rounds."""

    ours_s: tuple[float, ...]
    plain_s: tuple[float, ...]
    naive_s: tuple[float, ...] = ()

    @property
    def ours(self) -> float:
        """Median seconds of ours."""
        return statistics.median(self.ours_s)

    @property
    def plain(self) -> float:
        """Median seconds of the plain twin."""
        return statistics.median(self.plain_s)

    @property
    def naive(self) -> float | None:
        """Median seconds of the naive form, None without one."""
        return statistics.median(self.naive_s) if self.naive_s else None

    @property
    def ratio(self) -> float:
        """Median over the rounds of plain / ours: how many times faster ours is."""
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Plain / ours of each round."""
        return tuple(plain / ours for ours, plain in zip(self.ours_s, self.plain_s, strict=True))

    @property
    def naive_ratio(self) -> float | None:
        """Median over the rounds of naive / ours, None without a naive form."""
        if not self.naive_s:
            return None
        return statistics.median(naive / ours for ours, naive in zip(self.ours_s, self.naive_s, strict=True))


def time_in_turns(
    ours: Callable[[], object],
    plain: Callable[[], object],
    naive: Callable[[], object] | None = None,
    *,
    rounds: int,
    least_s: float = 0.0,
) -> Timing:
    """Call each once unmeasured, then in every round one after another; the order turns round every time.

    Args:
        ours:    the form that is measured.
        plain:   its plain twin.
        naive:   a third form, or none.
        rounds:  how often each is measured.
        least_s: a call that is shorter is repeated for so long within a round, and the mean counts.
    """
    calls = {"ours": ours, "plain": plain} | ({} if naive is None else {"naive": naive})
    repeats = dict.fromkeys(calls, 1)
    for name, call in calls.items():
        if _seconds(call, 1) < LONG * least_s:  # the first call may hold imports: the second one tells
            repeats[name] = math.ceil(least_s / max(_seconds(call, 1), least_s / MOST_REPEATS))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in calls if number % 2 == 0 else reversed(calls):
            taken[name].append(_seconds(calls[name], repeats[name]))
    return Timing(ours_s=tuple(taken["ours"]), plain_s=tuple(taken["plain"]), naive_s=tuple(taken.get("naive", ())))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


__all__ = ["Timing", "time_in_turns"]
