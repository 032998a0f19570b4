"""Dropout with a cheap mask is dropout."""

import pytest
import torch

from sostenuto.layers.dropout import Dropout, DropoutByItem


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1001, 37), (3,), (0, 4)])
def test_a_share_of_entries_is_dropped_and_the_others_are_scaled(share: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    values = torch.full(shape, 2.0)
    dropped = Dropout(share)(values)
    assert dropped.shape == values.shape
    scaled = torch.full((), 2.0 / (1 - share))
    assert torch.all((dropped == 0) | torch.isclose(dropped, scaled, rtol=1e-3))
    count = values.numel()
    if count > 1000:
        deviation = (share * (1 - share) / count) ** 0.5
        assert abs((dropped == 0).float().mean().item() - share) < 5 * deviation
        assert abs(dropped.mean().item() - 2.0) < 5 * deviation * 2.0 / (1 - share)


def test_entries_are_dropped_independently_of_their_neighbours() -> None:
    torch.manual_seed(4)
    gone = (Dropout(0.3)(torch.ones(400_000)) == 0).float()
    for lag in (1, 2, 3, 4, 5, 64):  # four entries share a drawn number
        both = (gone[lag:] * gone[:-lag]).mean().item()
        assert abs(both - 0.09) < 5 * (0.09 * 0.91 / len(gone)) ** 0.5


def test_gradients_pass_where_values_pass() -> None:
    torch.manual_seed(5)
    values = torch.ones(500, 8, requires_grad=True)
    dropped = Dropout(0.25)(values)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())


@pytest.mark.parametrize("share", [0.0, 1e-7, 0.4])
def test_evaluation_and_a_share_of_nothing_change_nothing(share: float) -> None:
    values = torch.randn(5, 6)
    assert torch.equal(Dropout(share).eval()(values), values)
    if share < 1e-6:
        assert torch.allclose(Dropout(share)(values), values)


def test_dropping_everything_leaves_zeros() -> None:
    assert torch.equal(Dropout(1.0)(torch.ones(7)), torch.zeros(7))


def test_a_seed_repeats_the_mask() -> None:
    values = torch.randn(50, 5)
    torch.manual_seed(1)
    first = Dropout(0.5)(values)
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.5)(values), first)


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("width", [3, 4, 37])
def test_a_mask_by_item_is_dropout(share: float, width: int) -> None:
    torch.manual_seed(6)
    dropped = DropoutByItem(share)(torch.full((3_000, width), 2.0), torch.arange(3_000))
    assert torch.all((dropped == 0) | torch.isclose(dropped, torch.full((), 2.0 / (1 - share)), rtol=1e-3))
    gone = (dropped == 0).float()
    deviation = (share * (1 - share) / gone.numel()) ** 0.5
    assert abs(gone.mean().item() - share) < 5 * deviation
    for lag in (1, 2, 3, 4, width):  # within a word, and from item to item
        both = (gone.flatten()[lag:] * gone.flatten()[:-lag]).mean().item()
        assert abs(both - share**2) < 6 * (share**2 * (1 - share**2) / gone.numel()) ** 0.5


def test_a_mask_by_item_follows_the_item_until_it_is_renewed() -> None:
    torch.manual_seed(7)
    drop, items = DropoutByItem(0.5), torch.tensor([5, 2, 5, 9, 2])
    first = drop(torch.ones(5, 64), items)
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], first[4])
    assert not torch.equal(first[0], first[3])
    assert torch.equal(drop(torch.ones(2, 64), items[[3, 0]]), first[[3, 0]])
    drop.renew()
    assert not torch.equal(drop(torch.ones(5, 64), items), first)


@pytest.mark.parametrize("drop", [DropoutByItem(0.5).eval(), DropoutByItem(0.0)])
def test_a_mask_by_item_is_for_learning_alone(drop: DropoutByItem) -> None:
    values = torch.randn(5, 6)
    assert drop(values, torch.arange(5)) is values
