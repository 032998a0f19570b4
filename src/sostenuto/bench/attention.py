"""Target attention: scoring the candidates of a request, and training forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sostenuto.bench.case import Call, Case, beside_plain_twin
from sostenuto.bench.work import Work

if TYPE_CHECKING:
    from torch import Tensor

FLOAT = 4
SOFTMAX_FLOPS = 4  # per score: subtract, exp, add up, divide


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSizes:
    """Sizes of one call."""

    requests: int  # B
    candidates: int  # C of each request
    length: int  # L behaviours of each request
    dim: int = 32  # D
    units: int = 64  # H
    width: int | None = None  # V of a value; None: the keys are the values
    softmax: bool = False
    prelu: bool = False


def forward_work(sizes: AttentionSizes) -> Work:
    """Count the forward pass.

    Per candidate: A + P diag(q) is H D multiply-adds, B q + b another H D. Per pair of candidate and behaviour: the
    first layer is H D multiply-adds, the readout H (a comparison each is left out; PReLU multiplies once more), the
    sum V. Read: queries, keys, values; written: the result.
    """
    candidates, behaviours = sizes.requests * sizes.candidates, sizes.requests * sizes.length
    pairs, width = candidates * sizes.length, sizes.width or sizes.dim
    layer = 2 * sizes.units * sizes.dim
    readout = (3 if sizes.prelu else 2) * sizes.units
    per_pair = layer + readout + 2 * width + SOFTMAX_FLOPS * sizes.softmax
    return Work(
        flops=2.0 * candidates * layer + float(pairs) * per_pair,
        streamed_bytes=FLOAT * (candidates * (sizes.dim + width) + behaviours * (sizes.dim + (sizes.width or 0))),
    )


def training_work(sizes: AttentionSizes) -> Work:
    """Count forward and backward.

    Backward, per pair: gradients of the key and of the candidate's matrix are H D multiply-adds each, with
    g = ds w [pre > 0] one multiplication a unit and one addition for the candidate's part of the layer, ds and the
    gradient of the value V multiply-adds each. Per candidate: its matrix goes back to A, P and q with 3 H D
    multiply-adds, B q with 2 H D. The signs of the layer (a bit a unit) are all that a backward pass needs of it, so
    computing it again is not counted: a form that does so reaches 3/4 at most. Everything is read once more, and
    the gradients of queries, keys and values are written.
    """
    forward = forward_work(sizes)
    candidates, behaviours = sizes.requests * sizes.candidates, sizes.requests * sizes.length
    pairs, width = candidates * sizes.length, sizes.width or sizes.dim
    layer = 2 * sizes.units * sizes.dim
    per_pair = 2 * layer + 2 * sizes.units + 4 * width + SOFTMAX_FLOPS * sizes.softmax
    rows = 2 * behaviours * (sizes.dim + (sizes.width or 0)) + candidates * (2 * sizes.dim + width)
    return Work(
        flops=forward.flops + 5.0 * candidates * layer + float(pairs) * per_pair,
        streamed_bytes=forward.streamed_bytes + FLOAT * rows,
    )


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Tensors of one call; the first layer in the published form over [q; k; q - k; q * k]."""

    sizes: AttentionSizes
    query: Tensor
    key: Tensor
    value: Tensor
    weight: Tensor  # (H, 4 D)
    bias: Tensor
    out: Tensor
    slope: Tensor | None
    upstream: Tensor  # (Nc, V) gradient of the result

    @property
    def leaves(self) -> list[Tensor]:
        """Everything that gets a gradient."""
        value = [] if self.sizes.width is None else [self.value]
        slope = [] if self.slope is None else [self.slope]
        return [self.query, self.key, *value, self.weight, self.bias, self.out, *slope]


def _draw(sizes: AttentionSizes, seed: int, *, train: bool) -> _Inputs:
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 0.3).requires_grad_(train)

    candidates, behaviours = sizes.requests * sizes.candidates, sizes.requests * sizes.length
    key = draw(behaviours, sizes.dim)
    return _Inputs(
        sizes=sizes,
        query=draw(candidates, sizes.dim),
        key=key,
        value=key if sizes.width is None else draw(behaviours, sizes.width),
        weight=draw(sizes.units, 4 * sizes.dim),
        bias=draw(sizes.units),
        out=draw(sizes.units),
        slope=draw(1) if sizes.prelu else None,
        upstream=draw(candidates, sizes.width or sizes.dim).detach(),
    )


def _factored(inputs: _Inputs) -> Tensor:
    import torch

    from sostenuto.ops.target_attention import UnitWeights, factor, target_attention

    sizes, (key, query, product) = inputs.sizes, factor(inputs.weight)
    unit = UnitWeights(key, query, product, inputs.bias, inputs.out, torch.zeros(()), inputs.slope)
    return target_attention(
        inputs.query,
        torch.arange(sizes.requests + 1) * sizes.candidates,
        inputs.key,
        torch.arange(sizes.requests + 1) * sizes.length,
        inputs.value,
        unit,
        normalise="softmax" if sizes.softmax else "none",
    )


def _concatenated(inputs: _Inputs) -> Tensor:
    """Do it as published tools do: a row [q; k; q - k; q * k] for every pair."""
    import torch

    sizes = inputs.sizes
    shape = (sizes.requests, sizes.candidates, sizes.length, sizes.dim)
    query = inputs.query.view(sizes.requests, sizes.candidates, 1, sizes.dim).expand(shape)
    key = inputs.key.view(sizes.requests, 1, sizes.length, sizes.dim).expand(shape)
    pre = torch.cat([query, key, query - key, query * key], 3) @ inputs.weight.T + inputs.bias
    first = pre.relu() if inputs.slope is None else torch.where(pre > 0, pre, pre * inputs.slope)
    scores = first @ inputs.out
    weights = scores.softmax(2) if sizes.softmax else scores
    found = weights @ inputs.value.view(sizes.requests, sizes.length, -1)
    return found.flatten(0, 1)


def attention_forward(sizes: AttentionSizes, seed: int) -> Case:
    """Score candidates: nothing is kept for a backward pass."""
    import torch

    inputs = _draw(sizes, seed, train=False)

    @torch.inference_mode()
    def ours() -> Tensor:
        return _factored(inputs)

    @torch.inference_mode()
    def naive() -> Tensor:
        return _concatenated(inputs)

    return beside_plain_twin(forward_work(sizes), ours, naive)


def attention_training(sizes: AttentionSizes, seed: int) -> Case:
    """Run forward and backward; all inputs and weights get gradients."""
    return _training(sizes, seed, with_naive=False)


def attention_training_beside_naive(sizes: AttentionSizes, seed: int) -> Case:
    """Do the same with the naive form as well, which needs about 8 x 4 D bytes for each pair."""
    return _training(sizes, seed, with_naive=True)


def _training(sizes: AttentionSizes, seed: int, *, with_naive: bool) -> Case:
    import torch

    inputs = _draw(sizes, seed, train=True)

    def ours() -> object:
        return torch.autograd.grad(_factored(inputs), inputs.leaves, inputs.upstream)

    def naive() -> object:
        return torch.autograd.grad(_concatenated(inputs), inputs.leaves, inputs.upstream)

    beside: Call | None = naive if with_naive else None
    return beside_plain_twin(training_work(sizes), ours, beside)


__all__ = [
    "AttentionSizes",
    "attention_forward",
    "attention_training",
    "attention_training_beside_naive",
    "forward_work",
    "training_work",
]
