"""The compiled twin of `recurrence`, as a torch operator; the definition is the plain form there.

Between forward and backward pass it keeps, per pair of a candidate and a step, the attention and 1 / 16 of a state: 4
+ H / 4 bytes. Where every state is the result (the plain cell), nothing else is kept. The backward pass makes the gates
of 12 rows and 16 steps at a time anew: 4 KB H per thread, and 36 H * H bytes for each of 8 sums of the weights, beside
the gradients it returns.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sostenuto.native.library import (
    RecurrenceGradients,
    RecurrenceInputs,
    RecurrenceOutputs,
    RecurrenceShape,
    any_library,
)
from sostenuto.ops.checked_arrays import check_shape
from sostenuto.ops.operators import operator

EVERY = 16  # K: of so many states one is kept
UNITS = 16  # the compiled form works on a multiple of so many units; others are filled up with units that stay 0


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _shape(inputs: Tensor, query_offsets: Tensor, key_offsets: Tensor, cell: int) -> RecurrenceShape:
    return RecurrenceShape(
        requests=query_offsets.shape[0] - 1,
        candidates=int(query_offsets[-1]),
        steps=inputs.shape[0],
        units=inputs.shape[1] // 3,
        cell=cell,
        every=EVERY,
        threads=torch.get_num_threads(),
        query_offsets=query_offsets.data_ptr(),
        key_offsets=key_offsets.data_ptr(),
    )


def _call(name: str, *structs: ctypes.Structure) -> Any:
    return getattr(any_library().handle, f"sostenuto_recurrence_{name}")(*(ctypes.byref(struct) for struct in structs))


def _checked_kept(
    shape: RecurrenceShape,
    query_offsets: Tensor,
    key_offsets: Tensor,
    attention: Tensor | None,
    initial: Tensor | None,
) -> int:
    """Return how many states are kept after a look that nothing reaches beyond an array."""
    if query_offsets.shape[0] != key_offsets.shape[0]:
        raise ValueError(
            f"query_offsets must have the {len(key_offsets) - 1} rows of the steps, got {len(query_offsets) - 1}; "
            "give one row per request"
        )
    kept = int(_call("kept", shape))
    if kept >= 0:
        pairs = int(((query_offsets[1:] - query_offsets[:-1]) * (key_offsets[1:] - key_offsets[:-1])).sum())
        for name, tensor, rows in (("attention", attention, pairs), ("initial", initial, shape.candidates)):
            if tensor is not None and tensor.shape[0] != rows:
                raise ValueError(f"{name} must have {rows} rows, got {tensor.shape[0]}; see `recurrence`")
        return kept
    name, offsets, rows = (
        ("query_offsets", query_offsets, shape.candidates) if kept == -1 else ("offsets", key_offsets, shape.steps)
    )
    raise ValueError(f"{name} must rise from 0 to {rows}, got {offsets.tolist()[:5]}...; make them with cumsum")


def _inputs(
    inputs: Tensor, attention: Tensor | None, initial: Tensor | None, weight: Tensor, bias: Tensor
) -> RecurrenceInputs:
    return RecurrenceInputs(
        inputs=_address(inputs),
        attention=_address(attention),
        initial=_address(initial),
        weight=_address(weight),
        bias=_address(bias),
    )


def _contiguous(*tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def _forward(
    inputs: Tensor,
    attention: Tensor | None,
    initial: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    cell: int,
    every_state: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ((Nc, H) last states, (Nh, H) all states with `every_state`, what the backward pass starts from).

    Args:
        inputs: (Nh, 3 H), H a multiple of `UNITS`.
        attention: (pairs,), None for cell 0.
        initial: (Nc, H), None for zeros.
        weight: (3 H, H).
        bias: (3 H,).
        query_offsets: (B + 1,); with `every_state` 0, 1, 2 ...
        key_offsets: (B + 1,).
        cell: place in `recurrence.CELLS`.
        every_state: also return the states behind every step.
        keep: for a backward pass; with `every_state` nothing more is needed than these.
    """
    query_offsets, key_offsets = (t.to(torch.int64).contiguous() for t in (query_offsets, key_offsets))
    shape = _shape(inputs, query_offsets, key_offsets, cell)
    check_shape("weight", weight, (3 * shape.units, shape.units))
    check_shape("inputs", inputs, (shape.steps, 3 * shape.units))
    check_shape("bias", bias, (3 * shape.units,))
    if initial is not None:
        check_shape("initial", initial, (initial.shape[0], shape.units))
    count = _checked_kept(shape, query_offsets, key_offsets, attention, initial)
    held = _contiguous(inputs, attention, initial, weight, bias)
    units = weight.shape[1]
    last = inputs.new_empty(shape.candidates, units)
    states = inputs.new_empty(inputs.shape[0] if every_state else 0, units)
    kept = inputs.new_empty(count if keep and not every_state else 0, units)
    outputs = RecurrenceOutputs(
        last=_address(last),
        states=_address(states) if every_state else None,
        kept=_address(kept) if keep and not every_state else None,
    )
    _call("forward", shape, _inputs(*held), outputs)
    return last, states, kept


