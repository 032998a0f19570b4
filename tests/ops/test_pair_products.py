"""The compiled twin of chosen products is the plain form; nothing of a pair depends on its place."""

from __future__ import annotations

import pytest
import torch

from sostenuto.native.library import available, using
from sostenuto.ops.pair_products import pair_products


def inputs(width, pairs):
    torch.manual_seed(width)
    query, key = torch.randn(7, width), torch.randn(53, width)
    return query, key, torch.randint(0, 7, (pairs,)), torch.randint(0, 53, (pairs,))


@pytest.mark.parametrize("processor", available())
@pytest.mark.parametrize("width", [1, 5, 8, 16, 31, 32, 100, 384])
def test_the_twin_is_the_plain_form(width, processor):
    given = inputs(width, 1_000)
    with using(None):
        plain = pair_products(*given, with_magnitude=True)
    with using(available()[processor]):
        twin = pair_products(*given, with_magnitude=True)
        alone = pair_products(*given)
    torch.testing.assert_close(twin.product, plain.product, rtol=0, atol=1e-13 * width)
    torch.testing.assert_close(twin.magnitude, plain.magnitude, rtol=1e-13, atol=0)
    assert torch.equal(alone.product, twin.product)
    assert alone.magnitude.shape == (0,)


def test_equal_rows_have_one_product_wherever_they_stand():
    query, key, candidate, _ = inputs(57, 53)
    key = key[:1].expand(53, -1).contiguous()
    found = pair_products(query, key, torch.full_like(candidate, 3), torch.arange(53), with_magnitude=True)
    assert found.product.unique().numel() == found.magnitude.unique().numel() == 1


def test_a_row_that_is_not_there_is_refused():
    query, key, candidate, behaviour = inputs(8, 10)
    with pytest.raises(IndexError):
        pair_products(query, key, candidate, behaviour + 53)
    with pytest.raises(IndexError):
        pair_products(query, key, candidate + 7, behaviour)


def test_pairs_that_do_not_fit_are_refused():
    query, key, candidate, behaviour = inputs(8, 10)
    with pytest.raises(ValueError, match=r"key must be of shape \(53, 8\), got \(53, 5\)"):
        pair_products(query, key[:, :5], candidate, behaviour)
    with pytest.raises(ValueError, match=r"behaviour must be of shape \(10,\), got \(9,\)"):
        pair_products(query, key, candidate, behaviour[1:])


@pytest.mark.parametrize("processor", available())
def test_indices_may_be_of_32_bits(processor):
    query, key, candidate, behaviour = inputs(8, 10)
    with using(available()[processor]):
        short = pair_products(query, key, candidate.int(), behaviour.int())
        assert torch.equal(short.product, pair_products(query, key, candidate, behaviour).product)


def test_no_pairs_have_no_products():
    query, key, candidate, behaviour = inputs(8, 0)
    assert pair_products(query, key, candidate, behaviour, with_magnitude=True).product.shape == (0,)
