from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.training.largest_new import LargestNew
from torch import nn
from torch.nn import functional as F

from sostenuto.training.touched_rows import Kind, TouchedRowOptimiser

KINDS: list[Kind] = ["adam", "rowwise_adam", "adagrad", "rowwise_adagrad"]


def table_of(rows: int, dim: int = 3, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)))


def look_up(table: nn.Parameter, rows: list[int], scale: float = 1.0) -> None:
    """Leave the sparse gradient of a loss that looks up `rows`, repeats included."""
    index = torch.tensor(rows)
    F.embedding(index, table, sparse=True).mul(torch.arange(1, len(rows) + 1)[:, None] * scale).sum().backward()


def one_step(optimiser: TouchedRowOptimiser, learning_rate: float = 0.1) -> int:
    optimiser.coalesce()
    touched = optimiser.step(learning_rate)
    optimiser.zero_grad()
    return touched


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_untouched_rows_and_their_state_keep_every_bit(kind: Kind, decay: float) -> None:
    table = table_of(50)
    optimiser = TouchedRowOptimiser({"item": table}, kind=kind, decay=decay)
    look_up(table, [1, 2, 3])
    one_step(optimiser)  # leaves state behind in rows that the next step must not touch
    before = table.detach().clone()
    state = {name: value.clone() for name, value in optimiser.tensors().items()}
    look_up(table, [7, 2, 7, 9, 2])
    touched = one_step(optimiser)
    assert touched == 3
    rest = [row for row in range(50) if row not in (2, 7, 9)]
    assert torch.equal(table[rest], before[rest])
    assert (table[[2, 7, 9]] != before[[2, 7, 9]]).any(1).all()
    for name, value in optimiser.tensors().items():
        assert torch.equal(value[rest], state[name][rest]), name
    assert optimiser.state["item"]["touches"].nonzero().flatten().tolist() == [1, 2, 3, 7, 9]


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=6))
def test_each_row_equals_plain_adam_on_its_own_gradients(batches: list[list[int]]) -> None:
    table = table_of(6)
    optimiser = TouchedRowOptimiser({"item": table}, kind="adam")
    alone = {row: nn.Parameter(table.detach()[row].clone()) for row in range(6)}
    plain = {row: torch.optim.Adam([weight], lr=0.1) for row, weight in alone.items()}
    for number, rows in enumerate(batches):
        look_up(table, rows, scale=1.0 + number)
        optimiser.coalesce()
        ((_, touched, gradient),) = list(optimiser.gradients())
        for row, slope in zip(touched.tolist(), gradient, strict=True):
            alone[row].grad = slope.clone()
            plain[row].step()
        optimiser.step(0.1)
        optimiser.zero_grad()
    torch.testing.assert_close(table.detach(), torch.stack([alone[row].detach() for row in range(6)]))


