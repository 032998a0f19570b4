"""Axes hold their values, ticks are round, labels keep their distance."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.reports.scales import Scale, domain, linear_ticks, log_ticks, spread_apart, tick_digits

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=8), st.booleans())
def test_every_value_lies_inside_its_axis_and_order_is_kept(values, turned):
    low, high = domain(values)
    start, end = (300.0, 20.0) if turned else (20.0, 300.0)
    scale = Scale(low=low, high=high, start=start, end=end)
    places = [scale(v) for v in sorted(values)]
    assert all(20.0 <= p <= 300.0 for p in places)
    assert places == sorted(places, reverse=turned)


@given(finite, st.floats(1e-3, 1e6))
def test_ticks_lie_on_the_axis_evenly(low, span):
    ticks = linear_ticks(low, low + span)
    assert 1 <= len(ticks) <= 9
    assert all(low - span * 1e-6 <= t <= low + span * (1 + 1e-6) for t in ticks)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert all(s == pytest.approx(steps[0], rel=1e-6) for s in steps)


@given(st.floats(1e-4, 1e4), st.floats(1.5, 1e5))
def test_logarithmic_ticks_lie_on_the_axis(low, factor):
    high = low * factor
    assert all(low * 0.99 <= t <= high * 1.01 for t in log_ticks(low, high))
    scale = Scale(low=low, high=high, start=0, end=100, log=True)
    assert scale((low * high) ** 0.5) == pytest.approx(50)


@given(st.lists(st.floats(0, 200), max_size=10))
def test_labels_stand_apart_in_their_order_and_stay_inside_while_there_is_room(places):
    moved = spread_apart(places, 15.0, 0.0, 200.0)
    order = sorted(range(len(places)), key=lambda i: places[i])
    ordered = [moved[i] for i in order]
    assert all(b - a >= 15.0 - 1e-6 for a, b in itertools.pairwise(ordered))
    assert all(m >= -1e-6 for m in moved)


def test_labels_that_are_apart_do_not_move():
    assert spread_apart([10.0, 90.0, 40.0], 15.0, 0.0, 100.0) == [10.0, 90.0, 40.0]


def test_a_domain_of_nothing_or_of_one_value_has_room():
    assert domain([None, float("nan")]) == (0.0, 1.0)
    low, high = domain([0.5, None])
    assert low < 0.5 < high


def test_digits_tell_ticks_apart():
    assert [tick_digits(t) for t in ((0.0, 0.5), (0.80, 0.85), (0.0, 100.0), (1.0,))] == [1, 2, 0, 2]
