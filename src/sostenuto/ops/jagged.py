"""Jagged rows: flat arrays whose row b is `offsets[b] .. offsets[b + 1]`.

Letters: B rows, N values in all, D width of a value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Taken(NamedTuple):
    """Positions into a flat array, and where the rows of the taken values start."""

    positions: Tensor  # (M,) int64
    offsets: Tensor  # (B + 1,) int64


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    """Return (B + 1,) row starts of rows with the given (B,) lengths."""
    offsets = lengths.new_zeros(lengths.shape[0] + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return offsets


def offsets_to_lengths(offsets: Tensor) -> Tensor:
    """Return the (B,) lengths of rows that start at `offsets`."""
    return offsets[1:] - offsets[:-1]


def row_index(offsets: Tensor) -> Tensor:
    """Return (N,) int64, the row of every value."""
    if offsets.shape[0] == 2:  # one row, as in every ranking that is served
        return torch.zeros(int(offsets[1] - offsets[0]), dtype=torch.int64, device=offsets.device)
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets_to_lengths(offsets))


def position_in_row(offsets: Tensor) -> Tensor:
    """Return (N,) int64, the place of every value in its row, counted from 0."""
    starts = torch.repeat_interleave(offsets[:-1], offsets_to_lengths(offsets))
    return torch.arange(starts.shape[0], device=offsets.device) - starts


def segment_sum(values: Tensor, offsets: Tensor, *, exact: bool = False) -> Tensor:
    """Sum each row; an empty row gives zeros.

    Args:
        values: (N, ...) of any float type.
        offsets: (B + 1,).
        exact: accumulate in float64 and round once at the end; for sums over thousands of terms.

    Returns:
        (B, ...) in the type of `values`.
    """
    terms = values.double() if exact else values
    total = terms.new_zeros((offsets.shape[0] - 1, *values.shape[1:]))
    return total.index_add(0, row_index(offsets), terms).to(values.dtype)


def segment_mean(values: Tensor, offsets: Tensor, *, exact: bool = False) -> Tensor:
    """Average each row; an empty row gives zeros."""
    count = offsets_to_lengths(offsets).clamp(min=1).to(values.dtype)
    total = segment_sum(values, offsets, exact=exact)
    return total / count.view(-1, *([1] * (values.dim() - 1)))


def segment_softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    """Softmax of (N, ...) scores inside each row; empty rows do no harm."""
    row = row_index(offsets)
    shape = (offsets.shape[0] - 1, *scores.shape[1:])
    index = row.view(-1, *([1] * (scores.dim() - 1))).expand_as(scores)
    top = scores.new_full(shape, torch.finfo(scores.dtype).min).scatter_reduce(0, index, scores.detach(), "amax")
    weight = (scores - top[row]).exp()
    total = scores.new_zeros(shape).index_add(0, row, weight)
    return weight / total[row]


def to_padded(values: Tensor, offsets: Tensor, *, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Lay rows out side by side, padded with zeros at the end.

    Args:
        values: (N, ...).
        offsets: (B + 1,).
        length: width L of the result; the longest row when None. Longer rows are refused.

    Returns:
        padded (B, L, ...), and mask (B, L), True = real.
    """
    lengths = offsets_to_lengths(offsets)
    longest = int(lengths.max()) if lengths.numel() else 0
    width = longest if length is None else length
    if width < longest:
        raise ValueError(f"length must be at least the longest row, {longest}, got {width}; cut the rows with `newest`")
    mask = torch.arange(width, device=offsets.device)[None, :] < lengths[:, None]
    padded = values.new_zeros((lengths.shape[0], width, *values.shape[1:]))
    return padded.index_put((mask,), values), mask


def from_padded(padded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Drop everything behind the mask.

    Args:
        padded: (B, L, ...).
        mask: (B, L) bool, True = real, in any pattern.

    Returns:
        values (N, ...) and offsets (B + 1,).
    """
    return padded[mask], lengths_to_offsets(mask.sum(1))


def newest_time(offsets: Tensor, time_ms: Tensor) -> Tensor:
    """Return (B,) the last time of every row, times rising inside a row; 0 for an empty one."""
    lengths = offsets[1:] - offsets[:-1]
    found = torch.zeros_like(lengths)
    real = lengths > 0
    found[real] = time_ms[offsets[1:][real] - 1]
    return found


def newest(offsets: Tensor, count: int) -> Taken:
    """Take the last `count` values of every row (fewer where the row is shorter)."""
    lengths = offsets_to_lengths(offsets)
    kept = lengths.clamp(max=count)
    taken = lengths_to_offsets(kept)
    starts = torch.repeat_interleave(offsets[1:] - kept, kept)
    return Taken(starts + position_in_row(taken), taken)


def newest_moments(offsets: Tensor, time_ms: Tensor, count: int) -> Taken:
    """Take the last `count` values of every row, and the rest of the moment that the cut would split.

    Behaviours of one moment have no order, so a cut between them would depend on chance: the oldest moment that is
    touched is kept whole. Rows are therefore up to one moment longer than `count`.
    """
    lengths = offsets_to_lengths(offsets)
    if time_ms.numel() == 0 or count <= 0:
        return newest(offsets, 0)
    first = (offsets[1:] - lengths.clamp(max=count)).clamp(max=time_ms.shape[0] - 1)
    row = row_index(offsets)
    kept_mask = (time_ms >= time_ms[first][row]) & (lengths[row] > 0)
    index = kept_mask.nonzero().squeeze(1)
    return Taken(index, lengths_to_offsets(torch.bincount(row[index], minlength=lengths.shape[0])))


def interleave_rows(first_offsets: Tensor, second_offsets: Tensor) -> Taken:
    """Say how to put each second row behind its first row.

    Returns:
        positions (N1 + N2,) in `torch.cat([first, second])`, and the offsets of the joined rows.
    """
    first, second = offsets_to_lengths(first_offsets), offsets_to_lengths(second_offsets)
    joined = lengths_to_offsets(first + second)
    total_first, total_second = int(first_offsets[-1]), int(second_offsets[-1])
    index = torch.empty(total_first + total_second, dtype=torch.int64, device=joined.device)
    here = torch.repeat_interleave(joined[:-1], first) + position_in_row(first_offsets)
    there = torch.repeat_interleave(joined[:-1] + first, second) + position_in_row(second_offsets)
    index[here] = torch.arange(total_first, device=joined.device)
    index[there] = total_first + torch.arange(total_second, device=joined.device)
    return Taken(index, joined)


__all__ = [
    "Taken",
    "from_padded",
    "interleave_rows",
    "lengths_to_offsets",
    "newest",
    "newest_moments",
    "newest_time",
    "offsets_to_lengths",
    "position_in_row",
    "row_index",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
    "to_padded",
]
