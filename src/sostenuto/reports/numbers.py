"""Numbers as people read them."""

from __future__ import annotations

import math

NONE = "\N{EM DASH}"
MINUS = "\N{MINUS SIGN}"


def fixed(value: float | None, digits: int = 4) -> str:
    """Write with fixed decimals; a true minus; a dash for nothing.

    >>> fixed(0.88123), fixed(None)
    ('0.8812', '—')
    """
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 4) -> str:
    """Write with its sign.

    >>> signed(0.0071), signed(-0.01)
    ('+0.0071', '−0.0100')
    """
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:+.{digits}f}".replace("-", MINUS)


def significant(value: float | None, digits: int = 2) -> str:
    """Write with so many significant digits and no exponent.

    >>> significant(0.01234), significant(12.34), significant(1234.6)
    ('0.012', '12', '1,235')
    """
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}".replace("-", MINUS)


def thousands(value: float | None) -> str:
    """Write a whole number with separators."""
    return NONE if value is None else f"{round(value):,}"


def short_count(value: float | None) -> str:
    """Write a count with a unit letter.

    >>> short_count(950), short_count(12_300), short_count(4_500_000)
    ('950', '12.3 k', '4.5 M')
    """
    if value is None:
        return NONE
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Write a time span in the unit that fits.

    >>> duration(0.4), duration(48), duration(312), duration(8000)
    ('0.40 s', '48 s', '5.2 min', '2.2 h')
    """
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def byte_size(value: float | None) -> str:
    """Write bytes with a decimal unit.

    >>> byte_size(512), byte_size(66_000)
    ('512 B', '66 kB')
    """
    if value is None:
        return NONE
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def p_value(p: float | None) -> str:
    """Write a p-value; small ones as a bound.

    >>> p_value(0.00004), p_value(0.031)
    ('p < 0.001', 'p = 0.031')
    """
    if p is None:
        return NONE
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


__all__ = [
    "MINUS",
    "NONE",
    "byte_size",
    "duration",
    "fixed",
    "p_value",
    "short_count",
    "signed",
    "significant",
    "thousands",
]
