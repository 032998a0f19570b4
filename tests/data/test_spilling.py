"""Sorting on disk against sorting in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sostenuto.data.spilling import sorted_keys

keys = st.lists(st.integers(-(2**62), 2**62) | st.integers(-3, 3), max_size=120)


@given(keys, st.integers(1, 50), st.integers(1, 130))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_keys_sorted_on_disk_are_those_sorted_in_memory(tmp_path, values, cut, most):
    array = np.array(values, np.int64)
    folder = tmp_path / "keys"
    folder.mkdir(exist_ok=True)
    pieces = (array[start : start + cut] for start in range(0, len(array), cut))
    found = sorted_keys(pieces, len(array), folder / "a.keys", most=most)
    np.testing.assert_array_equal(found, np.sort(array))
    assert {path.name for path in folder.iterdir()} == ({"a.keys"} if len(array) > most else set())
    for path in folder.iterdir():
        path.unlink()


def test_ranges_of_distinct_keys_stay_within_what_may_be_held(tmp_path, monkeypatch):
    sizes = []
    real = np.sort

    def counting(values, *args, **kwargs):
        sizes.append(len(values))
        return real(values, *args, **kwargs)

    rng = np.random.default_rng(0)
    skewed = np.unique((10.0 ** (18 * rng.random(30_000))).astype(np.int64))
    rng.shuffle(skewed)
    monkeypatch.setattr(np, "sort", counting)
    found = sorted_keys(iter([skewed]), len(skewed), tmp_path / "a.keys", most=2_000)
    assert max(sizes) <= 2_000
    np.testing.assert_array_equal(found, real(skewed))


def test_a_wrong_total_is_noticed(tmp_path):
    with pytest.raises(AssertionError):
        sorted_keys(iter([np.arange(5)]), 6, tmp_path / "a.keys", most=2)
