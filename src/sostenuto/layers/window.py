"""The newest behaviours of users, for rankers that read at most so many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sostenuto.ops.jagged import interleave_rows, lengths_to_offsets, newest_moments, position_in_row
from sostenuto.ops.moments import moment_places
from sostenuto.schema.histories import History


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Embedded behaviours of B users; a value, never changed in place."""

    offsets: Tensor  # (B + 1,) int64
    vectors: Tensor  # (N, D)
    time_ms: Tensor  # (N,) int64

    @classmethod
    def of(cls, histories: History, vectors: Tensor) -> Window:
        """Hold the (N, D) vectors of behaviours."""
        return cls(offsets=histories.offsets, vectors=vectors, time_ms=histories.time_ms)

    def newest(self, count: int) -> Window:
        """Return the newest `count` behaviours of each user, with the rest of the moment that the cut would split."""
        lengths = self.offsets[1:] - self.offsets[:-1]
        if not lengths.numel() or int(lengths.max()) <= count:
            return self
        taken = newest_moments(self.offsets, self.time_ms, count)
        return self.take(taken.positions, taken.offsets)

    def take(self, positions: Tensor, offsets: Tensor) -> Window:
        """Return the behaviours at flat positions, in rows that start at `offsets`."""
        return Window(offsets=offsets, vectors=self.vectors.index_select(0, positions), time_ms=self.time_ms[positions])

    def joined(self, later: Window) -> Window:
        """Return each user's behaviours with the later ones behind them."""
        positions, offsets = interleave_rows(self.offsets, later.offsets)
        return Window(
            offsets=offsets,
            vectors=torch.cat([self.vectors, later.vectors])[positions],
            time_ms=torch.cat([self.time_ms, later.time_ms])[positions],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowState:
    """The newest behaviours of B users and what they ask for."""

    window: Window
    query: Tensor  # (B, D)


class Along(NamedTuple):
    """Rows that hold what R requests along timelines read."""

    window: Window
    row: Tensor  # (R,) int64 row of each request
    prefix: Tensor  # (R,) int64 behaviours of that row that it reads

    @classmethod
    def at_the_end(cls, window: Window) -> Along:
        """Hold one request per row, which reads all of it."""
        rows = torch.arange(window.offsets.shape[0] - 1, device=window.offsets.device)
        return cls(window, rows, window.offsets.diff())


def windows_along(timelines: Window, row: Tensor, prefix: Tensor, count: int, *, is_shared: bool = True) -> Along:
    """Give every request the newest `count` behaviours of its prefix, sharing rows where they begin alike.

    Requests that read no more than `count` share their timeline's first behaviours, read once. A later request's
    window begins elsewhere, so it gets a row of its own: timelines much longer than `count` cost `count` behaviours
    for each of their requests. Training cuts timelines to the view (`view.recent`), which leaves no such request.

    Args:
        timelines: U rows.
        row:       (R,) int64 the timeline of each request, never decreasing.
        prefix:    (R,) int64 what it may read.
        count:     at most, with the rest of the moment that the cut would split.
        is_shared: False gives every request a row of its own, for what reads a row from its end.
    """
    late = prefix > count if is_shared else torch.ones_like(prefix, dtype=torch.bool)
    if not bool(late.any()):
        return Along(timelines, row, prefix)
    low = timelines.offsets[:-1]
    early_length = torch.zeros_like(low).scatter_reduce(0, row[~late], prefix[~late], "amax")
    cut = low[row[late]] + (prefix[late] - count).clamp(min=0)
    starts = moment_places(timelines.offsets, timelines.time_ms).start
    start = torch.where(prefix[late] > count, starts[cut.clamp(max=len(starts) - 1)], 0) if len(starts) else cut
    lengths = torch.cat([early_length, prefix[late] - start])
    offsets = lengths_to_offsets(lengths)
    first = torch.cat([low, low[row[late]] + start])
    positions = torch.repeat_interleave(first, lengths) + position_in_row(offsets)
    new_row, new_prefix = row.clone(), prefix.clone()
    new_row[late] = low.shape[0] + torch.arange(int(late.sum()), device=row.device)
    new_prefix[late] = prefix[late] - start
    return Along(timelines.take(positions, offsets), new_row, new_prefix)


__all__ = ["Along", "Window", "WindowState", "windows_along"]
