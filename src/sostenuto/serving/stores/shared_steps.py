"""Steps that are the same in every store: what a compaction drops, how pages become blocks, what is refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.schema.errors import SpecError, StoreError, StreamTrimmed, did_you_mean
from sostenuto.serving.stores.layout import TIME_BIAS, RecordLayout
from sostenuto.serving.stores.packing import CHANGE
from sostenuto.serving.stores.store import (
    CompactionPolicy,
    EventBlock,
    Head,
    StoredItem,
    StoredUser,
    StoreSummary,
)

if TYPE_CHECKING:
    from sostenuto.serving.stores.store import Store

Array = npt.NDArray[Any]

ITEM_PAGE = 1_000
SNAPSHOT_NAME = re.compile(r"[a-z0-9_-]{1,64}")


def may_drop(head: Head, policy: CompactionPolicy, now_ms: int) -> bool:
    """Whether a policy may drop something of a user, by her head alone."""
    too_many = policy.most_events is not None and head.count > policy.most_events
    too_old = policy.most_age_ms is not None and head.count > 0 and head.first_ms < now_ms - policy.most_age_ms
    return too_many or too_old


def events_to_drop(records: Array, policy: CompactionPolicy, now_ms: int) -> int:
    """Return how many of the oldest records go: whole moments only."""
    times = records["time"].astype(np.int64) - TIME_BIAS
    count = 0
    if policy.most_events is not None and len(times) > policy.most_events:
        count = int(np.searchsorted(times, times[len(times) - policy.most_events], side="left"))
    if policy.most_age_ms is not None:
        count = max(count, int(np.searchsorted(times, now_ms - policy.most_age_ms, side="left")))
    return count


def head_after_dropping(head: Head, records: Array, count: int, sequence: int) -> Head:
    """Return the head of a user whose `count` oldest records were dropped by the change `sequence`."""
    left = records[count:]
    return dataclasses.replace(
        head,
        revision=sequence,
        count=len(left),
        first_ms=int(left["time"][0]) - TIME_BIAS if len(left) else 0,
        last_ms=head.last_ms if len(left) else 0,
        last_sequence=int(left["sequence"].max()) if len(left) else 0,
        floor_ms=int(records["time"][count - 1]) - TIME_BIAS,
    )


def cut_records(records: Array, before_ms: int | None, after_sequence: int | None) -> Array:
    """Return the records strictly before a moment, and of those the ones that came after a sequence."""
    if before_ms is not None and len(records) and int(records["time"][-1]) >= before_ms + TIME_BIAS:
        times = records["time"].astype(np.int64)
        records = records[: int(np.searchsorted(times, before_ms + TIME_BIAS, side="left"))]
    if after_sequence is not None:
        records = records[records["sequence"].astype(np.int64) > after_sequence]
    return records


def change_of(user: int, record: Any) -> bytes:
    """Return the stream's entry of a stored record."""
    time_ms = int(record["time"]) - TIME_BIAS
    return CHANGE.pack(0, user, time_ms, int(record["item"]), int(record["action"]), int(record["place"]))


def event_blocks(pages: Iterable[list[StoredUser]], layout: RecordLayout, batch: int) -> Iterator[EventBlock]:
    """Yield the events of pages of users, in blocks of at least `batch` events but the last."""
    waiting: list[StoredUser] = []
    num_events = 0
    for page in pages:
        waiting += page
        num_events += sum(len(user.records) for user in page)
        if num_events >= batch:
            yield _block(waiting, layout)
            waiting, num_events = [], 0
    if num_events:
        yield _block(waiting, layout)


def _block(users: list[StoredUser], layout: RecordLayout) -> EventBlock:
    codes = np.repeat([user.head.user for user in users], [len(user.records) for user in users]).astype(np.uint32)
    return EventBlock.of(codes, np.frombuffer(b"".join(user.records.tobytes() for user in users), layout.dtype))


def item_pages(store: Store) -> Iterator[StoredItem]:
    """Yield all items of a store by revision."""
    after = 0
    while page := store.changed_items(after, ITEM_PAGE):
        yield from page
        after = page[-1].revision


def check_kind(layout: RecordLayout, kind: str) -> None:
    """Refuse a kind that has no names."""
    if kind not in layout.name_kinds:
        raise SpecError(
            f"kind of names must be one of {', '.join(layout.name_kinds)}, got {kind!r}."
            f"{did_you_mean(kind, layout.name_kinds)}"
        )


def check_snapshot_name(name: str) -> None:
    """Refuse what does not stand alone in a key."""
    if not SNAPSHOT_NAME.fullmatch(name):
        raise SpecError(f"name of a snapshot must be of small letters, digits, '-' and '_', got {name!r}; rename it")


def check_layout(there: RecordLayout, wanted: RecordLayout | None, where: str) -> None:
    """Refuse a store that lacks fields that are asked for."""
    missing = [field for field in wanted.fields if field not in there.fields] if wanted is not None else []
    if missing:
        raise SpecError(
            f"the store {where} must have the event fields {missing}, it was made with {list(there.fields)}; "
            "make a new one with both"
        )


def check_trimmed(after: int, trimmed: int) -> None:
    """Refuse to tell changes of which some are gone."""
    if after < trimmed:
        raise StreamTrimmed(
            f"changes must be asked for from sequence {trimmed} on, got {after}: those between were trimmed; "
            "take last_sequence, then read all_events"
        )


def check_empty(layout: RecordLayout, summary: StoreSummary, there: int, where: str) -> None:
    """Refuse to fill a store that holds something, or of another layout."""
    if there:
        raise StoreError(f"the store {where} must be empty to be filled, it is not; name a new one")
    if layout != summary.layout:
        raise SpecError(
            f"the store {where} must have the event fields {list(summary.layout.fields)} to be filled, it has "
            f"{list(layout.fields)}; name a new one"
        )


__all__ = [
    "change_of",
    "check_empty",
    "check_kind",
    "check_layout",
    "check_snapshot_name",
    "check_trimmed",
    "cut_records",
    "event_blocks",
    "events_to_drop",
    "head_after_dropping",
    "item_pages",
    "may_drop",
]
