"""Every slice puts each row in one part, and says the same of every run."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from tests.evaluation.rows import make_predictions

from sostenuto.evaluation.slices import (
    by_activity,
    by_history_length,
    by_new_item,
    by_popularity,
    by_repeat,
    by_week,
    standard_slices,
)


@pytest.mark.parametrize("cut", standard_slices(make_predictions()), ids=lambda cut: cut.name)
def test_each_row_lies_in_one_part_and_no_part_is_empty(cut):
    p = make_predictions()
    assert cut.code.shape == p.label.shape
    assert np.array_equal(np.unique(cut.code), np.arange(len(cut.parts)))


@pytest.mark.parametrize(
    "cut", [c for c in standard_slices(make_predictions()) if c.by == "request"], ids=lambda c: c.name
)
def test_slices_by_request_keep_requests_whole(cut):
    p = make_predictions()
    for request in np.unique(p.request):
        assert len(np.unique(cut.code[p.request == request])) == 1


def test_slices_by_candidate_keep_every_negative_and_only_their_own_positives():
    p = make_predictions()
    cut = by_repeat(p)
    rows = cut.rows(cut.parts.index("first"), p.label)
    assert rows[p.label == 0].all()
    assert np.array_equal(rows[p.label == 1], p.prior_count[p.label == 1] == 0)


def test_history_length_parts_are_named_by_their_bounds():
    p = make_predictions()
    cut = by_history_length(p, edges=(1, 2, 100))
    for name, code in zip(cut.parts, range(len(cut.parts)), strict=True):
        lengths = p.history_length[cut.code == code]
        if name == "2\N{EN DASH}99":
            assert lengths.min() >= 2
            assert lengths.max() <= 99
        if name == "100+":
            assert lengths.min() >= 100


def test_weeks_start_at_local_midnight_of_the_first_day():
    zone = ZoneInfo("America/New_York")
    p = make_predictions()
    start = int(datetime(2017, 7, 13, 15, 30, tzinfo=zone).timestamp() * 1000)
    cut = by_week(p, start_ms=start, time_zone="America/New_York")
    assert cut.parts[0] == "2017-07-13"
    for code, name in enumerate(cut.parts):
        first = datetime.fromtimestamp(int(p.time_ms[cut.code == code].min()) / 1000, UTC).astimezone(zone)
        begin = datetime.fromisoformat(name).replace(tzinfo=zone)
        assert 0 <= (first.date() - begin.date()).days < 7 or first < begin  # rows before the start join week 1


def test_a_clock_change_does_not_move_midnight():
    zone = ZoneInfo("America/New_York")
    p = make_predictions(requests=2, users=2)
    before = int(datetime(2017, 11, 1, 12, tzinfo=zone).timestamp() * 1000)
    late = int(datetime(2017, 11, 7, 23, 30, tzinfo=zone).timestamp() * 1000)  # day 7 of the week, an hour later by UTC
    time_ms = np.where(p.request == p.request.min(), before, late)
    moved = type(p)(**{n: getattr(p, n) for n in p.__slots__ if n != "time_ms"}, time_ms=time_ms)
    assert by_week(moved, time_zone="America/New_York").parts == ("2017-11-01",)


def test_activity_counts_requests_not_rows():
    p = make_predictions(requests=40, users=5)
    cut = by_activity(p, parts=2)
    requests = {user: len(np.unique(p.request[p.user == user])) for user in np.unique(p.user)}
    low = [requests[user] for user in np.unique(p.user[cut.code == 0])]
    high = [requests[user] for user in np.unique(p.user[cut.code == len(cut.parts) - 1])]
    assert max(low) < min(high)


def test_popularity_and_novelty_follow_the_training_count():
    p = make_predictions()
    cut = by_popularity(p)
    highest = [p.item_count[cut.code == code].max() for code in range(len(cut.parts))]
    lowest = [p.item_count[cut.code == code].min() for code in range(len(cut.parts))]
    assert all(high < low for high, low in zip(highest, lowest[1:], strict=False))
    new = by_new_item(p)
    assert np.array_equal(new.code == new.parts.index("new"), p.is_new_item)
