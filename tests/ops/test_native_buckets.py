"""The compiled hash buckets against the plain forms: the same sums, interests and gradients, nothing out of bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.shapes import offsets_of

from sostenuto.native.library import available, using
from sostenuto.ops.bucket_sum import BucketTerms, bucket_interest, summed_or_terms, weighted_bucket_sum
from sostenuto.ops.native_buckets import asked_sums, bucket_sums, hash_rows, interests
from sostenuto.ops.simhash import bucket_ids, random_hyperplanes

LIBRARIES = available()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no compiled library is here: install with a C++ compiler")


def drawn(lengths, seed, width=5, sets=2, groups=3, buckets=4, items=6):
    generator = torch.Generator().manual_seed(seed)
    offsets = offsets_of(lengths)
    rows = int(offsets[-1])
    place = torch.randint(0, items, (rows,), generator=generator)
    values = torch.randn(rows, width, generator=generator).requires_grad_()
    weights = torch.rand(rows, sets, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, buckets, (items, groups), generator=generator, dtype=torch.int32)
    return values, weights, ids, place, offsets, buckets


def assert_sums_agree(twin, plain, case):
    """Stretches are summed in float32: an error of 1e-6 of the sum of absolute terms, a tenth of the law's."""
    values, *others = case
    with using(None):
        terms = weighted_bucket_sum(values.detach().abs(), *others)
    assert bool(((twin - plain).abs() <= 1e-6 * terms).all())


@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    seed=st.integers(0, 999),
    width=st.integers(1, 70),
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
    assert_sums_agree(twin, plain, case)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=plain.dtype)
    upstream[:, :, seed % 4] = 0.0  # buckets that nobody asked for
    expected, found = (torch.autograd.grad(table, case[0], upstream)[0] for table in (plain, twin))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("length", [1023, 1024, 2500])
def test_long_histories_are_worked_off_in_stretches(name, length):
    case = drawn([3, length], 1, width=33, sets=2, groups=16, buckets=8, items=900)
    with using(None):
        plain = weighted_bucket_sum(*case)
    with using(LIBRARIES[name]):
        twin = weighted_bucket_sum(*case)
    assert_sums_agree(twin, plain, case)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=plain.dtype)
    expected, found = (torch.autograd.grad(table, case[0], upstream)[0] for table in (plain, twin))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LIBRARIES)
def test_weights_that_lie_far_apart_keep_their_share(name):
    """A set with a half-life of days, over years: the oldest weights are 1e-200 and still say a direction."""
    values, weights, ids, place, offsets, buckets = drawn([40], 2, width=16, sets=2, groups=2, buckets=8)
    weights[:, 1] = torch.logspace(-250, 0, 40, dtype=torch.float64)
    case = values, weights, ids, place, offsets, buckets
    with using(None):
        plain = weighted_bucket_sum(*case)
    with using(LIBRARIES[name]):
        twin = weighted_bucket_sum(*case)
    assert_sums_agree(twin, plain, case)
    assert torch.equal(twin != 0, plain != 0)


def looked_up(lengths, seed, width, sets, groups=3, buckets=4):
    generator = torch.Generator().manual_seed(seed)
    offsets = offsets_of(lengths)
    shape = (len(lengths), groups, buckets, sets, width)
    table = torch.randn(shape, generator=generator, dtype=torch.float64)
    table[torch.rand(shape[:3], generator=generator) < 0.3] = 0.0  # empty buckets
    table[..., 0, :] *= 1e-200  # old behaviours, long decayed
    ids = torch.randint(0, buckets, (int(offsets[-1]), groups), generator=generator, dtype=torch.int32)
    return table.requires_grad_(), ids, offsets


@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    seed=st.integers(0, 999),
    width=st.integers(2, 20),
    sets=st.integers(1, 3),
    parts=st.sampled_from(["none", "whole", "two"]),
    threads=st.sampled_from([1, 2]),
)
def test_interests_equal_the_definition(name, lengths, seed, width, sets, parts, threads):
    table, ids, offsets = looked_up(lengths, seed, width, sets)
    widths = {"none": [], "whole": [width], "two": [1, width - 1]}[parts]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with using(None):
            plain = bucket_interest(table, ids, offsets, widths)
        with using(LIBRARIES[name]):
            twin = bucket_interest(table, ids, offsets, widths)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(twin, plain, rtol=1e-5, atol=1e-6)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    expected, found = (torch.autograd.grad(out, table, upstream)[0] for out in (plain, twin))
    scale = torch.tensor([1e-200] + [1.0] * (sets - 1), dtype=torch.float64)[:, None] if widths else 1.0
    torch.testing.assert_close(found * scale, expected * scale, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=5),
    seed=st.integers(0, 999),
    sets=st.integers(1, 3),
    groups=st.sampled_from([3, 48, 70]),
    normalised=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
