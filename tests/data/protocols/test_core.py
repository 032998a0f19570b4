"""Prefix lengths, moments and local days against slow references."""

from __future__ import annotations

import datetime
import zoneinfo

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.data.prepared import Behaviours
from sostenuto.data.protocols.core import event_users, local_days, moments, prefix_lengths

logs = st.lists(st.lists(st.integers(-5, 5), max_size=12), min_size=1, max_size=6)


def behaviours(times: list[list[int]]) -> Behaviours:
    rows = [[], [], *map(sorted, times)]
    flat = np.array([t for row in rows for t in row], np.int64)
    n = len(flat)
    return Behaviours(
        offsets=np.append(0, np.cumsum([len(row) for row in rows])).astype(np.int64),
        item=np.full(n, 2, np.int32),
        time_ms=flat,
        action=np.zeros(n, np.int16),
        value=np.zeros(n, np.float32),
        place=np.zeros(n, np.int32),
    )


@given(logs, st.lists(st.tuples(st.integers(0, 7), st.integers(-7, 7)), max_size=20))
def test_prefix_counts_events_strictly_before(times: list[list[int]], asked: list[tuple[int, int]]) -> None:
    b = behaviours(times)
    asked = [(user, at) for user, at in asked if user < len(b.offsets) - 1]
    user = np.array([u for u, _ in asked], np.int64)
    at = np.array([t for _, t in asked], np.int64)
    rows = [[], [], *times]
    assert prefix_lengths(b, user, at).tolist() == [sum(t < now for t in rows[u]) for u, now in asked]


@given(logs)
def test_moments_are_the_distinct_user_times(times: list[list[int]]) -> None:
    b = behaviours(times)
    found = moments(b)
    expected = sorted({(u + 2, t) for u, row in enumerate(times) for t in row})
    assert list(zip(found.user.tolist(), found.time_ms.tolist(), strict=True)) == expected
    assert found.first[-1] == len(b.item)
    users = event_users(b)
    for m in range(len(found)):
        rows = slice(found.first[m], found.first[m + 1])
        assert (b.time_ms[rows] == found.time_ms[m]).all()
        assert (users[rows] == found.user[m]).all()


@given(logs, st.integers(0, 80), st.integers(0, 80))
def test_users_of_a_stretch_are_those_of_all_events(times: list[list[int]], start: int, stop: int) -> None:
    b = behaviours(times)
    start, stop = sorted((min(start, len(b.item)), min(stop, len(b.item))))
    np.testing.assert_array_equal(event_users(b, start, stop), event_users(b)[start:stop])


@given(st.lists(st.integers(0, 2_000_000_000), min_size=1, max_size=10))
@settings(max_examples=30)
def test_local_days_follow_the_clock_of_the_zone(seconds: list[int]) -> None:
    zone = zoneinfo.ZoneInfo("America/New_York")
    epoch = datetime.date(1970, 1, 1)
    expected = [(datetime.datetime.fromtimestamp(s, zone).date() - epoch).days for s in seconds]
    assert local_days(np.array(seconds, np.int64) * 1000, "America/New_York").tolist() == expected