def test_adagrad_follows_its_equation() -> None:
    table = table_of(4)
    optimiser = TouchedRowOptimiser({"item": table}, kind="adagrad")
    plain = nn.Parameter(table.detach().clone())
    twin = torch.optim.Adagrad([plain], lr=0.1, eps=1e-8)
    for number, rows in enumerate([[1, 3, 1], [2], [1, 1]]):
        look_up(table, rows, scale=1.0 + number)
        assert table.grad is not None
        plain.grad = table.grad.to_dense()
        one_step(optimiser)
        twin.step()
    torch.testing.assert_close(table, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_passes_that_add_up_move_rows_as_one_pass_does(kind: Kind) -> None:
    whole, parts = table_of(12), table_of(12)
    first, second = TouchedRowOptimiser({"t": whole}, kind=kind), TouchedRowOptimiser({"t": parts}, kind=kind)
    look_up(whole, [1, 5, 5, 2])
    one_step(first)
    F.embedding(torch.tensor([1, 5]), parts, sparse=True).mul(torch.tensor([[1.0], [2.0]])).sum().backward()
    F.embedding(torch.tensor([5, 2]), parts, sparse=True).mul(torch.tensor([[3.0], [4.0]])).sum().backward()
    assert one_step(second) == 3
    torch.testing.assert_close(whole, parts)
    assert torch.equal(first.state["t"]["touches"], second.state["t"]["touches"])


def test_row_wise_adagrad_follows_its_equation() -> None:
    table = table_of(4)
    optimiser = TouchedRowOptimiser({"item": table}, kind="rowwise_adagrad")
    expected, total = table.detach().clone(), torch.zeros(4)
    for scale in (1.0, -0.5, 2.0):
        look_up(table, [1, 3, 1], scale)
        slope = torch.zeros(4, 3)
        slope[1], slope[3] = 4.0 * scale, 2.0 * scale  # positions 0 and 2 weigh 1 + 3, position 1 weighs 2
        total += slope.square().mean(1)
        moved = total > 0
        expected[moved] -= 0.1 * slope[moved] / total[moved].sqrt()[:, None]
        one_step(optimiser)
    torch.testing.assert_close(table.detach(), expected)


def test_row_wise_adam_equals_adam_when_a_row_has_one_column() -> None:
    wide, narrow = table_of(5, 1), table_of(5, 1)
    first, second = TouchedRowOptimiser({"t": wide}), TouchedRowOptimiser({"t": narrow}, kind="rowwise_adam")
    for rows in ([0, 1], [1, 4, 4], [2]):
        for table, optimiser in ((wide, first), (narrow, second)):
            look_up(table, rows)
            one_step(optimiser)
    assert torch.equal(wide, narrow)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_of_a_row_moves_by_the_learning_rate_however_late_it_comes(kind: Kind) -> None:
    table = table_of(3, 2)
    optimiser = TouchedRowOptimiser({"t": table}, kind=kind)
    for _ in range(200):
        look_up(table, [1])
        one_step(optimiser)
    before = table.detach()[2].clone()
    look_up(table, [2], scale=1e-3)
    one_step(optimiser)
    torch.testing.assert_close((before - table.detach()[2]).abs(), torch.full((2,), 0.1), rtol=1e-3, atol=0)


def test_decay_by_frequency_falls_with_the_touches_and_by_touch_does_not() -> None:
    shrink: dict[str, list[float]] = {}
    for by in ("frequency", "touch"):
        table = nn.Parameter(torch.ones(2, 1))
        optimiser = TouchedRowOptimiser({"t": table}, decay=0.5, decay_by=by)  # type: ignore[arg-type]
        shrink[by] = []
        for _ in range(3):
            before = float(table.detach()[1])
            look_up(table, [1], scale=0.0)
            one_step(optimiser)
            shrink[by].append(1 - float(table.detach()[1]) / before)
        assert float(table.detach()[0]) == 1.0
    assert shrink["touch"] == pytest.approx([0.05] * 3, rel=1e-4)
    assert shrink["frequency"] == pytest.approx([0.05, 0.025, 0.05 / 3], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_allocates_by_the_batch_and_not_by_the_table(kind: Kind) -> None:
    largest = {}
    for rows in (100, 100_000):
        table = table_of(rows)
        optimiser = TouchedRowOptimiser({"t": table}, kind=kind, decay=0.1)
        look_up(table, [1, 5, 5, 7])
        optimiser.coalesce()
        with LargestNew() as watch:
            optimiser.step(0.1)
        largest[rows] = watch.numel
    assert largest[100] == largest[100_000] <= 3 * 3


def test_saved_state_continues_to_the_same_bits() -> None:
    runs = []
    for stop in (None, 2):
        table = table_of(6)
        optimiser = TouchedRowOptimiser({"t": table}, decay=0.1)
        for number, rows in enumerate([[1, 2], [2, 3, 3], [5], [1, 5]]):
            if number == stop:
                kept = {name: value.clone() for name, value in optimiser.tensors().items()}
                table = nn.Parameter(table.detach().clone())
                optimiser = TouchedRowOptimiser({"t": table}, decay=0.1)
                optimiser.load_tensors(kept)
            look_up(table, rows)
            one_step(optimiser)
        runs.append(table.detach())
    assert torch.equal(runs[0], runs[1])
