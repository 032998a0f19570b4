"""Local hour and weekday: one by one and all at once are the same, daylight saving included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.features import clock

MOMENTS = st.lists(st.integers(-(10**12), 4 * 10**12), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(MOMENTS, st.sampled_from(["UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]))
def test_few_and_many_moments_are_read_alike(moments: list[int], zone: str) -> None:
    few = clock.local_clock(np.array(moments), zone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "FEW", 0)
        many = clock.local_clock(np.array(moments), zone)
    for name, column in few.items():
        assert column.dtype == many[name].dtype
        np.testing.assert_array_equal(column, many[name])
