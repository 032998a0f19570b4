"""The compiled twin of `target_attention`, as a torch operator; the definition is the plain form beside it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sostenuto.native.library import (
    AttentionGradients,
    AttentionInputs,
    AttentionOutputs,
    AttentionShape,
    any_library,
)
from sostenuto.ops.operators import operator


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _shape(
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    value: Tensor,
    *,
    units: int,
    with_key: bool,
    kind: int,
) -> AttentionShape:
    return AttentionShape(
        requests=query_offsets.shape[0] - 1,
        candidates=query.shape[0],
        behaviours=key.shape[0],
        dim=query.shape[1],
        units=units,
        width=value.shape[1],
        with_key=with_key,
        normalise=kind,
        threads=torch.get_num_threads(),
        query_offsets=_address(query_offsets),
        key_offsets=_address(key_offsets),
    )


def _call(name: str, *structs: ctypes.Structure) -> Any:
    return getattr(any_library().handle, name)(*(ctypes.byref(struct) for struct in structs))


def _checked_pairs(shape: AttentionShape, query_offsets: Tensor, key_offsets: Tensor) -> int:
    """Return the number of pairs after a look that offsets stay inside the rows: nobody reads beyond an array."""
    same = query_offsets.shape[0] == key_offsets.shape[0]
    pairs = int(_call("sostenuto_attention_pairs", shape)) if same and query_offsets.shape[0] else -2
    if pairs >= 0:
        return pairs
    name, offsets, rows = (
        ("query_offsets", query_offsets, shape.candidates)
        if pairs == -1
        else ("key_offsets", key_offsets, shape.behaviours)
    )
    raise ValueError(
        f"{name} must rise from 0 to {rows} in {query_offsets.shape[0] - 1} steps, "
        f"got {offsets.tolist()[:5]}...; make them with cumsum"
    )


def _forward(
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    value: Tensor,
    query_hidden: Tensor,
    key_hidden: Tensor | None,
    w_key: Tensor,
    w_product: Tensor,
    w_above: Tensor,
    w_below: Tensor,
    bias: Tensor,
    normalise: int,
    with_key: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ((Nc, V), the weights of all pairs, and the signs of their hidden layers; or none of the pairs).

    Args:
        query: (Nc, D); the other shapes are those of `target_attention`.
        query_offsets: (B + 1,).
        key: (Nh, D).
        key_offsets: (B + 1,).
        value: (Nh, V).
        query_hidden: (Nc, H) the candidate's part of the hidden layer.
        key_hidden: (Nh, H) the behaviour's part.
        w_key: (H, D).
        w_product: (H, D).
        w_above: (H,) readout of positive hidden units.
        w_below: (H,) readout of negative ones: zeros make a ReLU.
        bias: () of the readout.
        normalise: 0 none, 1 softmax, 2 divided by the root of the length.
        with_key: sum the keys too, in front of the values: (Nc, D + V) is returned, and V may be 0.
        keep: also return the weights (pairs,) and signs (pairs, 64 units in an int64), which the backward pass needs.
    """
    query_offsets, key_offsets = query_offsets.contiguous(), key_offsets.contiguous()
    units = w_key.shape[0]
    shape = _shape(query, query_offsets, key, key_offsets, value, units=units, with_key=with_key, kind=normalise)
    pairs = _checked_pairs(shape, query_offsets, key_offsets)
    pairs = pairs if keep else 0
    out = _result(query, value, with_key)
    weights, signs = value.new_empty(pairs), query_offsets.new_empty(pairs, _words(units))
    held = [t.contiguous() for t in (query, query_hidden, key, value, w_key, w_product, w_above, w_below, bias)]
    extra = None if key_hidden is None else key_hidden.contiguous()
    _call(
        "sostenuto_attention_forward",
        shape,
        _inputs(held, extra),
        AttentionOutputs(
            out=_address(out),
            weights=_address(weights) if keep else None,
            signs=_address(signs) if keep else None,
        ),
    )
    return out, weights, signs


def _result(query: Tensor, value: Tensor, with_key: bool) -> Tensor:
    return value.new_empty(query.shape[0], value.shape[1] + (query.shape[1] if with_key else 0))


def _words(units: int) -> int:
    """Return how many words of 64 signs a pair has."""
    return (units + 63) // 64


