"""Torch operators made of Python functions, for what `torch.compile` and `torch.export` must see as one step.

`torch.library.custom_op` says the same in a line, but its first call loads torch's compiler: 70 MB and seconds, in
every process that trains or scores and never compiles. `define` and `impl` of the same module do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "sostenuto"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]  # operators live as long


def operator(
    name: str,
    function: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Return `torch.ops.sostenuto.<name>`, which calls a function of tensors and numbers.

    Args:
        name: of the operator, once in a process.
        function: annotated; changes none of its arguments and returns none of them, nor a view of one.
        fake: the same for tensors without data: shapes and types of what is returned.
        backward: (ctx, *gradients of what is returned) -> gradients of all arguments. Without it the operator refuses
            to be differentiated.
        setup_context: (ctx, inputs, output), keeps what `backward` needs.
    """
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    qualified = f"{NAMESPACE}::{name}"

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(f"{qualified} must not be differentiated, it has no gradient; detach what it returns")

    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    torch.library.register_autograd(qualified, backward or refuse, setup_context=setup_context, lib=_LIBRARY)
    found: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return found


__all__ = ["NAMESPACE", "operator"]
