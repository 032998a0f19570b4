from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sostenuto.ops.operators import operator


def _scaled(values: Tensor, factor: float) -> Tensor:
    return values * factor


def _like(values: Tensor, factor: float) -> Tensor:
    return torch.empty_like(values)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.factor = inputs


def _back(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
    return d_out * ctx.factor, None


scaled = operator("test_scaled", _scaled, fake=_like, backward=_back, setup_context=_keep)
constant = operator("test_constant", _scaled, fake=_like)


def test_an_operator_passes_torch_s_own_checks() -> None:
    values = torch.randn(5, requires_grad=True)
    torch.library.opcheck(scaled, (values, 2.0))
    torch.library.opcheck(constant, (values.detach(), 2.0))


def test_without_a_gradient_it_refuses_to_be_differentiated() -> None:
    values = torch.randn(5, requires_grad=True)
    found = constant(values, 2.0)
    with pytest.raises(RuntimeError, match=r"sostenuto::test_constant must not be differentiated"):
        found.sum().backward()
    assert torch.equal(constant(values.detach(), 2.0), values.detach() * 2.0)


def test_a_compiled_function_keeps_it_as_one_step_with_its_gradient() -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def function(values: Tensor) -> Tensor:
        return scaled(values, 3.0).square().sum()  # type: ignore[no-any-return]

    values = torch.randn(5, requires_grad=True)
    function(values).backward()
    torch.testing.assert_close(values.grad, 18.0 * values.detach())


def test_an_exported_program_holds_it() -> None:
    class Module(torch.nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return scaled(values, 3.0)  # type: ignore[no-any-return]

    program = torch.export.export(Module(), (torch.ones(2),))
    assert "sostenuto.test_scaled" in str(program.graph)
    assert program.module()(torch.ones(2)).tolist() == [3.0, 3.0]
