"""A row's product is the same to the last bit wherever the row stands."""

from __future__ import annotations

import torch

from sostenuto.ops.steady_product import steady_product


def test_the_batch_changes_no_bit():
    torch.manual_seed(0)
    values, weight = torch.randn(700, 57), torch.randn(64, 57)
    whole = steady_product(values, weight)
    for size in (1, 2, 3, 7, 64, 501):
        assert torch.equal(steady_product(values[-size:], weight), whole[-size:])
    torch.testing.assert_close(whole, values @ weight.T, rtol=1e-5, atol=1e-5)


def test_a_gradient_flows_where_one_is_wanted():
    values, weight = torch.randn(3, 4), torch.randn(2, 4, requires_grad=True)
    steady_product(values, weight).sum().backward()
    torch.testing.assert_close(weight.grad, values.sum(0).expand(2, -1))
