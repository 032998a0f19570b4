from __future__ import annotations

import itertools
import math

import pytest
import torch
from tests.training.largest_new import LargestNew
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.layers.embedding import ItemEmbedding, Table
from sostenuto.ops.backend import available, using
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec
from sostenuto.training.config import TrainingConfig
from sostenuto.training.optimiser import (
    LAST_SHARE,
    RankerOptimiser,
    dense_parameters,
    learning_rate_share,
    table_parameters,
)


class Small(nn.Module):
    """A table used twice, under two names, and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.items = Table(20, 3, std=1.0)
            self.targets = self.items
            self.head = nn.Linear(3, 1)

    def forward(self, history: Tensor, target: Tensor) -> Tensor:
        return self.head(self.items(history) * self.targets(target)).squeeze(1)  # type: ignore[no-any-return]


def loss_of(ranker: Small, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    history, target = torch.randint(0, 10, (2, 8), generator=generator)
    return F.softplus(ranker(history, target)).sum()


def test_tables_are_found_once_and_everything_else_is_dense() -> None:
    ranker = Small()
    assert list(table_parameters(ranker)) == ["items.weight"]
    assert list(dense_parameters(ranker)) == ["head.weight", "head.bias"]
    ranker.items.weight.requires_grad_(False)
    assert table_parameters(ranker) == {}
    assert list(dense_parameters(ranker)) == ["head.weight", "head.bias"]


def test_dense_weights_follow_adamw_and_biases_do_not_decay() -> None:
    ranker, twin = Small(), Small()
    optimiser = RankerOptimiser(ranker, TrainingConfig(learning_rate=1e-3, weight_decay=0.1, max_grad_norm=math.inf))
    plain = torch.optim.AdamW(
        [
            {"params": [twin.head.weight], "weight_decay": 0.1},
            {"params": [twin.head.bias], "weight_decay": 0.0},
        ],
        lr=0.5e-3,
    )
    table = twin.items.weight.detach().clone()
    for seed in range(4):
        loss_of(ranker, seed).backward()
        optimiser.step(0.5)
        with torch.no_grad():
            twin.items.weight.copy_(table)
        loss_of(twin, seed).backward()
        plain.step()
        plain.zero_grad()
        twin.items.weight.grad = None
        table = ranker.items.weight.detach().clone()
    torch.testing.assert_close(ranker.head.weight, twin.head.weight)
    torch.testing.assert_close(ranker.head.bias, twin.head.bias)


def test_a_table_on_the_clock_of_steps_follows_plain_adamw_in_every_row() -> None:
    ranker, twin = Small(), Small()
    optimiser = RankerOptimiser(
        ranker,
        TrainingConfig(
            table_clock="step", table_learning_rate=1e-2, learning_rate=0.0, table_decay=0.1, max_grad_norm=math.inf
        ),
    )
    plain = torch.optim.AdamW([twin.items.weight], lr=1e-2, weight_decay=0.1)
    for seed in range(5):
        loss_of(ranker, seed).backward()
        resting = ranker.items.weight.detach().clone()
        report = optimiser.step(1.0)
        loss_of(twin, seed).backward()
        twin.items.weight.grad = twin.items.weight.grad.to_dense()  # type: ignore[union-attr]
        plain.step()
        plain.zero_grad()
        assert 0 < report.touched_rows <= 10
    torch.testing.assert_close(ranker.items.weight, twin.items.weight)
    moved = (ranker.items.weight != resting).any(1)
    assert int(moved[1:].sum()) > report.touched_rows  # rows that rested in the last step moved, too
    assert not bool(moved[0])


def test_a_table_on_the_clock_of_steps_goes_on_from_its_saved_state() -> None:
    whole, config = Small(), TrainingConfig(table_clock="step")
    optimiser = RankerOptimiser(whole, config)
    for seed in range(3):
        loss_of(whole, seed).backward()
        optimiser.step(1.0)
    other = Small()
    other.load_state_dict(whole.state_dict())
    resumed = RankerOptimiser(other, config)
    resumed.load_tensors({name: value.clone() for name, value in optimiser.tensors().items()})
    for ranker, steps in ((whole, optimiser), (other, resumed)):
        loss_of(ranker, 9).backward()
        steps.step(1.0)
    assert torch.equal(whole.items.weight, other.items.weight)


def test_the_clock_of_steps_is_for_adam_alone() -> None:
    with pytest.raises(SpecError, match="table_optimiser must be adam"):
        TrainingConfig(table_clock="step", table_optimiser="adagrad")


def test_clipping_scales_tables_and_dense_weights_by_one_factor() -> None:
    ranker = Small()
    loss_of(ranker).backward()
    optimiser = RankerOptimiser(ranker, TrainingConfig(max_grad_norm=0.1))
    optimiser.tables.coalesce()
    dense = [p.grad.clone() for p in dense_parameters(ranker).values() if p.grad is not None]
    rows = [gradient.clone() for _, _, gradient in optimiser.tables.gradients()]
    norm = math.sqrt(sum(float(g.square().sum()) for g in dense + rows))
    assert optimiser._clip() == pytest.approx(norm, rel=1e-5)
    after = [p.grad for p in dense_parameters(ranker).values()] + [g for _, _, g in optimiser.tables.gradients()]
    for old, new in zip(dense + rows, after, strict=True):
        torch.testing.assert_close(new, old * (0.1 / norm))


def test_a_gradient_that_is_not_finite_updates_nothing_and_is_named() -> None:
    ranker = Small()
    before = {name: value.clone() for name, value in ranker.state_dict().items()}
    optimiser = RankerOptimiser(ranker, TrainingConfig())
    loss_of(ranker).backward()
    assert ranker.head.weight.grad is not None
    ranker.head.weight.grad[0, 0] = math.nan
    assert not math.isfinite(optimiser.step(1.0).grad_norm)
    assert optimiser.non_finite() == ["head.weight"]
    assert all(torch.equal(value, before[name]) for name, value in ranker.state_dict().items())


def test_saved_state_continues_to_the_same_bits() -> None:
    whole, config = Small(), TrainingConfig(table_decay=0.1)
    optimiser = RankerOptimiser(whole, config)
    for seed in range(3):
        loss_of(whole, seed).backward()
        optimiser.step(1.0)
    again = Small()
    again.load_state_dict(whole.state_dict())
    second = RankerOptimiser(again, config)
    second.load_tensors({name: value.clone() for name, value in optimiser.tensors().items()})
    for ranker, its in ((whole, optimiser), (again, second)):
        for seed in range(3, 6):
            loss_of(ranker, seed).backward()
            its.step(1.0)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_warms_up_and_falls_to_its_last_share(schedule: str) -> None:
    config = TrainingConfig(warmup_steps=5, schedule=schedule)  # type: ignore[arg-type]
    shares = [learning_rate_share(step, 50, config) for step in range(50)]
    assert shares[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert shares[5] == pytest.approx(1.0)
    assert shares[-1] == pytest.approx(1.0 if schedule == "constant" else LAST_SHARE)
    assert all(a >= b for a, b in itertools.pairwise(shares[5:]))
    assert learning_rate_share(500, 50, config) == shares[-1]


@pytest.mark.parametrize("name", ["plain", *available()])
def test_nothing_in_a_step_is_as_large_as_the_table(name: str) -> None:
    items = ItemEmbedding(
        FeatureSpec(num_items=200_000, num_item_rows=200_000), item_dim=4, category_dim=0, field_dim=0, id_dropout=0.3
    )
    optimiser = RankerOptimiser(items, TrainingConfig(max_grad_norm=1e-3))
    index = torch.arange(2, 200_000, 20_000)
    with using(available().get(name)), LargestNew() as watch:
        for _ in range(2):  # two passes before the step
            items(index, index[:, None], {}).square().sum().backward()
        assert optimiser.step(1.0).touched_rows > 1
    assert watch.numel <= 2 * 4 * len(index)
