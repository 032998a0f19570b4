"""A hard search that always finds K: the candidate's category first, then whatever is newest."""

from __future__ import annotations

import torch
from torch import Tensor

from sostenuto.layers.selector import NOTHING, CategoryIndex, CategorySelector, SearchIndex, check_kept
from sostenuto.ops.jagged import Taken, interleave_rows, lengths_to_offsets, newest_moments, position_in_row, row_index
from sostenuto.ops.top_k import Selected


class CategoryFirstSelector:
    """The newest K behaviours of the candidate's own category; where these are fewer, the newest others fill up.

        score = 1 where the kinds are equal, 0 where they are not; of equal scores the newer behaviour

    Both parts keep the moment whole that their cut would split.
    """

    def __init__(self, kept: int) -> None:
        check_kept(kept)
        self.kept = kept
        self.same = CategorySelector(kept)

    def scores(self, query: Tensor, rows: Tensor) -> Tensor:
        """Return (Q, M) for (Q,) and (M,) kinds."""
        return (self.same.scores(query, rows) == 0).float()

    def select(self, query: Tensor, query_offsets: Tensor, index: SearchIndex | CategoryIndex) -> Selected:
        """Look every candidate's kind up, then fill from the newest K behaviours: no older one can be needed."""
        found = self.same.select(query, query_offsets, index)
        plain = index.plain if isinstance(index, CategoryIndex) else index
        missing = (self.kept - found.taken.offsets.diff()).clamp(min=0)
        candidate, position = _newest_others(query, query_offsets, plain, missing, self.kept)
        filled = lengths_to_offsets(torch.bincount(candidate, minlength=query.shape[0]))
        joined, offsets = interleave_rows(found.taken.offsets, filled)
        return Selected(found.query_offsets, Taken(torch.cat([found.taken.positions, position])[joined], offsets))


def _newest_others(
    query: Tensor, query_offsets: Tensor, index: SearchIndex, missing: Tensor, kept: int
) -> tuple[Tensor, Tensor]:
    """Return (M,) candidates, rising, and positions of the newest behaviours of other kinds that fill them up.

    A candidate that misses m behaviours has K - m of its own kind, so that the newest K behaviours hold m others or
    all there are.
    """
    window = newest_moments(index.offsets, index.time_ms, kept)
    low, high = window.offsets[:-1], window.offsets[1:]
    asked = row_index(query_offsets)
    lengths = torch.where(missing > 0, (high - low)[asked], 0)
    pairs = lengths_to_offsets(lengths)
    candidate = row_index(pairs)
    position = window.positions[high[asked[candidate]] - 1 - position_in_row(pairs)]  # the newest first
    other = index.rows[position] != query[candidate]
    other |= query[candidate] == NOTHING  # it equals nothing
    candidate, position = candidate[other], position[other]
    place = position_in_row(lengths_to_offsets(torch.bincount(candidate, minlength=query.shape[0])))
    time_ms = index.time_ms[position]
    last = torch.zeros_like(missing)  # time of the last one that is wanted; everything, where there are fewer
    edge = place == missing[candidate] - 1
    last[candidate[edge]] = time_ms[edge]
    bounded = torch.zeros_like(missing, dtype=torch.bool)
    bounded[candidate[edge]] = True
    taken = (place < missing[candidate]) | (bounded[candidate] & (time_ms == last[candidate]))
    return candidate[taken], position[taken]


__all__ = ["CategoryFirstSelector"]
