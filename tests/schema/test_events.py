"""What an event may be."""

import math

import pytest

from sostenuto.schema.errors import DataError
from sostenuto.schema.events import MOST_ID_BYTES, MOST_TIME_MS, MOST_VALUE, Event

GOOD = {"event_id": "e", "user_id": "u", "item_id": "i", "time_ms": 0}


def test_all_but_ids_and_time_may_be_missing():
    event = Event(**GOOD)
    assert (event.action, event.place, event.fields) == ("", "", {})
    assert math.isnan(event.value)


@pytest.mark.parametrize("name", ["event_id", "user_id", "item_id"])
@pytest.mark.parametrize("wrong", ["", 5, None, "a" * (MOST_ID_BYTES + 1), "é" * (MOST_ID_BYTES // 2 + 1), "\ud800"])
def test_an_id_that_is_none_is_refused(name, wrong):
    with pytest.raises(DataError, match=f"event {name} must be"):
        Event(**{**GOOD, name: wrong})


@pytest.mark.parametrize("wrong", [1.0, "1", None, True, MOST_TIME_MS + 1, -MOST_TIME_MS - 1])
def test_a_time_that_is_no_whole_number_in_range_is_refused(wrong):
    with pytest.raises(DataError, match="time_ms must be"):
        Event(**{**GOOD, "time_ms": wrong})


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, 1e39, "1", None, True, 10**400])
def test_a_value_that_float32_cannot_hold_is_refused(wrong):
    with pytest.raises(DataError, match="must be a finite float32"):
        Event(**GOOD, value=wrong)
    if not isinstance(wrong, str):
        with pytest.raises(DataError, match="field price must be"):
            Event(**GOOD, fields={"price": wrong})


def test_the_largest_values_pass():
    Event(**{**GOOD, "time_ms": -MOST_TIME_MS, "user_id": "é" * (MOST_ID_BYTES // 2)}, value=MOST_VALUE)


@pytest.mark.parametrize("name", ["action", "place"])
def test_an_action_or_place_that_is_no_text_is_refused(name):
    with pytest.raises(DataError, match=f"event {name} must be"):
        Event(**GOOD, **{name: 3})
