"""Popularity against counting by hand: strictly before, and in the window."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.features.popularity import WINDOW_MS, EventTimes, PopularityIndex

EVENTS = st.lists(st.tuples(st.integers(2, 6), st.integers(0, 9), st.integers(0, 2)), max_size=30)


@given(EVENTS, st.lists(st.tuples(st.integers(0, 7), st.integers(0, 10), st.integers(0, 3)), min_size=1, max_size=8))
@settings(deadline=None)
def test_popularity_counts_strictly_before_the_request(
    events: list[tuple[int, int, int]], queries: list[tuple[int, int, int]]
) -> None:
    step = WINDOW_MS // 3
    item, when, place = (np.array([e[k] for e in events], np.int64) for k in range(3))
    index = PopularityIndex(item, when * step, place, num_items=8)
    asked, moment, where = (np.array([q[k] for q in queries], np.int64) for k in range(3))
    got = index.features(asked, np.arange(len(asked)), moment * step, where)
    for q, (i, t, p) in enumerate(queries):
        before = [e for e in events if e[1] < t]
        recent = [e for e in before if (t - e[1]) * step <= WINDOW_MS]
        here = [e for e in before if e[2] == p]
        for name, pool in (("popularity", before), ("popularity_28d", recent), ("popularity_place", here)):
            share = 1e6 * sum(e[0] == i for e in pool) / max(len(pool), 1)
            np.testing.assert_allclose(got[name][q], np.log1p(share), rtol=1e-5)


def test_counts_of_an_unknown_key_are_zero() -> None:
    times = EventTimes(np.array([3, 3, 5]), np.array([1, 2, 3]))
    assert times.count(np.array([4, 9, 3]), np.array([10, 10, 2])).tolist() == [0, 0, 1]