def test_the_gradient_from_candidates_to_behaviours_at_once_equals_the_two_steps(
    name, sizes, seed, sets, groups, normalised, threads
):
    case = drawn([a for a, _ in sizes], seed, width=9, sets=sets, groups=groups)
    values = case[0]
    _, asked, starts = looked_up([b for _, b in sizes], seed, 9, sets, groups=groups)
    parts = [4, 5] if normalised else []
    found = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for form in (None, LIBRARIES[name]):
            with using(form):
                table, terms = summed_or_terms(BucketTerms(*case))
                assert (terms is None) == (form is None)
                out = bucket_interest(table, asked, starts, parts, terms)
                upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
                found[form is None] = out, torch.autograd.grad(out, values, upstream)[0]
    finally:
        torch.set_num_threads(before)
    for plain, twin in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(twin, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 600),
    dim=st.integers(1, 40),
    groups=st.integers(1, 50),
    bits=st.integers(1, 5),
    seed=st.integers(0, 99),
    threads=st.sampled_from([1, 2]),
)
def test_signatures_equal_the_definition(name, rows, dim, groups, bits, seed, threads):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(rows, dim, generator=generator)
    vectors[::3] = 0.0  # exactly on every plane
    planes = random_hyperplanes(dim, groups, bits, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with using(None):
            plain = bucket_ids(vectors, planes)
        with using(LIBRARIES[name]):
            twin = bucket_ids(vectors, planes)
    finally:
        torch.set_num_threads(before)
    assert twin.dtype == plain.dtype == torch.int32
    assert torch.equal(twin, plain)


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_would_reach_beyond_the_arrays_is_refused(name):
    values, weights, ids, place, offsets, buckets = drawn([3, 4], 0)
    with using(LIBRARIES[name]):
        with pytest.raises(IndexError, match="ids must be in"):
            bucket_sums(values, weights, ids + buckets, place, offsets, buckets)
        with pytest.raises(IndexError, match="place must be in"):
            bucket_sums(values, weights, ids, place + 6, offsets, buckets)
        with pytest.raises(ValueError, match="offsets must rise from 0 to 7"):
            bucket_sums(values, weights, ids, place, torch.tensor([0, 9]), buckets)
        table, asked, starts = looked_up([2, 1], 0, 4, 1)
        with pytest.raises(IndexError, match="ids must be in"):
            interests(table, asked - 9, starts, [4])
        with pytest.raises(ValueError, match="parts must add up"):
            interests(table, asked, starts, [3])
        with pytest.raises(IndexError, match="query_ids must be in"):
            asked_sums(values, weights, ids, place, offsets, buckets, asked + buckets, starts)
        with pytest.raises(ValueError, match="offsets must rise from 0 to 3"):
            asked_sums(values, weights, ids, place, offsets, buckets, asked, offsets)
        with pytest.raises(ValueError, match="must have the 2 rows of the behaviours, got 1"):
            asked_sums(values, weights, ids, place, offsets, buckets, asked, torch.tensor([0, 3]))


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_operators_are_registered_whole(name):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    with using(LIBRARIES[name]):
        torch.library.opcheck(bucket_sums, drawn([3, 4], 0), test_utils=checks)
        operands = drawn([3, 4], 0)
        queries = looked_up([3, 4], 0, 4, 2)[1:]
        with torch.no_grad():
            torch.library.opcheck(asked_sums, (*operands, *queries), test_utils=("test_schema", "test_faketensor"))
        torch.library.opcheck(interests, (*looked_up([3, 4], 0, 4, 2), [4]), test_utils=checks)
        torch.library.opcheck(hash_rows, (torch.randn(5, 3), random_hyperplanes(3, 2, 3)), test_utils=checks)
