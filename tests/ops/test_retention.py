"""stim.md section 8, property 1, and counts against a loop."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.ops.local_time import DAY_MS
from sostenuto.ops.retention import age_in_days, log_retention, repetitions, strength_days

AGES = st.floats(0, 4000, width=32)
COUNTS = st.integers(0, 5000)


def retained(age: float, count: int, days: float = 7.0, alpha: float = 1.0) -> float:
    strength = strength_days(torch.tensor([count]), torch.tensor(days), torch.tensor(alpha))
    return log_retention(torch.tensor([age], dtype=torch.float32), strength).double().exp().item()


@given(AGES, COUNTS, st.floats(0.5, 400), st.floats(0, 5))
def test_retention_is_a_share_and_whole_at_age_0(age: float, count: int, days: float, alpha: float) -> None:
    assert 0 <= retained(age, count, days, alpha) <= 1
    assert retained(0.0, count, days, alpha) == 1
    if age < 100 * days:
        assert retained(age, count, days, alpha) > 0


@given(st.integers(0, 300), st.integers(1, 100), COUNTS)
def test_retention_falls_with_age_and_rises_with_repetition(age: int, later: int, count: int) -> None:
    assert retained(age + later, count) < retained(age, count)
    if age:
        assert retained(age, count + 1) > retained(age, count)


@given(COUNTS, st.floats(0.5, 400))
def test_without_reinforcement_the_curve_is_exponential_with_its_half_life(count: int, days: float) -> None:
    half = days * math.log(2.0)
    assert math.isclose(retained(half, count, days, 0.0), 0.5, rel_tol=1e-5)
    assert math.isclose(retained(3 * half, count, days, 0.0), 0.125, rel_tol=1e-5)


@given(st.lists(st.lists(st.integers(0, 4), max_size=9), min_size=1, max_size=4))
def test_repetitions_equal_a_loop_and_follow_the_order_of_the_row(rows: list[list[int]]) -> None:
    flat = torch.tensor([k for row in rows for k in row], dtype=torch.int64)
    offsets = torch.tensor([0, *torch.tensor([len(r) for r in rows]).cumsum(0).tolist()])
    expected = [row.count(k) - 1 for row in rows for k in row]
    assert repetitions(flat, offsets).tolist() == expected
    turned = torch.tensor([k for row in rows for k in row[::-1]], dtype=torch.int64)
    assert repetitions(turned, offsets).tolist() == [row.count(k) - 1 for row in rows for k in row[::-1]]


def test_wide_keys_are_counted_as_narrow_ones() -> None:
    key = torch.tensor([3, 1, 3, 3, 1])
    offsets = torch.tensor([0, 3, 5])
    assert repetitions(key * 10**12, offsets).tolist() == repetitions(key, offsets).tolist() == [1, 0, 1, 0, 0]


def test_ages_by_periods_are_steps() -> None:
    asked = torch.tensor([100 * DAY_MS]).expand(5)
    days = torch.tensor([0.0, 6.99, 7.0, 13.99, 14.0], dtype=torch.float64)
    gaps = asked - (days * DAY_MS).long()
    assert age_in_days(gaps, asked, 7).tolist() == [0, 0, 7, 7, 14]
    torch.testing.assert_close(age_in_days(gaps, asked), days.float())
