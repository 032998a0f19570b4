import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.shapes import offsets_of, row_pairs
from tests.reference.slow_attention import slow_target_attention
from torch import nn

import sostenuto.ops.target_attention as module
from sostenuto.ops.target_attention import (
    NORMALISERS,
    UnitWeights,
    attention_weights,
    deep_target_attention,
    factor,
    target_attention,
)

D, H, V = 3, 4, 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Make every loop over blocks turn several times: 3 candidates at once, and 2 rows of them."""
    monkeypatch.setattr(module, "CANDIDATE_BLOCK", 3)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 2 * 3 * H)


class Case:
    """Random inputs in float64 that ask for gradients."""

    def __init__(self, pairs, seed, *, slope, hidden):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

        self.key_offsets = offsets_of([past for past, _ in pairs])
        self.query_offsets = offsets_of([asked for _, asked in pairs])
        self.query = draw(int(self.query_offsets[-1]), D)
        self.key = draw(int(self.key_offsets[-1]), D)
        self.value = draw(int(self.key_offsets[-1]), V)
        self.key_hidden = draw(int(self.key_offsets[-1]), H) if hidden else None
        self.weight = draw(H, 4 * D)
        self.bias, self.out, self.out_bias = draw(H), draw(H), draw(1)
        self.slope = draw(H) if slope else None

    @property
    def leaves(self):
        named = (self.query, self.key, self.value, self.weight, self.bias, self.out, self.out_bias)
        return [*named, *(t for t in (self.key_hidden, self.slope) if t is not None)]

    def unit(self):
        key, query, product = factor(self.weight)
        return UnitWeights(key, query, product, self.bias, self.out, self.out_bias[0], self.slope)

    def fast(self, normalise):
        return target_attention(
            self.query,
            self.query_offsets,
            self.key,
            self.key_offsets,
            self.value,
            self.unit(),
            key_hidden=self.key_hidden,
            normalise=normalise,
        )

    def deep(self, normalise, deeper):
        return deep_target_attention(
            self.query,
            self.query_offsets,
            self.key,
            self.key_offsets,
            self.value,
            self.unit(),
            deeper,
            key_hidden=self.key_hidden,
            normalise=normalise,
        )

    def weighed(self, normalise, deeper=None):
        """Sum the values by the weights of pairs, which lie request after request."""
        weights = attention_weights(
            self.query,
            self.query_offsets,
            self.key,
            self.key_offsets,
            self.unit(),
            deeper,
            key_hidden=self.key_hidden,
            normalise=normalise,
        )
        parts, start = [], 0
        bounds = zip(
            self.query_offsets.diff().tolist(), self.key_offsets.tolist(), self.key_offsets[1:].tolist(), strict=False
        )
        for count, first, last in bounds:
            pairs = weights[start : start + count * (last - first)].view(count, last - first)
            parts.append(pairs @ self.value[first:last])
            start += pairs.numel()
        assert start == len(weights)
        return torch.cat(parts)

    def slow(self, normalise):
        return slow_target_attention(
            self.query,
            self.query_offsets,
            self.key,
            self.key_offsets,
            self.value,
            self.weight,
            self.bias,
            self.out,
            self.out_bias[0],
            slope=self.slope,
            key_hidden=self.key_hidden,
            normalise=normalise,
        )


def assert_same_values_and_gradients(case, a, b):
    torch.testing.assert_close(a, b)
    upstream = torch.randn(a.shape, generator=torch.Generator().manual_seed(7), dtype=a.dtype)
    left = torch.autograd.grad(a, case.leaves, upstream, allow_unused=True, materialize_grads=True)
    right = torch.autograd.grad(b, case.leaves, upstream, allow_unused=True, materialize_grads=True)
    for x, y in zip(left, right, strict=True):
        torch.testing.assert_close(x, y)


switches = {
    "pairs": row_pairs,
    "seed": st.integers(0, 999),
    "slope": st.booleans(),
    "hidden": st.booleans(),
    "normalise": st.sampled_from(NORMALISERS),
}


@settings(max_examples=60)
@given(**switches)
def test_the_factored_unit_equals_the_loop_over_four_parts(pairs, seed, slope, hidden, normalise):
    case = Case([(1, 1), *pairs], seed, slope=slope, hidden=hidden)
    assert_same_values_and_gradients(case, case.fast(normalise), case.slow(normalise))


@settings(max_examples=30)
@given(**switches)
def test_the_weights_themselves_are_those_of_the_loop(pairs, seed, slope, hidden, normalise):
    case = Case([(1, 1), *pairs], seed, slope=slope, hidden=hidden)
    assert_same_values_and_gradients(case, case.weighed(normalise), case.slow(normalise))
    assert_same_values_and_gradients(case, case.weighed(normalise, nn.Identity()), case.slow(normalise))


@settings(max_examples=30)
@given(**switches)
def test_the_deep_path_without_deeper_layers_equals_the_loop(pairs, seed, slope, hidden, normalise):
    case = Case([(1, 1), *pairs], seed, slope=slope, hidden=hidden)
    assert_same_values_and_gradients(case, case.deep(normalise, nn.Identity()), case.slow(normalise))


@pytest.mark.parametrize("normalise", NORMALISERS)
@pytest.mark.parametrize("slope", [False, True], ids=["relu", "prelu"])
def test_gradients_pass_gradcheck(normalise, slope):
    case = Case([(4, 4), (0, 2), (3, 1)], 3, slope=slope, hidden=True)
    assert torch.autograd.gradcheck(lambda *_: case.fast(normalise), case.leaves)


def test_blocks_of_any_size_give_the_same_sum(monkeypatch):
    case = Case([(6, 5), (2, 3)], 1, slope=True, hidden=True)
    small = case.fast("softmax")
    monkeypatch.setattr(module, "CANDIDATE_BLOCK", 100)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 1 << 18)
    torch.testing.assert_close(case.fast("softmax"), small)


def test_an_empty_history_gives_zeros_and_no_gradient():
    case = Case([(0, 3)], 1, slope=True, hidden=True)
    out = case.fast("softmax")
    assert not out.any()
    assert not torch.autograd.grad(out.sum(), case.query)[0].any()


@settings(max_examples=20)
@given(length=st.integers(1, 6), seed=st.integers(0, 99))
def test_repeating_the_history_doubles_the_plain_sum(length, seed):
    """The paper drops the softmax on purpose: intensity counts (dien.md section 7, property 5)."""
    once = Case([(length, 2)], seed, slope=False, hidden=True)
    twice = Case([(2 * length, 2)], seed, slope=False, hidden=True)
    for name in ("query", "weight", "bias", "out", "out_bias"):
        setattr(twice, name, getattr(once, name))
    for name in ("key", "value", "key_hidden"):
        setattr(twice, name, torch.cat([getattr(once, name)] * 2))
    torch.testing.assert_close(twice.fast("none"), 2 * once.fast("none"))
    torch.testing.assert_close(twice.fast("softmax"), once.fast("softmax"))
    torch.testing.assert_close(twice.fast("sqrt_length"), 2**0.5 * once.fast("sqrt_length"))


@settings(max_examples=20)
@given(length=st.integers(1, 6), seed=st.integers(0, 99))
def test_softmax_weights_are_not_negative_and_sum_to_one(length, seed):
    case = Case([(length, 3)], seed, slope=True, hidden=True)
    case.value = torch.eye(length, dtype=torch.float64)
    weights = case.fast("softmax")
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))


@settings(max_examples=20)
@given(seed=st.integers(0, 99), normalise=st.sampled_from(NORMALISERS))
def test_reversing_the_history_changes_no_sum(seed, normalise):
    case = Case([(5, 3)], seed, slope=True, hidden=True)
    before = case.fast(normalise)
    case.key, case.value, case.key_hidden = case.key.flip(0), case.value.flip(0), case.key_hidden.flip(0)
    torch.testing.assert_close(case.fast(normalise), before)


def test_deeper_units_get_gradients_and_bounded_scores():
    case = Case([(5, 4), (0, 1)], 2, slope=True, hidden=True)
    deeper = nn.Sequential(nn.Linear(H, H), nn.ReLU()).double()
    out = case.deep("softmax", deeper)
    out.square().sum().backward()
    assert out.shape == (5, V)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in deeper.parameters())


def test_no_gradient_is_kept_when_none_is_asked_for():
    case = Case([(5, 4)], 2, slope=True, hidden=True)
    with torch.no_grad():
        assert not case.fast("none").requires_grad


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("normalise", NORMALISERS)
def test_autocast_lowers_the_products_and_nothing_else(slope, normalise):
    """bfloat16 has 8 bits: pooled vectors and gradients as a whole within 5 %, results still float32."""
    case = Case([(40, 3), (0, 2), (7, 1)], 1, slope=slope, hidden=True)
    for leaf in case.leaves:
        leaf.data = leaf.data.float().div(2)
    plain = case.fast(normalise)
    with torch.autocast("cpu", torch.bfloat16):
        lower = case.fast(normalise)
    assert lower.dtype == torch.float32
    assert not torch.equal(lower, plain)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    expected, found = (
        torch.cat([grad.flatten() for grad in torch.autograd.grad(out, case.leaves, upstream)])
        for out in (plain, lower)
    )
    for whole, part in ((plain, lower), (expected, found)):
        assert float((whole - part).detach().norm()) <= 0.05 * float(whole.detach().norm())


@pytest.mark.parametrize("normalise", NORMALISERS)
def test_with_key_is_the_key_in_front_of_the_value(normalise):
    case = Case([(5, 2), (0, 1), (3, 3)], 0, slope=True, hidden=True)
    arguments = (case.query, case.query_offsets, case.key, case.key_offsets)
    rest = {"key_hidden": case.key_hidden, "normalise": normalise}
    joined = target_attention(*arguments, torch.cat([case.key, case.value], 1), case.unit(), **rest)
    apart = target_attention(*arguments, case.value, case.unit(), with_key=True, **rest)
    assert_same_values_and_gradients(case, apart, joined)
