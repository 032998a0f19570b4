"""What must hold between the parts of one user, in any store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sostenuto.serving.stores.layout import TIME_BIAS
from sostenuto.serving.stores.store import StoredUser


def problems_of_user(
    user: StoredUser, ids: Mapping[bytes, int], *, last_sequence: int, next_user: int, num_names: Sequence[int]
) -> Iterator[str]:
    """Yield what is wrong with a user, a sentence each. Users are named by their code: reports must hold no ids.

    Args:
        user: as read.
        ids: sequence by hash of event id.
        last_sequence: of the store.
        next_user: code of the next new user.
        num_names: of items, actions and places.
    """
    head, records = user.head, user.records
    who = f"user {head.user}"
    times = records["time"].astype(np.int64) - TIME_BIAS
    sequences = records["sequence"].astype(np.int64)
    if head.user >= next_user:
        yield f"{who}: her code was never given"
    if head.count != len(records):
        yield f"{who}: the head counts {head.count} events, there are {len(records)}"
    if len(records):
        if (head.first_ms, head.last_ms, head.last_sequence) != (times[0], times[-1], sequences.max()):
            yield f"{who}: the head does not fit the events"
        order = np.lexsort((sequences, times))
        if (order != np.arange(len(order))).any():
            yield f"{who}: events are not in order"
        if times[0] <= head.floor_ms:
            yield f"{who}: events at or below the floor of compaction"
        least_behind = np.minimum.accumulate(sequences[::-1])[::-1][1:]
        late = sequences[:-1][sequences[:-1] > least_behind]  # an event that was there before stands behind it
        if len(late) and late.max() > head.late_sequence:
            yield f"{who}: a late event is not known as late"
    if max(head.revision, head.last_sequence, head.late_sequence) > last_sequence or head.born > head.revision:
        yield f"{who}: sequences beyond the store's"
    there = {bytes(each): int(sequence) for each, sequence in zip(records["id_hash"], sequences, strict=True)}
    if len(there) != len(records):
        yield f"{who}: an event is there twice"
    if there != dict(ids):
        yield f"{who}: ids of events do not fit the events"
    for name, known in zip(("item", "action", "place"), num_names, strict=True):
        if len(records) and int(records[name].max()) > known:
            yield f"{who}: a code of kind {name} has no name"


__all__ = ["problems_of_user"]
