"""Contrast of two views: the equation, its limits, and that it moves both sides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sostenuto.ops.contrastive import contrastive_loss, sampled_negatives


def negatives(rows, count=16, exclude_self=True, seed=0):
    torch.manual_seed(seed)
    return sampled_negatives(rows, count, exclude_self=exclude_self, like=torch.zeros(1))


def slow_loss(left, right, negative, temperature):
    a = left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-5)
    b = right / np.maximum(np.linalg.norm(right, axis=1, keepdims=True), 1e-5)
    total = 0.0
    for k in range(len(a)):
        for query, key in ((a, b), (b, a)):
            scores = np.array([query[k] @ key[k], *(query[k] @ key[j] for j in negative[k])]) / temperature
            total += 0.5 * (np.log(np.exp(scores).sum()) - scores[0])
    return total / len(a)


def test_it_is_the_equation():
    left, right = torch.randn(9, 4), torch.randn(9, 4)
    negative = negatives(9, 5, exclude_self=False)
    found = contrastive_loss(left, right, negative, temperature=0.3)
    assert float(found) == pytest.approx(
        slow_loss(left.double().numpy(), right.double().numpy(), negative.numpy(), 0.3), rel=1e-5
    )


def test_exchanging_content_and_id_changes_nothing():
    """em3.md section 9, property 7."""
    left, right, negative = torch.randn(30, 6), torch.randn(30, 6), negatives(30)
    there = contrastive_loss(left, right, negative, temperature=0.1)
    torch.testing.assert_close(contrastive_loss(right, left, negative, temperature=0.1), there)


def test_random_pairs_at_a_high_temperature_are_at_chance():
    """em3.md section 9, property 7: log(J + 1), 2.833 at J = 16."""
    loss = contrastive_loss(torch.randn(200, 8), torch.randn(200, 8), negatives(200), temperature=100.0)
    assert float(loss) == pytest.approx(math.log(17), abs=1e-2)


@pytest.mark.parametrize("exclude_self", [True, False])
def test_aligned_pairs_cost_nothing_unless_they_are_their_own_negatives(exclude_self):
    """em3.md section 9, property 7: the public code may draw a row as its own negative, which adds log-2-like terms."""
    rows = torch.eye(32)
    loss = float(contrastive_loss(rows, rows, negatives(32, exclude_self=exclude_self), temperature=0.1))
    assert loss < 1e-2 if exclude_self else loss > 0.1


def test_it_falls_and_moves_both_sides():
    """em3.md section 9, property 7."""
    torch.manual_seed(0)
    left, right = torch.randn(40, 6, requires_grad=True), torch.randn(40, 6, requires_grad=True)
    before = left.detach().clone(), right.detach().clone()
    optimiser = torch.optim.Adam([left, right], lr=0.02)
    losses = []
    for _ in range(100):
        optimiser.zero_grad()
        loss = contrastive_loss(left, right, negatives(40), temperature=0.1)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert (left.detach() - before[0]).abs().max() > 0.1
    assert (right.detach() - before[1]).abs().max() > 0.1


@pytest.mark.parametrize("rows", [2, 3, 50])
def test_a_row_is_never_its_own_negative_when_that_is_asked(rows):
    drawn = negatives(rows, 400)
    assert drawn.min() == 0
    assert drawn.max() == rows - 1
    assert not (drawn == torch.arange(rows)[:, None]).any()
    assert (negatives(rows, 400, exclude_self=False) == torch.arange(rows)[:, None]).any()
