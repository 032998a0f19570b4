"""Entropy@k: over how many groups (values of a prior) a list spreads, in bits.

The groups of the first k items are counted (an item of several groups counts in each), the counts divided by their
sum, and -sum p log2 p is averaged over lists: 0 for a list of one group, log2(G) for one that shows G groups alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sostenuto.evaluation.terms import Array
from sostenuto.evaluation.top_rows import TopRows


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyState:
    """Sums over lists that show an item of some group."""

    bits: float
    lists: int


def state(top: TopRows, groups: Array) -> EntropyState:
    """Sum the entropies of whole lists; `groups` is (N, C) bool of every candidate."""
    lists = int(top.group.max(initial=-1)) + 1
    counts = np.zeros((lists, groups.shape[1]))
    np.add.at(counts, top.group, groups[top.row].astype(np.float64))
    total = counts.sum(1)
    share = counts[total > 0] / total[total > 0, None]
    bits = -(share * np.log2(np.where(share > 0, share, 1.0))).sum()
    return EntropyState(bits=float(bits), lists=len(share))


def merge(a: EntropyState, b: EntropyState) -> EntropyState:
    """Join two states."""
    return EntropyState(bits=a.bits + b.bits, lists=a.lists + b.lists)


def value(state: EntropyState) -> float:
    """Return the mean entropy; NaN without lists."""
    return state.bits / state.lists if state.lists else float("nan")


__all__ = ["EntropyState", "merge", "state", "value"]
