"""Dropout with a cheap mask is dropout."""

import pytest
import torch

from sostenuto.layers.dropout import Dropout


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
