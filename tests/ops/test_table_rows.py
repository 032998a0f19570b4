"""Rows of a table: what is looked up, and a gradient of the touched rows alone, by both forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.native.library import available, using
from sostenuto.ops.table_rows import lookup_rows

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
