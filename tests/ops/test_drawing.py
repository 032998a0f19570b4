"""Draws by hash: shares are met, equal numbers agree, seeds and numbers do not depend on each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.ops.drawing import MAX_SEED, drawn_per_number

seeds = st.integers(0, MAX_SEED - 1)


def drawn(number: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    return drawn_per_number(number, share, torch.tensor([seed]))


@given(seeds, st.sampled_from([0.01, 0.1, 0.5, 0.9]))
def test_the_share_is_met_whatever_the_seed(seed, share):
    found = drawn(torch.arange(20_000), share, seed).double().mean()
    assert abs(float(found) - share) < 6 * (share * (1 - share) / 20_000) ** 0.5


@given(seeds)
def test_nothing_is_drawn_at_0_and_all_at_1(seed):
    assert not drawn(torch.arange(1000), 0.0, seed).any()
    assert drawn(torch.arange(1000), 1.0, seed).all()


@given(st.lists(st.integers(0, 9), max_size=30), seeds)
def test_equal_numbers_share_a_draw(numbers, seed):
    table = drawn(torch.arange(10), 0.5, seed)
    assert torch.equal(drawn(torch.tensor(numbers, dtype=torch.int64), 0.5, seed), table[numbers])


@pytest.mark.parametrize("apart", [1, 2, 64, 2**32, 2**61])
def test_neighbouring_seeds_and_numbers_draw_independently(apart):
    number = torch.arange(20_000)
    one = drawn(number, 0.5, 12_345)
    for other in (drawn(number, 0.5, 12_345 + apart), drawn(number * 2, 0.5, 12_345)):
        assert abs(float((one == other).double().mean()) - 0.5) < 6 * 0.5 / 20_000**0.5
    assert abs(float((one[1:] == one[:-1]).double().mean()) - 0.5) < 6 * 0.5 / 20_000**0.5
