"""Order statistics and draws that never hold all rows, against the plain forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.data.protocols import split_times
from sostenuto.data.protocols.split_times import chosen_flags, chosen_rows, kth_smallest

times = st.integers(-(10**14), 10**14) | st.integers(-5, 5)


@given(st.lists(times, min_size=1, max_size=60), st.data())
@settings(max_examples=150)
def test_kth_smallest_is_that_of_the_sorted_values(values, data):
    place = data.draw(st.integers(0, len(values) - 1))
    assert kth_smallest(np.array(values, np.int64), place) == sorted(values)[place]


def test_kth_smallest_reads_pieces(monkeypatch):
    monkeypatch.setattr(split_times, "PIECE", 100)
    values = np.random.default_rng(0).integers(0, 10**12, 1_050)
    ordered = np.sort(values)
    assert [kth_smallest(values, place) for place in (0, 99, 500, 1_049)] == ordered[[0, 99, 500, 1_049]].tolist()


@pytest.mark.parametrize("most", [None, 0, 1, 17, 60, 5_000])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_marked_rows_are_drawn_as_listed_rows_are(monkeypatch, most, share):
    monkeypatch.setattr(split_times, "PIECE", 100)
    flags = np.random.default_rng(1).random(2_345) < share
    expected = chosen_rows(np.flatnonzero(flags), most, 3, 1)
    found = chosen_flags(flags, most, 3, 1)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
