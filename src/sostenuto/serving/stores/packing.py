"""The bytes that both stores share: heads, changes, states, hashes, JSON, and the parts of a record."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from sostenuto.schema.errors import DataError, did_you_mean
from sostenuto.schema.events import Event
from sostenuto.serving.stores.layout import TIME_BIAS, RecordLayout
from sostenuto.serving.stores.store import MOST_JSON_BYTES, Change, Head, StoredState

MOST_BATCH = 10_000  # events of one transaction: bounds how long others wait
HASH_BYTES = 16

# redis_scripts.py has the same formats in Lua
HEAD = struct.Struct(">IQQqqQQqQ")  # the fields of Head, in order
CHANGE = struct.Struct(">BIqIII")  # kind, user, time_ms, item, action, place
STATE = struct.Struct(">Qq")  # revision, newest_ms; the blob follows
NUMBER = struct.Struct(">Q")  # sequence or revision
CODE = struct.Struct(">I")  # as a key: sorts as codes do
EVENT_START = struct.Struct(">QQ16s")  # time, sequence, id hash; then little-endian item, action, place, value, fields
VALUE = struct.Struct("<f")

CHANGE_KINDS = ("event", "compacted", "deleted")


def pack_head(head: Head) -> bytes:
    """Return the bytes of a head."""
    return HEAD.pack(
        *(head.user, head.revision, head.count, head.first_ms, head.last_ms),
        *(head.last_sequence, head.late_sequence, head.floor_ms, head.born),
    )


def unpack_head(packed: bytes | memoryview) -> Head:
    """Return the head of its bytes."""
    user, revision, count, first_ms, last_ms, last_sequence, late_sequence, floor_ms, born = HEAD.unpack(packed)
    return Head(
        user=user,
        revision=revision,
        count=count,
        first_ms=first_ms,
        last_ms=last_ms,
        last_sequence=last_sequence,
        late_sequence=late_sequence,
        floor_ms=floor_ms,
        born=born,
    )


def unpack_change(sequence: int, packed: bytes | memoryview, user_id: str | None) -> Change:
    """Return a change of its bytes."""
    kind, user, time_ms, item, action, place = CHANGE.unpack(packed)
    return Change(
        sequence=sequence,
        kind=CHANGE_KINDS[kind],  # type: ignore[arg-type]
        user=user,
        user_id=user_id,
        time_ms=time_ms,
        item=item,
        action=action,
        place=place,
    )


def unpack_state(packed: bytes | memoryview) -> StoredState:
    """Return a state of its bytes."""
    revision, newest_ms = STATE.unpack_from(packed)
    return StoredState(revision=revision, newest_ms=newest_ms, blob=bytes(packed[STATE.size :]))


def event_hash(event_id: str) -> bytes:
    """Return what stands for an event's id among its user's: 128 bits, so that no two of one user ever meet."""
    return blake2b(event_id.encode(), digest_size=HASH_BYTES).digest()


def user_hash(salt: bytes, user_id: str) -> bytes:
    """Return what stands for a deleted user in the list of deletions."""
    return blake2b(user_id.encode(), digest_size=HASH_BYTES, key=salt).digest()


def json_bytes(what: str, fields: Mapping[str, Any]) -> bytes:
    """Return fields as JSON, or refuse what JSON has no words for, or too much of it."""
    try:
        packed = json.dumps(dict(fields), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"fields of {what} must be JSON-like with finite numbers, they are not ({error}); leave such values out"
        ) from error
    if len(packed) > MOST_JSON_BYTES:
        raise DataError(
            f"fields of {what} must be at most {MOST_JSON_BYTES:,} bytes of JSON, got {len(packed):,}; store less"
        )
    return packed


def check_events(layout: RecordLayout, events: Sequence[Event]) -> None:
    """Raise a DataError when a batch is too long or an event's fields do not fit the layout."""
    if len(events) > MOST_BATCH:
        raise DataError(f"a batch must hold at most {MOST_BATCH:,} events, got {len(events):,}; send it in parts")
    known = layout.kind_of
    for event in events:
        for name, value in event.fields.items():
            kind = known.get(name)
            if kind is None:
                raise DataError(
                    f"event fields must be of {sorted(known)}, got {name!r}; leave it out or make a store "
                    f"that has it.{did_you_mean(name, known)}"
                )
            if isinstance(value, str) != (kind == "categorical"):
                wanted = "text" if kind == "categorical" else "a number"
                raise DataError(f"event field {name!r} is {kind} and must be {wanted}, got {value!r}; send {wanted}")


def biased(time_ms: int) -> int:
    """Return a time as records hold it."""
    return time_ms + TIME_BIAS


def numeric_field(event: Event, name: str) -> float:
    """Return a numeric field, NaN where it is absent."""
    value = event.fields.get(name, math.nan)
    return float(value)


def text_field(event: Event, name: str) -> str:
    """Return a categorical field, empty where it is absent."""
    value = event.fields.get(name, "")
    return str(value)


__all__ = [
    "CHANGE",
    "CHANGE_KINDS",
    "CODE",
    "EVENT_START",
    "HASH_BYTES",
    "HEAD",
    "MOST_BATCH",
    "NUMBER",
    "STATE",
    "VALUE",
    "biased",
    "check_events",
    "event_hash",
    "json_bytes",
    "numeric_field",
    "pack_head",
    "text_field",
    "unpack_change",
    "unpack_head",
    "unpack_state",
    "user_hash",
]
