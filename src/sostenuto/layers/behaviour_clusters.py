"""Old behaviours as clusters: what TWIN-V2 (arXiv:2407.16357) searches in place of a life's behaviours.

A closed period's behaviours of one user and action are split along a tree of items, built once before training, until
no cluster holds more than so many; a cluster is one virtual behaviour. The newest period stays open: its behaviours
stand alone until a later event closes it. So nothing that has been clustered is ever looked at again, and a later event
is folded in exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.encoded_history import EncodedHistory
from sostenuto.ops.grouping import halving_tree, split_groups
from sostenuto.ops.jagged import interleave_rows, lengths_to_offsets, newest_time, row_index
from sostenuto.ops.table_rows import spread_rows
from sostenuto.schema.histories import History

DAY_MS = 86_400_000
LEVELS = 16  # of the tree of items
ACTION, CODE, ITEM = 0, 1, 2  # columns of `about`; category levels follow


@dataclass(frozen=True, kw_only=True, slots=True)
class Clusters:
    """Behaviours of B users, some of them clusters; a value."""

    history: EncodedHistory  # means of vectors, side terms and times; `side` has ln n added; place 0 where they differ
    projected: Tensor  # (N, P) means
    size: Tensor  # (N,) int64 behaviours of each
    about: Tensor  # (N, S) int64 by which behaviours that stand alone are grouped later


class BehaviourClusters(nn.Module):
    """Group, average, and fold in.

    Args:
        num_items: items with a place in the tree; others share the root.
        most: behaviours of a cluster.
        days: length of a period, from 1970 on.
    """

    codes: Tensor

    def __init__(self, num_items: int, *, most: int, days: float) -> None:
        super().__init__()
        self.most = most
        self.period_ms = int(days * DAY_MS)
        self.register_buffer("codes", torch.zeros(num_items, dtype=torch.int64))

    def build(self, vectors: Tensor) -> None:
        """Make the tree of (I, V) item vectors."""
        self.codes.copy_(halving_tree(vectors, LEVELS))

    def about(self, histories: History) -> Tensor:
        """Return (N, S) what behaviours are grouped by."""
        item = histories.item
        code = torch.where(item < self.codes.shape[0], self.codes[item.clamp(max=self.codes.shape[0] - 1)], 0)
        return torch.cat([torch.stack([histories.action, code, item], 1), histories.category], 1)

    def encode(self, history: EncodedHistory, projected: Tensor, about: Tensor) -> Clusters:
        """Cluster all periods but the newest of each user.

        Args:
            history: of N behaviours; its side terms are there.
            projected: (N, P) what is averaged beside their vectors.
            about: (N, S).
        """
        alone = self.single(history, projected, about)
        return self._closed(alone, torch.full_like(history.lengths, torch.iinfo(torch.int64).min))

    def joined(self, state: Clusters, later: Clusters) -> Clusters:
        """Fold later events, each alone, in: periods that they close are clustered; equal to encoding everything anew.

        Args:
            state: of earlier behaviours.
            later: as `single` gives it.
        """
        positions, _ = interleave_rows(state.history.offsets, later.history.offsets)
        both = Clusters(
            history=state.history.joined(later.history),
            projected=torch.cat([state.projected, later.projected])[positions],
            size=torch.cat([state.size, later.size])[positions],
            about=torch.cat([state.about, later.about])[positions],
        )
        return self._closed(both, self._newest(state.history))

    def single(self, history: EncodedHistory, projected: Tensor, about: Tensor) -> Clusters:
        """Return behaviours as clusters of one."""
        return Clusters(history=history, projected=projected, size=torch.ones_like(history.time_ms), about=about)

    def _newest(self, history: EncodedHistory) -> Tensor:
        """Return (B,) the period of the newest behaviour, which is open."""
        return newest_time(history.offsets, history.time_ms) // self.period_ms

    def _closed(self, given: Clusters, was_open: Tensor) -> Clusters:
        """Cluster the behaviours of periods from (B,) `was_open` up to the newest, which stays open."""
        history = given.history
        row, period = row_index(history.offsets), history.time_ms // self.period_ms
        closing = ((period >= was_open[row]) & (period < self._newest(history)[row])).nonzero().squeeze(1)
        if not closing.numel():
            return given
        number = torch.arange(row.shape[0], device=row.device)
        number[closing] = row.shape[0] + self._grouped(given, row[closing], period[closing], closing)
        distinct, cluster = torch.unique(number, return_inverse=True)
        return self._merged(given, row, cluster, distinct.shape[0])

    def _grouped(self, given: Clusters, row: Tensor, period: Tensor, closing: Tensor) -> Tensor:
        about = given.about[closing]
        start = torch.unique(torch.stack([row, period, about[:, ACTION]], 1), dim=0, return_inverse=True)[1]
        code, item = about[:, CODE], about[:, ITEM]
        bits = [(code >> shift) & 1 for shift in reversed(range(LEVELS))] if bool(code.any()) else []
        levels = list(about[:, ITEM + 1 :].unbind(1))
        rank = torch.empty_like(closing)
        # runs of one item by time; of one moment by place, which is all that may differ and is kept
        order = given.history.place[closing].sort(stable=True).indices
        order = order[given.history.time_ms[closing][order].sort(stable=True).indices]
        rank[order] = torch.arange(len(closing), device=closing.device)
        return split_groups(start, [*bits, *levels, item], rank, self.most)

    def _merged(self, given: Clusters, row: Tensor, cluster: Tensor, count: int) -> Clusters:
        """Average the members of every cluster; clusters stand in the order of their times."""
        history, size = given.history, torch.bincount(cluster, minlength=count)

        def mean(values: Tensor) -> Tensor:
            return values.new_zeros(count, values.shape[1]).index_add(0, cluster, values) / size[:, None]

        member = torch.empty(count, dtype=torch.int64, device=row.device)
        member[cluster] = torch.arange(row.shape[0], device=row.device)  # any of them: for what they share
        since = history.time_ms - history.time_ms[member][cluster]
        time_ms = history.time_ms[member] + torch.div(
            torch.zeros_like(size).index_add(0, cluster, since), size, rounding_mode="floor"
        )
        low, high = (history.place[member].scatter_reduce(0, cluster, history.place, how) for how in ("amin", "amax"))
        of_row = row[member]
        order = time_ms.sort(stable=True).indices
        order = order[of_row[order].sort(stable=True).indices]
        log_size = size.to(history.key.dtype).log()[:, None]
        assert history.side is not None
        return Clusters(
            history=EncodedHistory(
                offsets=lengths_to_offsets(torch.bincount(of_row, minlength=history.offsets.shape[0] - 1)),
                key=spread_rows(mean(history.key), order),
                side=(mean(history.side) + log_size)[order],
                time_ms=time_ms[order],
                place=torch.where(low == high, low, 0)[order],
            ),
            projected=spread_rows(mean(given.projected), order),
            size=torch.zeros_like(size).index_add(0, cluster, given.size)[order],
            about=given.about[member][order],
        )


__all__ = ["BehaviourClusters", "Clusters"]
