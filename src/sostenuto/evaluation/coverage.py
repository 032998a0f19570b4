"""Coverage@k: of all items that were candidates, the share that some list shows in its first k."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sostenuto.evaluation.terms import Array
from sostenuto.evaluation.top_rows import TopRows


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageState:
    """Distinct items, sorted."""

    shown: Array
    candidates: Array


def state(top: TopRows, item: Array) -> CoverageState:
    """Collect the items of whole lists (a list must not be cut between two states); `item` is (N,), every candidate."""
    return CoverageState(shown=np.unique(item[top.row]), candidates=np.unique(item))


def merge(a: CoverageState, b: CoverageState) -> CoverageState:
    """Join two states."""
    return CoverageState(shown=np.union1d(a.shown, b.shown), candidates=np.union1d(a.candidates, b.candidates))


def value(state: CoverageState) -> float:
    """Return shown / candidates; NaN without candidates."""
    return len(state.shown) / len(state.candidates) if len(state.candidates) else float("nan")


__all__ = ["CoverageState", "merge", "state", "value"]
