"""Multiply-adds in registers: as many as are said."""

import pytest
import torch

from sostenuto.native.library import available, using
from sostenuto.ops.multiply_adds import multiply_adds

WIDTHS = {"generic": 4, "avx2": 8, "avx512": 16}


@pytest.mark.parametrize("name", available())
def test_the_count_follows_rounds_and_threads(name):
    before = torch.get_num_threads()
    try:
        with using(available()[name]):
            torch.set_num_threads(1)
            one = multiply_adds(1_000)
            assert multiply_adds(3_000) == 3 * one
            torch.set_num_threads(3)
            assert multiply_adds(1_000) == 3 * one
    finally:
        torch.set_num_threads(before)
    assert one % (2 * WIDTHS[name] * 1_000) == 0


def test_no_rounds_are_no_work():
    assert multiply_adds(0) in (0.0, None)


def test_plain_torch_has_none():
    with using(None):
        assert multiply_adds(1_000) is None
