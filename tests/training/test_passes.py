"""A batch may be worked off in passes of any size: loss and gradients are those of the whole."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import PREPARED, make_batch, view_of
from torch import nn

from sostenuto.evaluation.predictions import predict
from sostenuto.features.batch_parts import PAIRS_PER_EVENT, batch_parts, cut_points
from sostenuto.models.table import build, default_config
from sostenuto.training.config import TrainingConfig
from sostenuto.training.loop import accumulate
from sostenuto.training.losses import objective_named

FEATURES = view_of(PREPARED, match=True)
SIZES = [(5, 3), (0, 2), (7, 1), (2, 4), (9, 2), (1, 1)]


def ranker_of(name: str) -> nn.Module:
    config = dataclasses.replace(default_config(name), dropout=0.0, item_dim=4)
    ranker = build(name, config, FEATURES, seed=0)
    assert isinstance(ranker, nn.Module)
    return ranker


def gradients(name: str, max_events: int, weighting: str, listwise: float) -> tuple[float, dict[str, torch.Tensor]]:
    ranker = ranker_of(name)
    batch = make_batch(FEATURES, SIZES, 3)
    batch = dataclasses.replace(batch, labels=(torch.arange(len(batch.labels)) % 3 == 0).float())
    ranker.train()
    accumulate(ranker, batch, objective_named("bce"), TrainingConfig())  # running statistics have seen the batch
    for p in ranker.parameters():
        p.grad = None
    ranker.eval()
    config = TrainingConfig(max_events=max_events, weighting=weighting, listwise=listwise)  # type: ignore[arg-type]
    loss = accumulate(ranker, batch, objective_named("bce"), config)
    return loss, {n: p.grad.to_dense() for n, p in ranker.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["mean_pool", "din", "sdim"])
@pytest.mark.parametrize(("weighting", "listwise"), [("candidate", 0.0), ("request", 0.7), ("list", 0.0)])
@pytest.mark.parametrize("max_events", [1, 8, 14])
def test_passes_add_up_to_the_gradient_of_the_batch(
    name: str, weighting: str, listwise: float, max_events: int
) -> None:
    whole, expected = gradients(name, 1 << 20, weighting, listwise)
    loss, found = gradients(name, max_events, weighting, listwise)
    assert loss == pytest.approx(whole, rel=1e-5)
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)


@pytest.mark.parametrize("name", ["mean_pool", "din", "sdim"])
@pytest.mark.parametrize("activation", ["prelu", "dice"])
def test_bfloat16_gives_nearly_the_same_gradient(name: str, activation: str) -> None:
    config = dataclasses.replace(default_config(name), dropout=0.0, item_dim=4, tower_activation=activation)
    batch = make_batch(FEATURES, SIZES, 3)
    batch = dataclasses.replace(batch, labels=(torch.arange(len(batch.labels)) % 3 == 0).float())
    found = {}
    for precision in ("float32", "bfloat16"):
        ranker = build(name, config, FEATURES, seed=0)
        assert isinstance(ranker, nn.Module)
        ranker.train()
        loss = accumulate(ranker, batch, objective_named("bce"), TrainingConfig(precision=precision))  # type: ignore[arg-type]
        flat = [p.grad.to_dense().flatten() for p in ranker.parameters() if p.grad is not None]
        assert all(part.dtype == torch.float32 for part in flat)
        found[precision] = loss, torch.cat(flat)
    assert found["bfloat16"][0] == pytest.approx(found["float32"][0], rel=0.02)
    cosine = nn.functional.cosine_similarity(found["bfloat16"][1], found["float32"][1], dim=0)
    assert float(cosine) > 0.99
    assert not torch.equal(found["bfloat16"][1], found["float32"][1])


@pytest.mark.parametrize("name", ["popularity", "din", "sdim"])
def test_scores_do_not_depend_on_the_passes(name: str) -> None:
    batch = make_batch(FEATURES, SIZES, 3)
    ranker = build(name, default_config(name), FEATURES, seed=0)
    whole, cut = (predict(ranker, [batch], max_events=n) for n in (1 << 20, 6))
    assert whole.item.tolist() == cut.item.tolist()
    assert whole.logit == pytest.approx(cut.logit, rel=1e-5, abs=1e-6)


@settings(max_examples=50)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), min_size=1, max_size=12),
    most=st.integers(1, 60),
)
def test_cuts_keep_within_bounds_and_lose_nothing(sizes: list[tuple[int, int]], most: int) -> None:
    events, candidates = [a for a, _ in sizes], [b for _, b in sizes]
    points = cut_points(events, candidates, most)
    assert points[0] == 0
    assert points[-1] == len(sizes)
    for first, last in itertools.pairwise(points):
        assert first < last
        pairs = sum(a * b for a, b in sizes[first:last])
        within = sum(events[first:last]) <= most and pairs <= PAIRS_PER_EVENT * most
        assert within or last == first + 1
    batch = make_batch(FEATURES, SIZES, 0)
    parts = list(batch_parts(batch, most))
    assert torch.equal(torch.cat([p.batch.histories.item for p in parts]), batch.histories.item)
    assert torch.equal(torch.cat([p.batch.candidates.item for p in parts]), batch.candidates.item)
    assert torch.equal(torch.cat([p.batch.user for p in parts]), batch.user)
    assert sum(p.share for p in parts) == pytest.approx(1.0)
