"""From numbers to places: linear and logarithmic axes with round ticks, and labels that do not overlap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps `low .. high` to `start .. end`, in pixels; values outside are clamped to the ends."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        low, high, v = self.low, self.high, value
        if self.log:
            low, high, v = math.log(low), math.log(high), math.log(max(value, self.low))
        share = (v - low) / (high - low) if high > low else 0.5
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Round values inside the scale."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)


def _step(span: float, count: int) -> float:
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * m for m in (1.0, 2.0, 5.0, 10.0) if power * m >= raw * 0.75)


def linear_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Return about `count` round values between low and high.

    >>> linear_ticks(0.0, 1.0)
    (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """
    if not high > low:
        return (low,)
    step = _step(high - low, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return powers of ten between low and high, with 2 and 5 between them on a short axis."""
    between = (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in between]
    return tuple(t for t in ticks if low * 0.999 <= t <= high * 1.001)


def tick_digits(ticks: Sequence[float]) -> int:
    """Return the decimals that tell the ticks apart."""
    if len(ticks) < 2:
        return 2
    return max(0, -math.floor(math.log10(min(b - a for a, b in itertools.pairwise(ticks))) + 1e-9))


def domain(values: Iterable[float | None], *, padding: float = 0.06, least: float = 0.01) -> tuple[float, float]:
    """Return a range that holds all finite values with some air around them; (0, 1) for none."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    air = max((high - low) * padding, (least - (high - low)) / 2, 0.0)
    return low - air, high + air


def log_domain(values: Iterable[float | None]) -> tuple[float, float]:
    """Return a range of powers of ten that holds all finite values above 0; (1, 10) for none.

    >>> log_domain([0.3, 42.0])
    (0.1, 100.0)
    """
    finite = [v for v in values if v is not None and math.isfinite(v) and v > 0]
    if not finite:
        return 1.0, 10.0
    low, high = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def spread_apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels as little as needed so that neighbours are `gap` apart and all lie in low .. high.

    >>> spread_apart([10.0, 11.0, 50.0], 10.0, 0.0, 100.0)
    [5.5, 15.5, 50.0]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    clusters: list[tuple[float, int]] = []  # centre, members: touching labels move as one
    for i in order:
        centre, members = places[i], 1
        clusters.append((centre, members))
        while len(clusters) > 1:
            (above, m), (below, n) = clusters[-2], clusters[-1]
            if below - above >= gap * (m + n) / 2:
                break
            clusters[-2:] = [((above * m + below * n) / (m + n), m + n)]
    moved: list[float] = []
    for centre, members in clusters:
        half = gap * (members - 1) / 2
        centre = min(max(centre, low + half), max(high - half, low + half))
        moved.extend(centre - half + gap * k for k in range(members))
    for k in range(1, len(moved)):  # clamping may have pushed one cluster into the next
        moved[k] = max(moved[k], moved[k - 1] + gap)
    out = [0.0] * len(places)
    for place, i in zip(moved, order, strict=True):
        out[i] = place
    return out


__all__ = ["Scale", "domain", "linear_ticks", "log_domain", "log_ticks", "spread_apart", "tick_digits"]
