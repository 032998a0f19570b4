"""Batches of timelines: many requests of a user in one pass, for rankers that train along them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.loading import behaviours_read, made_ahead
from sostenuto.schema.errors import SpecError

if TYPE_CHECKING:
    from sostenuto.data.prepared import Requests
    from sostenuto.features.collation import Collator
    from sostenuto.features.negatives import NegativeSampler
    from sostenuto.features.view import HistoryView
    from sostenuto.features.windows import FutureWindows
    from sostenuto.schema.histories import SequenceBatch

Array = npt.NDArray[Any]

_NEGATIVES = 1  # keeps the stream of negatives apart from that of the order


def timelines(user: Array, prefix: Array, low: Array, time_ms: Array, view: HistoryView) -> tuple[Array, Array]:
    """Cut the requests of users into timelines that fit a view.

    A timeline holds at most `view.recent` behaviours (and the rest of the moment that its start would split). The first
    request of one reads half of that, or everything while the history fits; evaluation reads the whole of it.

    Args:
        user, prefix: (R,) of the requests, those of a user together and rising by prefix.
        low:          (R,) int64 where the user's behaviours begin in the log.
        time_ms:      (N,) of the log.
        view:         of the run.

    Returns:
        (R,) int64 the timeline of each request, and (U,) int64 how many of the oldest behaviours each leaves out.
    """
    if view.recent is None:
        first = np.concatenate(([True], user[1:] != user[:-1])) if len(user) else np.zeros(0, bool)
        return np.cumsum(first) - 1, np.zeros(int(first.sum()), np.int64)
    half = replace(view, recent=max(1, view.recent // 2))
    opens = np.concatenate(([True], user[1:] != user[:-1])) if len(user) else np.zeros(0, bool)
    start = np.zeros(len(user), np.int64)  # of the timeline that a request opens
    newest = 0  # start of the timeline at hand
    for r in np.flatnonzero(prefix > view.recent).tolist():
        newest = 0 if r == 0 or user[r] != user[r - 1] or prefix[r - 1] <= view.recent else newest
        if opens[r] or prefix[r] - newest > view.recent:
            begin, end = int(low[r]), int(low[r] + prefix[r])
            newest = half.start(time_ms, begin, end) - begin
            opens[r], start[r] = True, newest
    return np.cumsum(opens) - 1, start[opens]


class SequenceLoader:
    """Yields batches of timelines with about `batch_requests` requests, in a seeded order.

    The requests of a user share a pass; `requests_per_pass` bounds how many (drawn anew every epoch), because a step
    whose requests are all of one user tells it less than one whose requests are of many.

    Args:
        collator:          of the data and view.
        requests:          of a split.
        rows:              its rows that are used.
        batch_requests:    requests per batch; a batch is closed by the user who reaches it.
        seed:              of order and negatives.
        prefetch:          batches made ahead.
        requests_per_pass: most requests of one user in a batch; None = all.
        negatives:         draws items that all requests are held against; None = candidates as the protocol wrote them.
        windows:           finds the behaviours after each request that are its targets; None = the candidates are.
    """

    def __init__(
        self,
        collator: Collator,
        requests: Requests,
        rows: Array,
        *,
        batch_requests: int,
        seed: int = 0,
        prefetch: int = 2,
        requests_per_pass: int | None = None,
        negatives: NegativeSampler | None = None,
        windows: FutureWindows | None = None,
    ) -> None:
        if batch_requests < 1:
            raise SpecError(f"batch_requests must be at least 1, got {batch_requests}")
        if requests_per_pass is not None and requests_per_pass < 1:
            raise SpecError(f"requests_per_pass must be at least 1 or none, got {requests_per_pass}")
        self.collator = collator
        self.requests = requests
        rows = np.asarray(rows)
        if negatives is not None and windows is None:
            rows = rows[_has_target(requests)[rows]]
        user, prefix = np.asarray(requests.user)[rows], np.asarray(requests.prefix)[rows]
        self.rows = rows[np.lexsort((rows, prefix, user))]
        self.batch_requests = batch_requests
        self.seed = seed
        self.prefetch = prefetch
        self.requests_per_pass = requests_per_pass
        self.negatives = negatives
        self.windows = windows
        self._batches: tuple[int, list[Array]] | None = None

    def __len__(self) -> int:
        return len(self.batch_rows(0))

    def batch_rows(self, epoch: int) -> list[Array]:
        """Return the rows of every batch of an epoch; the number of batches is the same for every epoch."""
        if self._batches is None or self._batches[0] != epoch:
            self._batches = (epoch, self._drawn(epoch))
        return self._batches[1]

    def _drawn(self, epoch: int) -> list[Array]:
        generator = np.random.default_rng([self.seed, epoch])
        user = np.asarray(self.requests.user)[self.rows]
        bounds = np.flatnonzero(np.concatenate(([True], user[1:] != user[:-1], [True])))
        groups: list[Array] = []
        for a, z in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            if self.requests_per_pass is None or z - a <= self.requests_per_pass:
                groups.append(self.rows[a:z])
            else:
                drawn = generator.permutation(self.rows[a:z])
                groups += np.array_split(drawn, -(-(z - a) // self.requests_per_pass))
        order = generator.permutation(len(groups))
        cuts = _even_cuts(np.array([len(groups[n]) for n in order], np.int64), self.batch_requests)
        return [np.concatenate([groups[n] for n in part]) for part in np.split(order, cuts)] if len(order) else []

    def batch_of(self, rows: Array, draw: tuple[int, int] = (0, 0)) -> SequenceBatch:
        """Return the batch of some rows; `draw` is the epoch and number that negatives are drawn by."""
        requests, behaviours = self.requests, self.collator.data.behaviours
        user, prefix = np.asarray(requests.user)[rows], np.asarray(requests.prefix, np.int64)[rows]
        _, appearance, person = np.unique(user, return_index=True, return_inverse=True)
        order = np.lexsort((rows, prefix, appearance[person.reshape(-1)]))
        rows, user, prefix = rows[order], user[order], prefix[order]
        low = np.asarray(behaviours.offsets, np.int64)[user]
        row, start = timelines(user, prefix, low, behaviours.time_ms, self.collator.view)
        drawn = None
        if self.negatives is not None:
            drawn = self.negatives.draw(np.random.default_rng([self.seed, *draw, _NEGATIVES]))
        windows = None if self.windows is None else self.windows.of(user, prefix)
        return self.collator.sequences(requests, rows, row, start, drawn, windows)

    @cached_property
    def events(self) -> Array:
        """(R,) int64 behaviours that each request of the split reads."""
        return behaviours_read(self.requests, self.collator.view)

    def batch_events(self, rows: Array) -> int:
        """Return the behaviours of a batch of some rows: of each user, those of the latest request."""
        user, length = np.asarray(self.requests.user)[rows], self.events[rows]
        people, person = np.unique(user, return_inverse=True)
        longest = np.zeros(len(people), np.int64)
        np.maximum.at(longest, person.reshape(-1), length)
        return int(longest.sum())

    def epoch(self, number: int = 0, *, start_batch: int = 0) -> Iterator[SequenceBatch]:
        """Yield the batches of an epoch from `start_batch` on."""
        plan = list(enumerate(self.batch_rows(number)))[start_batch:]
        yield from made_ahead(plan, lambda at: self.batch_of(at[1], (number, at[0])), self.prefetch)

    def __iter__(self) -> Iterator[SequenceBatch]:
        return self.epoch(0)


def _even_cuts(sizes: Array, wanted: int) -> Array:
    """Return where to cut groups of given sizes into parts of about `wanted`; the number of parts is always the same.

    >>> _even_cuts(np.array([5, 1, 1, 1, 4]), 4)
    array([1, 4])
    """
    total, groups = int(sizes.sum()), len(sizes)
    parts = min(max(1, round(total / wanted)), groups)
    number = np.arange(1, parts)
    marks = np.searchsorted(np.cumsum(sizes), number * (total / max(parts, 1)), side="left") + 1
    marks = np.maximum.accumulate(marks - number) + number  # every part has a group
    return np.asarray(np.minimum(marks, groups - parts + number))


def _has_target(requests: Requests) -> Array:
    """Return (R,) bool: requests with a positive."""
    positive = np.concatenate(([0], np.cumsum(np.asarray(requests.label) > 0)))
    offsets = np.asarray(requests.offsets)
    return np.asarray(positive[offsets[1:]] > positive[offsets[:-1]])


__all__ = ["SequenceLoader", "timelines"]
