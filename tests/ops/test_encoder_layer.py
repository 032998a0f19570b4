import math

import numpy as np
import pytest
import torch
from tests.content.invented import last_layer_arrays

from sostenuto.ops.encoder_layer import encoder_layer, text_vectors

DIM, HEADS = 6, 2


def weights():
    return {k: torch.from_numpy(w).double() for k, w in last_layer_arrays(DIM, np.random.default_rng(0)).items()}


def slow_layer(states, w):
    """One text of T real tokens, token by token, head by head."""
    num, width = len(states), DIM // HEADS
    linear = lambda name, x: w[f"{name}.weight"] @ x + w[f"{name}.bias"]  # noqa: E731

    def norm(name, x):
        centred = x - x.mean()
        return centred / math.sqrt(float(centred.square().mean()) + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]

    query, key, value = ([linear(name, x) for x in states] for name in ("query", "key", "value"))
    out = []
    for t in range(num):
        read = []
        for h in range(HEADS):
            part = slice(h * width, (h + 1) * width)
            scores = torch.stack([query[t][part] @ key[s][part] / math.sqrt(width) for s in range(num)])
            weight = scores.exp() / scores.exp().sum()
            read.append(sum(weight[s] * value[s][part] for s in range(num)))
        middle = norm("attention_norm", linear("attention", torch.cat(read)) + states[t])
        inner = linear("inner", middle)
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        out.append(norm("outer_norm", linear("outer", inner) + middle))
    return torch.stack(out)


def test_it_equals_the_slow_layer_and_padding_is_zero():
    states = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 4, DIM)))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    found = encoder_layer(states, mask, weights(), heads=HEADS)
    torch.testing.assert_close(found[0], slow_layer(states[0], weights()))
    torch.testing.assert_close(found[1, :2], slow_layer(states[1, :2], weights()))
    assert not found[~mask].any()


def test_what_stands_behind_the_mask_changes_nothing():
    states = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 4, DIM)))
    mask = torch.tensor([[True, True, False, False]])
    changed = states.clone()
    changed[0, 2:] = 1e3
    w = weights()
    assert torch.equal(encoder_layer(states, mask, w, heads=HEADS), encoder_layer(changed, mask, w, heads=HEADS))


def test_a_text_without_tokens_is_finite_forward_and_backward():
    states = torch.zeros(1, 3, DIM, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(1, 3, dtype=torch.bool)
    vectors = text_vectors(encoder_layer(states, mask, weights(), heads=HEADS), mask)
    assert not vectors.any()
    vectors.sum().backward()
    assert torch.isfinite(states.grad).all()


def test_vectors_are_means_of_length_one():
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    found = text_vectors(states, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8]]))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="heads must divide"):
        encoder_layer(torch.zeros(1, 2, DIM), torch.ones(1, 2, dtype=torch.bool), weights(), heads=4)
