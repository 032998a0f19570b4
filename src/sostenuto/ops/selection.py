"""From masks, scores or searches over whole histories to the few behaviours that are attended over.

A row of `select_newest` and `select_top` is a request's history, and its selection is shared by all its candidates;
`whole_moments` completes what a search per candidate (`top_k`) has found. All return a `Taken`: positions into the
flat behaviours, and where the rows of the selection start.

Of equal scores the newer behaviour is taken. Behaviours of one moment have no order, so equals of one moment are taken
together: rows may be up to one moment longer than asked for (`select_top`, which knows no times, cuts between them).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sostenuto.ops.jagged import (
    Taken,
    interleave_rows,
    lengths_to_offsets,
    newest,
    newest_moments,
    position_in_row,
    row_index,
)
from sostenuto.ops.moments import moment_places


def select_newest(mask: Tensor, offsets: Tensor, time_ms: Tensor, count: int | None) -> Taken:
    """Take the newest `count` behaviours of each row that the mask holds, with the rest of the moment that is cut.

    Args:
        mask: (N,) bool, True = may be taken.
        offsets: (B + 1,) int64 row starts.
        time_ms: (N,) int64, never decreasing inside a row. Behaviours of one moment have no order, so that a cut
            between them would depend on chance: rows may be up to one moment longer than `count`.
        count: None takes all.

    Returns:
        positions, oldest first in every row.
    """
    found = mask.nonzero().squeeze(1)
    lengths = torch.bincount(row_index(offsets)[found], minlength=offsets.shape[0] - 1)
    rows = lengths_to_offsets(lengths)
    if count is None or not found.numel() or int(lengths.max()) <= count:
        return Taken(found, rows)
    kept = newest_moments(rows, time_ms[found], count)
    return Taken(found[kept.positions], kept.offsets)


def select_top(scores: Tensor, offsets: Tensor, count: int, mask: Tensor | None = None) -> Taken:
    """Take the `count` behaviours of each row with the highest scores; of equals the newer one.

    Args:
        scores: (N,) of any ordered type; no gradient flows back.
        offsets: (B + 1,) int64 row starts, oldest first inside a row.
        count: at least 1.
        mask: (N,) bool, True = may be taken; None allows all.

    Returns:
        positions, best first in every row; a row with fewer behaviours gives all it has.

    Raises:
        ValueError: `count` below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}; ask for one behaviour or more")
    row = row_index(offsets)
    found = torch.arange(scores.shape[0], device=scores.device) if mask is None else mask.nonzero().squeeze(1)
    # three stable sorts, the most important last; the best comes last in its row, so that `newest` takes it
    found = found[scores.detach()[found].sort(stable=True).indices]
    found = found[row[found].sort(stable=True).indices]
    rows = lengths_to_offsets(torch.bincount(row[found], minlength=offsets.shape[0] - 1))
    kept = newest(rows, count)
    turned = kept.offsets[1:][row_index(kept.offsets)] - 1 - torch.arange(len(kept.positions), device=rows.device)
    turned = turned + kept.offsets[:-1][row_index(kept.offsets)]
    return Taken(found[kept.positions[turned]], kept.offsets)


def whole_moments(
    positions: Tensor, offsets: Tensor, time_ms: Tensor, is_equal: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Taken:
    """Make rows of what a search has found, and add the equals of the last one's moment that the cut left out.

    Args:
        positions: (Nc, K) int64 into the flat behaviours, best first and of equals the newer first; -1 where the
            history holds fewer than K.
        offsets: (B + 1,) int64 row starts of the behaviours.
        time_ms: (N,) int64, never decreasing inside a row.
        is_equal: says of (M,) candidates and behaviours whether their score equals that of a third, (M,) bool. It is
            asked of behaviours of the moment that a candidate's search ended in.

    Returns:
        one row per candidate, best first.
    """
    real = positions >= 0
    found = Taken(positions[real], lengths_to_offsets(real.sum(1)))
    last = positions[:, -1]
    if not last.numel() or not time_ms.numel():
        return found
    at = last.clamp(min=0)
    beyond = time_ms.shape[0] - 1
    # behaviours of other users may have the same time: they are told apart only where a few candidates are left
    alike = (time_ms[(at - 1).clamp(min=0)] == time_ms[at]) | (time_ms[(at + 1).clamp(max=beyond)] == time_ms[at])
    torn = ((last >= 0) & alike).nonzero().squeeze(1)
    if not torn.numel():
        return found
    places = moment_places(offsets, time_ms)
    opens = torch.zeros_like(places.size)
    opens[1:] = places.size.cumsum(0)[:-1]
    counts = torch.zeros_like(last)
    moment = places.moment[at]
    counts[torn] = places.size[moment[torn]]
    beside = lengths_to_offsets(counts)
    candidate = row_index(beside)
    ends = (opens + places.size)[moment[candidate]]
    maybe = ends - 1 - position_in_row(beside)  # the newer position first
    # rounding may have put equals in any order, so that all of the moment is looked at
    equal = is_equal(candidate, maybe, last[candidate])
    candidate, maybe = candidate[equal], maybe[equal]
    left = (positions[candidate] != maybe[:, None]).all(1)
    candidate, maybe = candidate[left], maybe[left]
    more = lengths_to_offsets(torch.bincount(candidate, minlength=last.shape[0]))
    joined, rows = interleave_rows(found.offsets, more)
    return Taken(torch.cat([found.positions, maybe])[joined], rows)


__all__ = ["select_newest", "select_top", "whole_moments"]