def _inputs(held: list[Tensor], extra: Tensor | None) -> AttentionInputs:
    names = ("query", "query_hidden", "key", "value", "w_key", "w_product", "w_above", "w_below", "bias")
    return AttentionInputs(
        **{name: _address(t) for name, t in zip(names, held, strict=True)}, key_hidden=_address(extra)
    )


def _fake_forward(
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    value: Tensor,
    query_hidden: Tensor,
    key_hidden: Tensor | None,
    w_key: Tensor,
    w_product: Tensor,
    w_above: Tensor,
    w_below: Tensor,
    bias: Tensor,
    normalise: int,
    with_key: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    pairs = torch.library.get_ctx().new_dynamic_size() if keep else 0
    signs = query_offsets.new_empty(pairs, _words(w_key.shape[0]))
    return _result(query, value, with_key), value.new_empty(pairs), signs


def _gradients(
    d_out: Tensor,
    weights: Tensor,
    signs: Tensor,
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    value: Tensor,
    query_hidden: Tensor,
    key_hidden: Tensor | None,
    w_key: Tensor,
    w_product: Tensor,
    w_above: Tensor,
    w_below: Tensor,
    bias: Tensor,
    normalise: int,
    with_key: bool,
    d_weights: Tensor | None = None,
) -> list[Tensor]:
    """Return the gradients of query, query_hidden, key, value, w_key, w_product, w_above, w_below, bias, key_hidden.

    The last is empty without `key_hidden`. What comes to the weights themselves, `d_weights`, is added to what comes
    through their sums.
    """
    held = [t.contiguous() for t in (query, query_hidden, key, value, w_key, w_product, w_above, w_below, bias)]
    extra = None if key_hidden is None else key_hidden.contiguous()
    query_offsets, key_offsets = query_offsets.contiguous(), key_offsets.contiguous()
    found = [torch.empty_like(t) for t in held[:4]] + [torch.zeros_like(t) for t in held[4:]]
    d_extra = query.new_empty(0) if extra is None else torch.empty_like(extra)
    kept, noted, upstream = weights.contiguous(), signs.contiguous(), d_out.contiguous()
    of_weights = None if d_weights is None else d_weights.contiguous()
    names = ("query", "query_hidden", "key", "value", "w_key", "w_product", "w_above", "w_below", "bias")
    gradients = {f"d_{name}": _address(t) for name, t in zip(names, found, strict=True)}
    _call(
        "sostenuto_attention_backward",
        _shape(
            query,
            query_offsets,
            key,
            key_offsets,
            value,
            units=w_key.shape[0],
            with_key=with_key,
            kind=normalise,
        ),
        _inputs(held, extra),
        AttentionGradients(
            **gradients,
            weights=_address(kept),
            signs=_address(noted),
            d_out=_address(upstream),
            d_weights=_address(of_weights),
            d_key_hidden=None if extra is None else _address(d_extra),
        ),
    )
    return [*found, d_extra]


def _fake_gradients(
    d_out: Tensor,
    weights: Tensor,
    signs: Tensor,
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    value: Tensor,
    query_hidden: Tensor,
    key_hidden: Tensor | None,
    w_key: Tensor,
    w_product: Tensor,
    w_above: Tensor,
    w_below: Tensor,
    bias: Tensor,
    normalise: int,
    with_key: bool,
    d_weights: Tensor | None = None,
) -> list[Tensor]:
    held = (query, query_hidden, key, value, w_key, w_product, w_above, w_below, bias)
    return [*(torch.empty_like(t) for t in held), query.new_empty(0 if key_hidden is None else key_hidden.shape)]


attention_backward = operator("attention_backward", _gradients, fake=_fake_gradients)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.normalise, ctx.with_key, _ = inputs
    ctx.has_extra = tensors[6] is not None
    ctx.save_for_backward(*output[1:], *(t for t in tensors if t is not None))


def _backward(
    ctx: Any, d_out: Tensor, *_: Tensor | None, run: Callable[..., list[Tensor]] = attention_backward
) -> tuple[Tensor | None, ...]:
    weights, signs, *tensors = ctx.saved_tensors
    if not ctx.has_extra:
        tensors.insert(6, None)
    d_query, d_query_hidden, d_key, d_value, d_w_key, d_w_product, d_above, d_below, d_bias, d_extra = run(
        d_out, weights, signs, *tensors, ctx.normalise, ctx.with_key
    )
    return (
        d_query,
        None,
        d_key,
        None,
        d_value,
        d_query_hidden,
        d_extra if ctx.has_extra else None,
        d_w_key,
        d_w_product,
        d_above,
        d_below,
        d_bias,
        None,
        None,
        None,
    )


attention = operator("attention", _forward, fake=_fake_forward, backward=_backward, setup_context=_setup)


class _Attend(torch.autograd.Function):
    """The operator without torch's dispatch, which costs as much as a thousand pairs."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        found = _forward(*inputs)
        _setup(ctx, inputs, found)
        return found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, d_out, run=_gradients)


def attend(*inputs: Any) -> Tensor:
    """Return what `attention` returns first: the operator where torch looks on, a direct call elsewhere."""
    if not torch.compiler.is_compiling():
        found: Tensor = _Attend.apply(*inputs) if inputs[-1] else _forward(*inputs)[0]  # type: ignore[no-untyped-call]
    else:
        found = attention(*inputs)[0]
    return found


def _weigh(
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    query_hidden: Tensor,
    key_hidden: Tensor | None,
    w_key: Tensor,
    w_product: Tensor,
    w_above: Tensor,
    w_below: Tensor,
    bias: Tensor,
    normalise: int,
) -> tuple[Tensor, Tensor]:
    """Return the weights of all pairs and the signs of their hidden layers; nothing is summed. Arguments as above."""
    weights = (w_key, w_product, w_above, w_below, bias)
    _, found, signs = _forward(
        query,
        query_offsets,
        key,
        key_offsets,
        _nothing(key),
        query_hidden,
        key_hidden,
        *weights,
        normalise,
        False,
        True,
    )
    return found, signs


def _nothing(key: Tensor) -> Tensor:
    return key.new_empty(key.shape[0], 0)


def _fake_weigh(
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    query_hidden: Tensor,
    key_hidden: Tensor | None,
    w_key: Tensor,
    w_product: Tensor,
    w_above: Tensor,
    w_below: Tensor,
    bias: Tensor,
    normalise: int,
) -> tuple[Tensor, Tensor]:
    pairs = torch.library.get_ctx().new_dynamic_size()
    return key.new_empty(pairs), query_offsets.new_empty(pairs, _words(w_key.shape[0]))


def _setup_weigh(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.normalise = inputs
    ctx.has_extra = tensors[5] is not None
    ctx.save_for_backward(*output, *(t for t in tensors if t is not None))


def _weigh_backward(
    ctx: Any, d_weights: Tensor, *_: Tensor | None, run: Callable[..., list[Tensor]] = attention_backward
) -> tuple[Tensor | None, ...]:
    weights, signs, query, query_offsets, key, key_offsets, query_hidden, *rest = ctx.saved_tensors
    key_hidden = rest.pop(0) if ctx.has_extra else None
    d_query, d_query_hidden, d_key, _d_value, *d_shared, d_extra = run(
        query.new_empty(query.shape[0], 0),
        weights,
        signs,
        query,
        query_offsets,
        key,
        key_offsets,
        _nothing(key),
        query_hidden,
        key_hidden,
        *rest,
        ctx.normalise,
        False,
        d_weights,
    )
    return d_query, None, d_key, None, d_query_hidden, d_extra if ctx.has_extra else None, *d_shared, None


attention_weights = operator(
    "attention_weights", _weigh, fake=_fake_weigh, backward=_weigh_backward, setup_context=_setup_weigh
)


class _Weigh(torch.autograd.Function):
    """The operator without torch's dispatch."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        found = _weigh(*inputs)
        _setup_weigh(ctx, inputs, found)
        return found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_weights: Tensor) -> tuple[Tensor | None, ...]:
        return _weigh_backward(ctx, d_weights, run=_gradients)


def weigh(*inputs: Any, learns: bool) -> Tensor:
    """Return what `attention_weights` returns first: the operator where torch looks on, a direct call elsewhere."""
    found: Tensor
    if torch.compiler.is_compiling():
        found = attention_weights(*inputs)[0]
    elif learns:
        found = _Weigh.apply(*inputs)  # type: ignore[no-untyped-call]
    else:
        found = _weigh(*inputs)[0]
    return found


__all__ = ["attend", "attention", "attention_backward", "attention_weights", "weigh"]
