"""Popularity against counting by hand: strictly before, and in the window."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.features.popularity import (
    WINDOW_MS,
    EventTimes,
    GrowingEventTimes,
    PopularityIndex,
    popularity_features,
)
from sostenuto.native.library import available, using

FORMS = {"plain": None, **available()}

EVENTS = st.lists(st.tuples(st.integers(2, 6), st.integers(0, 9), st.integers(0, 2)), max_size=30)


@pytest.mark.parametrize("form", FORMS)
@given(EVENTS, st.lists(st.tuples(st.integers(0, 7), st.integers(0, 10), st.integers(0, 3)), min_size=1, max_size=8))
@settings(deadline=None)
def test_popularity_counts_strictly_before_the_request(
    form: str, events: list[tuple[int, int, int]], queries: list[tuple[int, int, int]]
) -> None:
    step = WINDOW_MS // 3
    item, when, place = (np.array([e[k] for e in events], np.int64) for k in range(3))
    index = PopularityIndex(num_items=8).joined(item, when * step, place)
    asked, moment, where = (np.array([q[k] for q in queries], np.int64) for k in range(3))
    with using(FORMS[form]):
        got = popularity_features(index, asked, np.arange(len(asked)), moment * step, where)
    for q, (i, t, p) in enumerate(queries):
        before = [e for e in events if e[1] < t]
        recent = [e for e in before if (t - e[1]) * step <= WINDOW_MS]
        here = [e for e in before if e[2] == p]
        for name, pool in (("popularity", before), ("popularity_28d", recent), ("popularity_place", here)):
            share = 1e6 * sum(e[0] == i for e in pool) / max(len(pool), 1)
            np.testing.assert_allclose(got[name][q], np.log1p(share), rtol=1e-5)


def test_counts_of_an_unknown_key_are_zero() -> None:
    times = GrowingEventTimes().joined(np.array([3, 3, 5]), np.array([1, 2, 3]))
    assert times.count(np.array([4, 9, 3]), np.array([10, 10, 2])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("form", FORMS)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 7, 900, 10**6, 2**33]), st.integers(0, 5)), max_size=30),
    st.lists(st.tuples(st.sampled_from([-1, 0, 2, 7, 900, 2**33, 2**40]), st.integers(-1, 7)), max_size=20),
)
def test_counts_of_keys_far_apart_equal_counting(
    form: str, events: list[tuple[int, int]], queries: list[tuple[int, int]]
) -> None:
    key, time = (np.array([e[k] for e in events], np.int64) for k in range(2))
    asked, moment = (np.array([q[k] for q in queries], np.int64) for k in range(2))
    with using(FORMS[form]):
        got = GrowingEventTimes().joined(key, time).count(asked, moment, moment - 2)
    want = [sum(k == a and m - 2 <= t < m for k, t in events) for a, m in queries]
    assert got.tolist() == want


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 9)), max_size=8), max_size=12))
def test_events_that_come_in_parts_count_as_events_at_once(parts: list[list[tuple[int, int]]]) -> None:
    grown = GrowingEventTimes()
    for part in parts:
        grown = grown.joined(*(np.array([e[k] for e in part], np.int64) for k in range(2)))
    events = [e for part in parts for e in part]
    whole = GrowingEventTimes().joined(*(np.array([e[k] for e in events], np.int64) for k in range(2)))
    asked, moment = (grid.ravel() for grid in np.meshgrid(np.arange(-1, 7), np.arange(-4, 11)))
    assert grown.count(asked, moment, moment - 3).tolist() == whole.count(asked, moment, moment - 3).tolist()
    compacted = grown.compacted()
    assert len(compacted.levels) <= 1
    assert compacted.count(asked, moment, moment - 3).tolist() == whole.count(asked, moment, moment - 3).tolist()
    sizes = [len(level) for level in grown.levels]
    assert all(small < big / 2 for big, small in itertools.pairwise(sizes))


def test_event_times_give_their_events_back() -> None:
    key, when = np.array([900, 3, 3, 2**33]), np.array([-5, 8, 2, 10**12])
    assert [column.tolist() for column in EventTimes(key, when).events()] == [[3, 3, 900, 2**33], [2, 8, -5, 10**12]]


PARTS = st.lists(
    st.lists(
        st.tuples(st.integers(2, 7), st.sampled_from([-(2**52), -3, 0, 1, 4, 2**52]), st.integers(0, 2)), max_size=8
    ),
    max_size=8,
)


@given(PARTS, st.data())
@settings(deadline=None)
def test_events_that_are_taken_off_count_as_events_that_never_came(
    parts: list[list[tuple[int, int, int]]], data: st.DataObject
) -> None:
    index = PopularityIndex(num_items=8)
    for part in parts:
        index = index.joined(*(np.array([e[k] for e in part], np.int64) for k in range(3)))
    events = [e for part in parts for e in part]
    gone = data.draw(st.lists(st.sampled_from(range(len(events))), unique=True) if events else st.just([]))
    index = index.without(*(np.array([events[n][k] for n in gone], np.int64) for k in range(3)))
    left = [e for n, e in enumerate(events) if n not in gone]
    assert index.events == len(left)
    index = index.widened(100)
    item, moment, place = (grid.ravel() for grid in np.meshgrid(np.arange(9), [-(2**52), 0, 1, 5, 2**60], np.arange(4)))
    ever, recent = index.of_item(item, moment, moment - 4)
    here = index.of_pair(place, item, moment)
    for n, (i, m, p) in enumerate(zip(item.tolist(), moment.tolist(), place.tolist(), strict=True)):
        assert ever[n] == sum(e[0] == i and e[1] < m for e in left)
        assert recent[n] == sum(e[0] == i and m - 4 <= e[1] < m for e in left)
        assert here[n] == sum(e[0] == i and e[2] == p and e[1] < m for e in left)
    assert index.at_place(place, moment).tolist() == [
        sum(e[2] == p and e[1] < m for e in left) for m, p in zip(moment, place, strict=True)
    ]


def test_one_time_far_from_all_others_is_counted_like_any() -> None:
    key, when = np.arange(5_000), np.full(5_000, 10**12)
    when[7] = -(2**52)
    times = EventTimes(key, when)
    assert times.moments is not None  # keys times milliseconds would not fit
    grown = GrowingEventTimes((times,))
    assert grown.count(np.array([7, 8, 8]), np.array([-(2**52) + 1, 10**12, 10**12 + 1])).tolist() == [1, 0, 1]
    assert [sorted(c.tolist()) for c in times.events()] == [key.tolist(), sorted(when.tolist())]
