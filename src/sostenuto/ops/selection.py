"""The selector: from a mask or scores over whole histories to the few behaviours that a request attends over.

A row is a request's history, and its selection is shared by all its candidates; searches per candidate are in `top_k`.
Both forms return a `Taken`: positions into the flat behaviours, and where the rows of the selection start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sostenuto.ops.jagged import Taken, lengths_to_offsets, newest, newest_moments, row_index


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


__all__ = ["select_newest", "select_top"]