def _fake_forward(
    inputs: Tensor,
    attention: Tensor | None,
    initial: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    cell: int,
    every_state: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    units = weight.shape[1]
    if initial is not None:
        rows: Any = initial.shape[0]
    else:
        rows = query_offsets.shape[0] - 1 if every_state else torch.library.get_ctx().new_dynamic_size()
    kept: Any = torch.library.get_ctx().new_dynamic_size() if keep and not every_state else 0
    return (
        inputs.new_empty(rows, units),
        inputs.new_empty(inputs.shape[0] if every_state else 0, units),
        inputs.new_empty(kept, units),
    )


def _gradients(
    d_last: Tensor,
    d_states: Tensor,
    states: Tensor,
    kept: Tensor,
    inputs: Tensor,
    attention: Tensor | None,
    initial: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    cell: int,
    every_state: bool,
) -> list[Tensor]:
    """Return the gradients of inputs, weight, bias, attention and initial; the last two empty where there are none."""
    query_offsets, key_offsets = (t.to(torch.int64).contiguous() for t in (query_offsets, key_offsets))
    upstream, of_states, states, kept = _contiguous(d_last, d_states, states, kept)
    held = _contiguous(inputs, attention, initial, weight, bias)
    d_inputs, d_weight, d_bias = torch.zeros_like(held[0]), torch.empty_like(held[3]), torch.empty_like(held[4])
    d_attention = inputs.new_empty(0) if attention is None else torch.empty_like(held[1])
    d_initial = inputs.new_empty(0) if initial is None else torch.empty_like(held[2])
    gradients = RecurrenceGradients(
        states=_address(states) if every_state else None,
        kept=_address(kept),
        d_last=_address(upstream),
        d_states=_address(of_states) if every_state else None,
        d_inputs=_address(d_inputs),
        d_attention=None if attention is None else _address(d_attention),
        d_initial=None if initial is None else _address(d_initial),
        d_weight=_address(d_weight),
        d_bias=_address(d_bias),
    )
    _call("backward", _shape(inputs, query_offsets, key_offsets, cell), _inputs(*held), gradients)
    return [d_inputs, d_weight, d_bias, d_attention, d_initial]


def _fake_gradients(
    d_last: Tensor,
    d_states: Tensor,
    states: Tensor,
    kept: Tensor,
    inputs: Tensor,
    attention: Tensor | None,
    initial: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    cell: int,
    every_state: bool,
) -> list[Tensor]:
    some = (inputs.new_empty(0) if t is None else torch.empty_like(t) for t in (attention, initial))
    return [torch.empty_like(inputs), torch.empty_like(weight), torch.empty_like(bias), *some]


recurrence_backward = operator("recurrence_backward", _gradients, fake=_fake_gradients)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.cell, ctx.every_state, _ = inputs
    ctx.has_attention, ctx.has_initial = tensors[1] is not None, tensors[2] is not None
    ctx.save_for_backward(*output[1:], *(t for t in tensors if t is not None))


def _saved(ctx: Any) -> list[Tensor | None]:
    """Return states, kept, and the tensors of `_forward`."""
    tensors: list[Tensor | None] = list(ctx.saved_tensors)
    if not ctx.has_attention:
        tensors.insert(3, None)
    if not ctx.has_initial:
        tensors.insert(4, None)
    return tensors


def _backward(
    ctx: Any, d_last: Tensor, d_states: Tensor, *_: Tensor | None, run: Any = recurrence_backward
) -> tuple[Tensor | None, ...]:
    found = run(d_last, d_states, *_saved(ctx), ctx.cell, ctx.every_state)
    d_inputs, d_weight, d_bias, d_attention, d_initial = found
    return (
        d_inputs,
        d_attention if ctx.has_attention else None,
        d_initial if ctx.has_initial else None,
        d_weight,
        d_bias,
        *(None,) * 5,
    )


recurrence = operator("recurrence", _forward, fake=_fake_forward, backward=_backward, setup_context=_setup)


class _Scan(torch.autograd.Function):
    """The operator without torch's dispatch; its one result is what the caller asked for."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        found = _forward(*inputs)
        _setup(ctx, inputs, found)
        ctx.shape = found[0].shape
        return found[1] if ctx.every_state else found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        nothing = d_out.new_zeros(ctx.shape if ctx.every_state else (0, ctx.shape[1]))
        return _backward(ctx, *((nothing, d_out) if ctx.every_state else (d_out, nothing)), run=_gradients)


def scan(
    inputs: Tensor,
    attention: Tensor | None,
    initial: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    cell: int,
    every_state: bool,
) -> Tensor:
    """Return the (Nh, H) states behind every step with `every_state`, else the (Nc, H) last ones; any H."""
    units = weight.shape[1]
    short = -units % UNITS
    if short:  # a unit whose weights and inputs are 0 stays 0
        inputs = F.pad(inputs.view(-1, 3, units), (0, short)).flatten(1)
        weight = F.pad(weight.view(3, units, units), (0, short, 0, short)).flatten(0, 1)
        bias = F.pad(bias.view(3, units), (0, short)).flatten()
        initial = None if initial is None else F.pad(initial, (0, short))
    operands = (inputs, attention, initial, weight, bias)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    every = (*operands, query_offsets, key_offsets, cell, every_state, keep)
    found: Tensor
    if torch.compiler.is_compiling():
        found = recurrence(*every)[int(every_state)]
    elif keep:
        found = _Scan.apply(*every)  # type: ignore[no-untyped-call]
    else:
        found = _forward(*every)[int(every_state)]
    return found[:, :units] if short else found


__all__ = ["EVERY", "UNITS", "recurrence", "recurrence_backward", "scan"]
