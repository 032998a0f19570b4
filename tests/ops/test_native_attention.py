"""The compiled twins against the plain definition in float64: values, gradients, threads, arrays' ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.shapes import offsets_of, row_pairs

from sostenuto.native.library import available, using
from sostenuto.ops.native_attention import attend, attention, attention_weights
from sostenuto.ops.target_attention import NORMALISERS, UnitWeights, target_attention
from sostenuto.ops.target_attention import attention_weights as weights_of

LIBRARIES = available()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no compiled library is here: install with a C++ compiler")


class Case:
    """Random inputs: the plain form gets them in float64, the twin in float32."""

    def __init__(self, pairs, dims, seed, *, slope, hidden, dtype, scale=1.0, with_key=False):
        generator = torch.Generator().manual_seed(seed)
        dim, units, width = dims

        def draw(*shape):
            drawn = torch.randn(*shape, generator=generator, dtype=torch.float32) * scale
            return drawn.to(dtype).requires_grad_()

        self.key_offsets = offsets_of([past for past, _ in pairs])
        self.query_offsets = offsets_of([asked for _, asked in pairs])
        self.query = draw(int(self.query_offsets[-1]), dim)
        self.key = draw(int(self.key_offsets[-1]), dim)
        self.value = draw(int(self.key_offsets[-1]), width)
        self.key_hidden = draw(int(self.key_offsets[-1]), units) if hidden else None
        self.unit = UnitWeights(
            draw(units, dim), draw(units, dim), draw(units, dim), draw(units), draw(units), draw(1), draw(units)
        )
        self.with_key = with_key
        if not slope:
            self.unit = self.unit._replace(slope=None)

    def leaves(self):
        named = [self.query, self.key, self.value, *self.unit, self.key_hidden]
        return [leaf for leaf in named if leaf is not None]

    def scored(self, normalise):
        unit = self.unit._replace(out_bias=self.unit.out_bias[0])
        return target_attention(
            self.query,
            self.query_offsets,
            self.key,
            self.key_offsets,
            self.value,
            unit,
            key_hidden=self.key_hidden,
            normalise=normalise,
            with_key=self.with_key,
        )

    def weighed(self, normalise):
        unit = self.unit._replace(out_bias=self.unit.out_bias[0])
        rows = (self.query, self.query_offsets, self.key, self.key_offsets)
        out = weights_of(*rows, unit, key_hidden=self.key_hidden, normalise=normalise)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
        return out, torch.autograd.grad(out, self.leaves(), upstream, allow_unused=True, materialize_grads=True)

    def answer(self, normalise):
        out = self.scored(normalise)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
        return out, torch.autograd.grad(out, self.leaves(), upstream, allow_unused=True, materialize_grads=True)


def assert_near(twin, plain):
    plain = plain.detach()
    largest = float(plain.abs().max()) if plain.numel() else 0.0
    torch.testing.assert_close(twin.detach().double(), plain, rtol=2e-4, atol=1e-5 * max(1.0, largest))


@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=60, deadline=None)
@given(
    pairs=row_pairs,
    dims=st.tuples(st.integers(1, 40), st.integers(1, 80), st.integers(0, 40)),
    seed=st.integers(0, 999),
    slope=st.booleans(),
    hidden=st.booleans(),
    normalise=st.sampled_from(NORMALISERS),
    with_key=st.booleans(),
    threads=st.sampled_from([1, 2, 3]),
)
def test_a_twin_equals_the_definition(name, pairs, dims, seed, slope, hidden, normalise, with_key, threads):
    switches = {"slope": slope, "hidden": hidden, "scale": 0.5, "with_key": with_key}
    with using(None):
        plain = Case([(1, 1), *pairs], dims, seed, dtype=torch.float64, **switches).answer(normalise)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with using(LIBRARIES[name]):
            twin = Case([(1, 1), *pairs], dims, seed, dtype=torch.float32, **switches).answer(normalise)
    finally:
        torch.set_num_threads(before)
    assert_near(twin[0], plain[0])
    for found, expected in zip(twin[1], plain[1], strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 140)), min_size=1, max_size=3),
    dims=st.tuples(st.integers(1, 40), st.integers(1, 80), st.integers(0, 20)),
    seed=st.integers(0, 999),
    slope=st.booleans(),
    hidden=st.booleans(),
    normalise=st.sampled_from(NORMALISERS),
)
def test_without_gradients_many_candidates_of_a_short_history_change_places_with_it(
    name, pairs, dims, seed, slope, hidden, normalise
):
    """The scoring path, in which behaviours have matrices and candidates are rows."""
    switches = {"slope": slope, "hidden": hidden, "scale": 0.5, "with_key": True}
    pairs = [*pairs, (3, 530), (200, 400)]  # more than one piece, and one that is too long
    with using(None):
        plain = Case(pairs, dims, seed, dtype=torch.float64, **switches).answer(normalise)[0]
    with using(LIBRARIES[name]), torch.no_grad():
        assert_near(Case(pairs, dims, seed, dtype=torch.float32, **switches).scored(normalise), plain)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("units", [17, 64])
def test_threads_change_no_score_of_many_candidates(name, units):
    generator = torch.Generator().manual_seed(0)
    query, key, hidden = (torch.randn(n, d, generator=generator) for n, d in ((531, 12), (50, 12), (531, units)))
    matrix, readout, none = torch.randn(units, 12, generator=generator), torch.randn(units, generator=generator), None
    starts = [torch.tensor([0, n]) for n in (531, 50)]
    before, found = torch.get_num_threads(), []
    with using(LIBRARIES[name]):
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                given = (query, starts[0], key, starts[1], key, hidden, none, matrix, matrix, readout, readout)
                found.append(attend(*given, torch.zeros(()), 1, True, False))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("normalise", NORMALISERS)
def test_long_histories_cross_every_block(name, normalise):
    pairs, dims = [(2_500, 3), (0, 2), (97, 150), (1, 1)], (20, 12, 9)
    switches = {"slope": True, "hidden": True, "scale": 0.3}
    with using(None):
        plain = Case(pairs, dims, 1, dtype=torch.float64, **switches).answer(normalise)
    with using(LIBRARIES[name]):
        twin = Case(pairs, dims, 1, dtype=torch.float32, **switches).answer(normalise)
    assert_near(twin[0], plain[0])
    for found, expected in zip(twin[1], plain[1], strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize(
    "dims",
    [(32, 64, 1), (32, 64, 33), (16, 64, 0), (48, 32, 5), (33, 65, 8), (24, 130, 3)],
    ids=lambda dims: "D{}-H{}-V{}".format(*dims),
)
@pytest.mark.parametrize("slope", [False, True], ids=["relu", "prelu"])
@pytest.mark.parametrize("hidden", [False, True], ids=["", "key_hidden"])
def test_whole_and_odd_widths_take_their_own_ways(name, dims, slope, hidden):
    pairs = [(64, 1), (130, 2), (0, 3), (5, 1), (70, 9), (3, 0), (201, 1)]
    for with_key in (False, True):
        switches = {"slope": slope, "hidden": hidden, "scale": 0.3, "with_key": with_key}
        with using(None):
            plain = Case(pairs, dims, 1, dtype=torch.float64, **switches).answer("none")
        with using(LIBRARIES[name]):
            twin = Case(pairs, dims, 1, dtype=torch.float32, **switches).answer("none")
        assert_near(twin[0], plain[0])
        for found, expected in zip(twin[1], plain[1], strict=True):
            assert_near(found, expected)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_unit_that_is_exactly_zero_is_not_above_zero(name):
    """Padding items have zero vectors: what the readout below 0 gets must be told from what the one above gets."""
    case = Case([(9, 2)], (8, 8, 3), 0, slope=True, hidden=False, dtype=torch.float32)
    with torch.no_grad():
        case.query.zero_()
        case.unit.bias.zero_()
        case.key.zero_()
    with using(LIBRARIES[name]):
        twin = case.answer("none")
    with using(None):
        plain = case.answer("none")
    for found, expected in zip(twin[1], plain[1], strict=True):
        assert_near(found, expected.double())


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_operator_and_the_direct_call_give_the_same_bits(name):
    case = Case([(30, 2), (65, 1)], (16, 24, 3), 0, slope=True, hidden=True, dtype=torch.float32)
    unit = case.unit
    leaves = [case.query, case.key, case.value, case.key_hidden, unit.key, unit.product, unit.out, unit.bias]
    inputs = (case.query, case.query_offsets, case.key, case.key_offsets, case.value, case.query @ unit.query.T)
    inputs += (case.key_hidden, unit.key, unit.product, unit.out, unit.bias, unit.out_bias, 1, True, True)
    with using(LIBRARIES[name]):
        direct, operator = attend(*inputs), attention(*inputs)[0]
        gradients = [torch.autograd.grad(out.square().sum(), leaves, retain_graph=True) for out in (direct, operator)]
    assert torch.equal(direct, operator)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_same_call_gives_the_same_bits(name):
    with using(LIBRARIES[name]):
        first, again = (
            Case([(300, 5), (40, 2)], (16, 8, 5), 3, slope=True, hidden=True, dtype=torch.float32).answer("softmax")
            for _ in range(2)
        )
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))


@pytest.mark.parametrize("name", LIBRARIES)
def test_callers_at_one_time_do_not_disturb_each_other(name):
    def answer(seed):
        case = Case([(60, 3), (70, 10)] * 5, (16, 8, 5), seed, slope=True, hidden=True, dtype=torch.float32)
        return [case.answer("softmax")[0] for _ in range(20)]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with using(LIBRARIES[name]):
            alone = [answer(seed)[0] for seed in range(3)]
            with ThreadPoolExecutor(3) as callers:
                together = list(callers.map(answer, range(3)))
    finally:
        torch.set_num_threads(before)
    for expected, found in zip(alone, together, strict=True):
        assert all(torch.equal(out, expected) for out in found)


@pytest.mark.parametrize("name", LIBRARIES)
def test_threads_change_no_bit(name):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            case = Case([(60, 3), (70, 10)] * 5, (16, 8, 5), 3, slope=True, hidden=True, dtype=torch.float32)
            with using(LIBRARIES[name]):
                found.append(case.answer("softmax"))
    finally:
        torch.set_num_threads(before)
    for out, gradients in found[1:]:
        assert torch.equal(out, found[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[0][1], strict=True))


@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=30, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 5)), min_size=1, max_size=3),
    dims=st.tuples(st.integers(1, 40), st.integers(1, 80)),
    seed=st.integers(0, 999),
    slope=st.booleans(),
    hidden=st.booleans(),
    normalise=st.sampled_from(NORMALISERS),
    threads=st.sampled_from([1, 2]),
)
def test_the_weights_themselves_equal_the_definition(name, pairs, dims, seed, slope, hidden, normalise, threads):
    switches = {"slope": slope, "hidden": hidden, "scale": 0.5}
    with using(None):
        plain = Case([(1, 1), *pairs], (*dims, 0), seed, dtype=torch.float64, **switches).weighed(normalise)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with using(LIBRARIES[name]):
            twin = Case([(1, 1), *pairs], (*dims, 0), seed, dtype=torch.float32, **switches).weighed(normalise)
    finally:
        torch.set_num_threads(before)
    assert_near(twin[0], plain[0])
    for found, expected in zip(twin[1], plain[1], strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("name", LIBRARIES)
def test_offsets_beyond_the_arrays_are_refused(name):
    case = Case([(3, 2)], (4, 4, 4), 0, slope=False, hidden=False, dtype=torch.float32)
    for offsets in ([0, 4], [1, 3], [0, 5, 3], [0]):
        case.key_offsets = torch.tensor(offsets)
        with using(LIBRARIES[name]), pytest.raises(ValueError, match="key_offsets must rise from 0 to 3"):
            case.answer("none")


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_operator_is_registered_whole(name):
    case = Case([(3, 2), (5, 1)], (4, 6, 3), 0, slope=True, hidden=True, dtype=torch.float32)
    unit = case.unit
    arguments = (
        case.query,
        case.query_offsets,
        case.key,
        case.key_offsets,
        case.value,
        (case.query @ unit.query.T).detach().requires_grad_(),
        case.key_hidden,
        unit.key,
        unit.product,
        unit.out,
        (unit.out * 0.1).detach().requires_grad_(),
        unit.out_bias,
        1,
        False,
        True,
    )
    with using(LIBRARIES[name]):
        torch.library.opcheck(
            attention, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        weighed = (*arguments[:4], *arguments[5:12], 1)
        torch.library.opcheck(attention_weights, weighed, test_utils=checks)
