"""Rows of a table: what is looked up, and a gradient of the touched rows alone, by both forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.native.library import available, using
from sostenuto.ops.table_rows import few_rows, lookup_rows, spread_rows, sum_repeated_rows

LIBRARIES = available()
FORMS = {"plain": None, **LIBRARIES}


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=50, deadline=None)
@given(
    index=st.lists(st.integers(0, 19), min_size=0, max_size=60),
    dim=st.integers(1, 19),
    threads=st.sampled_from([1, 2, 3]),
)
def test_rows_and_gradients_are_those_of_indexing(name, index, dim, threads):
    table = torch.randn(20, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    asked = torch.tensor(index, dtype=torch.int64)
    upstream = torch.randn(len(index), dim, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with using(FORMS[name]):
            found = lookup_rows(table, asked, 0)
            found.backward(upstream)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, table[asked])
    gradient = table.grad.coalesce()
    assert gradient.indices()[0].tolist() == sorted(set(index) - {0})
    expected = torch.zeros(20, dim).index_add(0, asked, upstream)
    expected[0] = 0
    torch.testing.assert_close(gradient.to_dense(), expected)


@pytest.mark.parametrize("name", FORMS)
def test_two_lookups_of_one_table_add_up(name):
    table = torch.ones(6, 2, requires_grad=True)
    with using(FORMS[name]):
        total = (
            lookup_rows(table, torch.tensor([[1, 2], [2, 3]]), 0).sum() + lookup_rows(table, torch.tensor([3]), 0).sum()
        )
        total.backward()
    assert table.grad.coalesce().to_dense()[:, 0].tolist() == [0, 1, 2, 2, 0, 0]


@pytest.mark.parametrize("name", FORMS)
def test_an_index_beyond_the_table_is_refused(name):
    with using(FORMS[name]), pytest.raises(IndexError):
        lookup_rows(torch.ones(4, 2), torch.tensor([1, 4]), 0)


def sparse(rows, values, size):
    at = torch.tensor(rows, dtype=torch.int64)[None]
    return torch.sparse_coo_tensor(at, values, (size, values.shape[1]), check_invariants=True)


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.integers(0, 19), max_size=60), dim=st.integers(1, 19))
def test_repeated_rows_are_summed_in_rising_order(name, rows, dim):
    gradient = sparse(rows, torch.randn(len(rows), dim, generator=torch.Generator().manual_seed(0)), 20)
    with using(FORMS[name]):
        found = sum_repeated_rows(gradient)
    assert found.is_coalesced()
    assert found.indices()[0].tolist() == sorted(set(rows))
    torch.testing.assert_close(found.to_dense(), gradient.to_dense())


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("size", [2, 300, 2_049, 5_000_000])
def test_threads_change_no_bit_of_the_sums_whatever_the_table(name, size):
    generator = torch.Generator().manual_seed(size)
    rows = torch.randint(size, (6_000,), generator=generator)
    rows[0] = size - 1
    gradient = sparse(rows.tolist(), torch.randn(6_000, 5, generator=generator), size)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with using(LIBRARIES[name]):
                found.append(sum_repeated_rows(gradient))
    finally:
        torch.set_num_threads(before)
    one, three = found
    assert torch.equal(one.indices(), three.indices())
    assert torch.equal(one.values(), three.values())
    expected = gradient.coalesce()
    assert torch.equal(one.indices(), expected.indices())
    torch.testing.assert_close(one.values(), expected.values(), rtol=1e-5, atol=1e-3)  # sums of up to 3,000 numbers


@pytest.mark.parametrize("name", FORMS)
def test_rows_that_rise_already_are_only_marked(name):
    table = torch.ones(9, 2, requires_grad=True)
    with using(FORMS[name]):
        for index in ([3, 1, 3], [8, 1]):  # two passes without a step between
            lookup_rows(table, torch.tensor(index), 0).sum().backward()
        assert not table.grad.is_coalesced()
        found = sum_repeated_rows(table.grad)
    assert found.is_coalesced()
    assert found.to_dense()[:, 0].tolist() == [0, 2, 0, 2, 0, 0, 0, 0, 1]
    assert found._values().data_ptr() == table.grad._values().data_ptr()


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_gradient_of_rows_beyond_the_table_is_refused(name):
    gradient = torch.sparse_coo_tensor(torch.tensor([[5, 1]]), torch.ones(2, 1), (4, 1), check_invariants=False)
    with using(LIBRARIES[name]), pytest.raises(IndexError, match=r"must be in \[0, 4\)"):
        sum_repeated_rows(gradient)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("used_elsewhere", [True, False])
@pytest.mark.parametrize("places", [[0, 3, 4, 17, 39], [7]])
def test_few_rows_have_the_gradient_of_spread_rows(name, used_elsewhere, places):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(6, 3, generator=generator)
    place = torch.randint(0, 6, (40,), generator=generator)
    taken = torch.tensor(places)
    found = []
    for take in (few_rows, spread_rows):
        values = drawn.clone().requires_grad_()
        with using(FORMS[name]):
            rows = spread_rows(values, place)
            some = take(rows, taken)
            # beside others: the gradient of a single row is then cut from a wider one, and counts as contiguous
            wide = torch.cat([some, some.new_ones(len(places), 50)], 1)
            (wide.square().sum() + (rows.pow(3).sum() if used_elsewhere else 0.0)).backward()
        assert values.grad is not None
        assert not values.grad.is_sparse
        found.append((some.detach(), values.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
