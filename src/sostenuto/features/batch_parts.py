"""A batch in parts that each fit a pass through a ranker: memory follows the parts, results the whole.

How many requests make a step is a matter of learning; how many behaviours are worked on at once is a matter of memory
and caches. So a batch is a number of requests, and a pass is a number of behaviours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, cast

if TYPE_CHECKING:
    from sostenuto.schema.histories import RequestBatch, SequenceBatch

PAIRS_PER_EVENT = 8  # a pass may have this many times as many pairs of behaviour and candidate as behaviours


BatchKind = TypeVar("BatchKind", bound="RequestBatch | SequenceBatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPart(Generic[BatchKind]):
    """Some requests of a batch."""

    batch: BatchKind
    candidates: slice  # of the whole batch
    share: float  # of its requests


def cut_points(events: Sequence[int], candidates: Sequence[int], max_events: int) -> list[int]:
    """Return where passes begin, and the end: each as long as it stays in bounds, a request beyond them alone.

    >>> cut_points([5, 5, 5, 30, 1], [1, 1, 1, 1, 1], 12)
    [0, 2, 3, 4, 5]
    """
    points, work, pairs = [0], 0, 0
    for at, (length, count) in enumerate(zip(events, candidates, strict=True)):
        beyond = work + length > max_events or pairs + length * count > PAIRS_PER_EVENT * max_events
        if beyond and at > points[-1]:
            points.append(at)
            work = pairs = 0
        work += length
        pairs += length * count
    return [*points, len(events)]


def batch_parts(batch: BatchKind, max_events: int) -> Iterator[BatchPart[BatchKind]]:
    """Cut a batch into runs of users of at most `max_events` behaviours and PAIRS_PER_EVENT times as many pairs.

    A user is a request of a request batch, and a timeline with its requests of a sequence batch.
    """
    candidates = batch.candidates.offsets
    bounds = getattr(batch, "request_offsets", None)
    if bounds is not None:  # where the requests of each timeline begin
        candidates = candidates[bounds]
        requests = bounds.diff().tolist()
    else:
        requests = [1] * batch.histories.num_rows
    events, count = batch.histories.lengths.tolist(), candidates.diff().tolist()
    points = cut_points(events, count, max_events)
    if len(points) == 2:
        yield BatchPart(batch=batch, candidates=slice(0, batch.labels.shape[0]), share=1.0)
        return
    start, total = 0, max(sum(requests), 1)
    for first, last in itertools.pairwise(points):
        end = start + sum(count[first:last])
        share = sum(requests[first:last]) / total
        yield BatchPart(batch=cast("BatchKind", batch.part(first, last)), candidates=slice(start, end), share=share)
        start = end


__all__ = ["PAIRS_PER_EVENT", "BatchPart", "batch_parts", "cut_points"]
