"""Bins times a matrix in one step: equal to making the bins, by the plain form and by every compiled twin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.native.library import available, using
from sostenuto.ops.binned_product import bin_shares, binned_product, binned_weights

FORMS = {"plain": None, **available()}


def drawn(columns, bins, units, seed, *, coinciding=False):
    """Return bins, a matrix and a bias; with `coinciding` some knots lie on each other."""
    torch.manual_seed(seed)
    knots = torch.randint(0, 4, (columns, bins + 1)).float() if coinciding else torch.randn(columns, bins + 1)
    knots = knots.sort(1).values
    return knots[:, :-1], knots.diff(dim=1), torch.randn(columns * bins, units), torch.randn(units)


@pytest.mark.parametrize("form", FORMS)
@given(
    rows=st.integers(0, 40),
    columns=st.integers(1, 5),
    bins=st.integers(1, 7),
    units=st.sampled_from([1, 3, 8, 31, 64, 129, 200]),
    seed=st.integers(0, 999),
    coinciding=st.booleans(),
)
def test_it_is_the_product_of_the_bins(form, rows, columns, bins, units, seed, coinciding):
    low, width, weight, bias = drawn(columns, bins, units, seed, coinciding=coinciding)
    values = torch.cat([torch.randn(rows, columns) * 2, torch.randint(-1, 5, (rows, columns)).float()])
    weights = binned_weights(low, width, weight, bias)
    with using(FORMS[form]):
        found = binned_product(values, weights)
    expected = bin_shares(values, low, width).double() @ weight.double() + bias.double()
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5 * (1 + columns * bins))


@pytest.mark.parametrize("form", FORMS)
def test_a_number_that_is_none_and_those_without_end(form):
    low, width, weight, bias = drawn(2, 4, 20, 0)
    values = torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0], [-torch.inf, 0.0]])
    with using(FORMS[form]):
        found = binned_product(values, binned_weights(low, width, weight, bias))
    assert found[0].isnan().all()
    expected = bin_shares(values[1:].clamp(-1e6, 1e6), low, width) @ weight + bias
    torch.testing.assert_close(found[1:], expected, rtol=1e-5, atol=1e-5)


def test_bins_that_do_not_follow_one_another_have_no_running_sums():
    low, width, weight, bias = drawn(2, 4, 3, 0)
    assert binned_weights(low.flip(1), width, weight, bias) is None
    overlapping = torch.tensor([[9.0, 0.1, 0.1, 0.1]] * 2)
    assert binned_weights(torch.arange(4.0).expand(2, -1), overlapping, weight, bias) is None
    for endless in (torch.inf, torch.nan):
        assert binned_weights(low, width.clone().fill_(endless), weight, bias) is None


@pytest.mark.parametrize("form", FORMS)
def test_the_layout_of_the_bins_means_nothing(form):
    low, width, weight, bias = drawn(3, 4, 5, 1)
    values = torch.randn(6, 3)
    turned = binned_weights(low.T.contiguous().T, width.T.contiguous().T, weight.T.contiguous().T, bias)
    with using(FORMS[form]):
        torch.testing.assert_close(
            binned_product(values, turned), binned_product(values, binned_weights(low, width, weight, bias))
        )


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_other_columns_are_refused(form):
    weights = binned_weights(*drawn(2, 4, 3, 0))
    with using(FORMS[form]), pytest.raises(ValueError, match=r"values must be \(N, 2\)"):
        binned_product(torch.zeros(5, 3), weights)
