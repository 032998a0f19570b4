from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sostenuto.training.dense_adamw import DenseAdamW


def drawn(seed: int) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (7, 33), "b": (33,), "c": (1,), "d": (4, 2)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def gradients(step: int) -> dict[str, Tensor | None]:
    """Return gradients of which some are missing: of d always, of c in every third step."""
    found: dict[str, Tensor | None] = {name: p.detach() for name, p in drawn(100 + step).items()}
    return found | {"d": None} | ({"c": None} if step % 3 == 0 else {})


def set_gradients(parameters: dict[str, nn.Parameter], step: int) -> None:
    for name, gradient in gradients(step).items():
        parameters[name].grad = gradient


@pytest.mark.parametrize("decay", [{}, {"a": 0.1, "d": 0.1}, {"a": 0.1, "c": 0.02}])
def test_steps_are_those_of_torch_to_the_bit(decay: dict[str, float]) -> None:
    ours, theirs = drawn(0), drawn(0)
    optimiser = DenseAdamW(ours, decay=decay, betas=(0.8, 0.95), eps=1e-6)
    groups = [{"params": [p], "weight_decay": decay.get(name, 0.0)} for name, p in theirs.items()]
    plain = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6, fused=True)
    for step in range(12):
        rate = 0.1 / (step + 1)
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimiser.step(rate)
        for group in plain.param_groups:
            group["lr"] = rate
        plain.step()
        assert all(torch.equal(p, theirs[name]) for name, p in ours.items())
    for name, p in theirs.items():
        for part, value in plain.state[p].items():
            assert torch.equal(value, optimiser.tensors()[f"{name}.{part}"])
    assert not any(name.startswith("d.") for name in optimiser.tensors()), "state without a gradient"


def test_loaded_state_goes_on_to_the_same_bits_and_is_a_copy() -> None:
    whole = drawn(0)
    optimiser = DenseAdamW(whole, decay={"a": 0.1})
    set_gradients(whole, 0)
    optimiser.step(0.1)
    again = {name: nn.Parameter(p.detach().clone()) for name, p in whole.items()}
    second = DenseAdamW(again, decay={"a": 0.1})
    second.load_tensors(optimiser.tensors())
    for parameters, its in ((whole, optimiser), (again, second)):
        for step in range(1, 4):
            set_gradients(parameters, step)
            its.step(0.1)
    assert all(torch.equal(p, again[name]) for name, p in whole.items())


def test_nothing_to_step_is_no_error() -> None:
    optimiser = DenseAdamW({}, decay={})
    optimiser.step(0.1)
    assert optimiser.tensors() == {}
