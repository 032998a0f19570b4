"""Searches in parts of a sorted array against numpy, by the plain form and by every compiled twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.native.library import available, using
from sostenuto.ops.sorted_search import lower_bounds

FORMS = {"plain": None, **available()}


@pytest.mark.parametrize("form", FORMS)
@given(
    parts=st.lists(st.lists(st.integers(0, 9), max_size=40), max_size=6),
    queries=st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 10)), max_size=40),
)
def test_positions_equal_one_search_of_all(form, parts, queries):
    values = np.array([10 * p + v for p, part in enumerate(parts) for v in sorted(part)], np.int64)
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    part = np.array([p for p, _ in queries if p < len(parts)], np.int64)
    within = np.array([min(max(v, 0), 10) for p, v in queries if p < len(parts)], np.int64)
    starts = np.concatenate(([0], ends))
    bound = 10 * part + within
    with using(FORMS[form]):
        got = lower_bounds(values, bound, starts[part], starts[part + 1])
    np.testing.assert_array_equal(got, np.searchsorted(values, bound))


@pytest.mark.parametrize("form", [name for name in FORMS if name != "plain"])
@given(
    values=st.lists(st.integers(-5, 5), max_size=9),
    queries=st.lists(st.tuples(st.integers(-6, 6), st.integers(-20, 20), st.integers(-20, 20)), max_size=20),
)
def test_bounds_beyond_the_array_are_moved_inside(form, values, queries):
    held = np.array(sorted(values), np.int64)
    bound, low, high = (np.array([q[k] for q in queries], np.int64) for k in range(3))
    with using(FORMS[form]):
        got = lower_bounds(held, bound, low, high)
    low = np.clip(low, 0, len(held))
    high = np.maximum(np.minimum(high, len(held)), low)
    np.testing.assert_array_equal(got, np.clip(np.searchsorted(held, bound), low, high))


@pytest.mark.parametrize("form", [name for name in FORMS if name != "plain"])
def test_bounds_of_another_length_are_refused(form):
    three, two = np.zeros(3, np.int64), np.zeros(2, np.int64)
    with using(FORMS[form]), pytest.raises(ValueError, match="must all be"):
        lower_bounds(three, three, two, three)
