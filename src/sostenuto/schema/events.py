"""Event: one logged line as it reaches a running service, with raw ids as text.

Raw, because the vocabulary belongs to a model's bundle, and what users did outlives every model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sostenuto.schema.errors import DataError

MOST_ID_BYTES = 500  # of one id in UTF-8: a key of LMDB holds 511 bytes
MOST_TIME_MS = 2**52  # both ways; exact in a float64, which is what Redis' scripts reckon with
MOST_VALUE = 3.4028234663852886e38  # largest float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One thing that a user did with an item.

    `event_id` names the event within its user: sending it again changes nothing. An empty action or place, a `value` of
    NaN and a field that is absent mean "missing". Fields are those of `FeatureSpec.behaviour_fields`: text where the
    field is categorical, a number where it is numeric.

    Raises:
        DataError: an id is empty or longer than `MOST_ID_BYTES`, a time or value is out of range, a type is wrong.
    """

    event_id: str
    user_id: str
    item_id: str
    time_ms: int  # epoch milliseconds
    action: str = ""
    value: float = math.nan
    place: str = ""
    fields: Mapping[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_id("event_id", self.event_id)
        check_id("user_id", self.user_id)
        check_id("item_id", self.item_id)
        if self.action != "":
            check_id("action", self.action)
        if self.place != "":
            check_id("place", self.place)
        if type(self.time_ms) is not int or not -MOST_TIME_MS <= self.time_ms <= MOST_TIME_MS:
            raise DataError(
                f"event time_ms must be a whole number of milliseconds within {MOST_TIME_MS} of 1970, "
                f"got {self.time_ms!r}; send epoch milliseconds"
            )
        check_number("value", self.value)
        for name, value in self.fields.items():
            if isinstance(value, str):
                if value != "":
                    check_id(f"field {name}", value)
            else:
                check_number(f"field {name}", value)


def check_id(name: str, text: object) -> None:
    """Refuse what cannot be an id: no text, empty, too long, not to be written as UTF-8."""
    if not isinstance(text, str) or not text:
        raise DataError(f"event {name} must be text that is not empty, got {text!r}; send the id as a string")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"event {name} must be valid Unicode, got {text!r}; send UTF-8") from error
    if size > MOST_ID_BYTES:
        raise DataError(
            f"event {name} must be at most {MOST_ID_BYTES} bytes of UTF-8, got {size}; send a hash of longer ids"
        )


def check_number(name: str, value: object) -> None:
    """Refuse what is no number, infinite, or beyond float32; NaN is "missing" and passes."""
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > MOST_VALUE:
        raise DataError(
            f"event {name} must be a finite float32 number, or NaN where missing, got {value!r}; leave it out"
        )


__all__ = ["MOST_ID_BYTES", "MOST_TIME_MS", "MOST_VALUE", "Event", "check_id", "check_number"]
