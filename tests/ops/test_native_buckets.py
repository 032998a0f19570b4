"""The compiled bucket sums against the plain form: the same float64 sums, the same gradient, nothing out of bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.shapes import offsets_of

from sostenuto.native.library import available, using
from sostenuto.ops.bucket_sum import weighted_bucket_sum
from sostenuto.ops.native_buckets import bucket_sums

LIBRARIES = available()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no compiled library is here: install with a C++ compiler")


def drawn(lengths, seed, width=5, sets=2, groups=3, buckets=4):
    generator = torch.Generator().manual_seed(seed)
    offsets = offsets_of(lengths)
    rows = int(offsets[-1])
    values = torch.randn(rows, width, generator=generator).requires_grad_()
    weights = torch.rand(rows, sets, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, buckets, (rows, groups), generator=generator)
    return values, weights, ids, offsets, buckets


@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    seed=st.integers(0, 999),
    width=st.integers(1, 20),
    sets=st.integers(1, 3),
    threads=st.sampled_from([1, 2]),
)
def test_a_twin_equals_the_definition(name, lengths, seed, width, sets, threads):
    case = drawn(lengths, seed, width, sets)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with using(None):
            plain = weighted_bucket_sum(*case)
        with using(LIBRARIES[name]):
            twin = weighted_bucket_sum(*case)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(twin, plain, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=plain.dtype)
    expected, found = (torch.autograd.grad(table, case[0], upstream)[0] for table in (plain, twin))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_would_reach_beyond_the_arrays_is_refused(name):
    values, weights, ids, offsets, buckets = drawn([3, 4], 0)
    with using(LIBRARIES[name]):
        with pytest.raises(ValueError, match="ids must be in"):
            bucket_sums(values, weights, ids + buckets, offsets, buckets)
        with pytest.raises(ValueError, match="offsets must rise from 0 to 7"):
            bucket_sums(values, weights, ids, torch.tensor([0, 9]), buckets)


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_operator_is_registered_whole(name):
    with using(LIBRARIES[name]):
        torch.library.opcheck(
            bucket_sums, drawn([3, 4], 0), test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )
