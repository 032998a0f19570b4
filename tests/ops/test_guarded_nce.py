"""The loss against its formula, and its guard."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.ops.guarded_nce import false_negatives, guarded_nce, horizon_weights


@given(targets=st.integers(1, 4), drawn=st.integers(0, 5), seed=st.integers(0, 99))
def test_the_loss_is_minus_the_log_of_the_target_share(targets, drawn, seed):
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randn(targets, generator=generator)
    negative = torch.randn(targets, drawn, generator=generator)
    excluded = torch.rand(targets, drawn, generator=generator) < 0.3
    found = guarded_nce(positive, negative, excluded)
    for w in range(targets):
        rest = sum(math.exp(negative[w, m]) for m in range(drawn) if not excluded[w, m])
        share = math.exp(positive[w]) / (math.exp(positive[w]) + rest)
        assert float(found[w]) == pytest.approx(-math.log(share), abs=1e-5)


def test_a_negative_equal_to_the_positive_never_enters():
    target = torch.tensor([[1.0, 2.0, 0.0]])
    negatives = torch.tensor([[2.0, 4.0, 0.0], [1.0, 2.0, 0.1], [1.0, 0.0, 0.0]])  # same direction, cosine .999, other
    excluded = false_negatives(target, negatives)
    assert excluded.tolist() == [[True, True, False]]
    scores = target @ negatives.T
    moved = scores.clone()
    moved[0, :2] += 50.0
    positive = torch.tensor([3.0])
    assert torch.equal(guarded_nce(positive, scores, excluded), guarded_nce(positive, moved, excluded))


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_horizon_weights_sum_to_one_and_fall(steps):
    weight = horizon_weights(steps, 0.99)
    assert float(weight.sum()) == pytest.approx(1.0)
    assert bool((weight.diff() < 0).all())
    for p in range(steps):
        assert float(weight[p]) == pytest.approx(0.99**p / sum(0.99**q for q in range(steps)))
