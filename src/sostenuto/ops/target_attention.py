"""Target attention with the factored activation unit: every behaviour weighted by what the target makes of it.

The activation unit of DIN (Zhou et al. 2018, arXiv:1706.06978) is a small network on [q; k; q - k; q * k]. Its first
layer needs no concatenation and no (candidates, behaviours, 4 D) tensor:

    W [q; k; q - k; q * k] + b = (W_k - W_d + W_p diag(q)) k  +  ((W_q + W_d) q + b)

so one (H, D) matrix per target meets the raw behaviours. With A = W_k - W_d and B = W_q + W_d:

    pre_cj = (A + W_p diag(q_c)) k_j + B q_c + b + e_j         e_j: what else is known of behaviour j, `key_hidden`
    s_cj   = w . act(pre_cj) + b2
    out_c  = sum_j norm(s_c)_j v_j

Letters: Nc candidates, Nh behaviours (flat over B requests), D width of queries and keys, V width of values, H units.
This file is the definition. It walks over requests in blocks that stay in the cache and recomputes in the backward
pass, so that nothing larger than the scores (behaviours x candidates of a request) outlives a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Normalise = Literal["none", "softmax", "sqrt_length"]
NORMALISERS: tuple[Normalise, ...] = ("none", "softmax", "sqrt_length")

# Elements of the (rows, candidates x units) buffer: 1 MiB of float32 stays in a core's second-level cache.
BLOCK_ELEMENTS = 1 << 18
# Candidates handled at once: bounds the stacked (candidates x units, D) matrix when thousands are ranked.
CANDIDATE_BLOCK = 128


class UnitWeights(NamedTuple):
    """First layer of an activation unit in factored form, and the readout of its one hidden layer."""

    key: Tensor  # (H, D), A = W_k - W_d
    query: Tensor  # (H, D), B = W_q + W_d
    product: Tensor  # (H, D), W_p
    bias: Tensor  # (H,)
    out: Tensor  # (H,), w
    out_bias: Tensor  # (), b2
    slope: Tensor | None = None  # (H,) or (1,) of a PReLU; None is ReLU


def factor(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the (H, 4 D) weight over [q; k; q - k; q * k] into the factored (key, query, product), each (H, D)."""
    query, key, difference, product = weight.chunk(4, dim=1)
    return key - difference, query + difference, product


def _blocks(query_offsets: Sequence[int], key_offsets: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """List (first candidate, last, first behaviour, last) of every block; requests without either make none."""
    blocks = []
    for b in range(len(query_offsets) - 1):
        c0, c1, j0, j1 = query_offsets[b], query_offsets[b + 1], key_offsets[b], key_offsets[b + 1]
        if j1 > j0:
            blocks += [(c, min(c + CANDIDATE_BLOCK, c1), j0, j1) for c in range(c0, c1, CANDIDATE_BLOCK)]
    return blocks


def _weights_of(scores: Tensor, normalise: Normalise) -> Tensor:
    """Turn scores (L, C) into the weights of the sum, in place where that is possible."""
    if normalise == "softmax":
        return scores.softmax(0)
    return scores.mul_(scores.shape[0] ** -0.5) if normalise == "sqrt_length" else scores


class _Attend(torch.autograd.Function):
    """The ReLU unit with additive score terms; see `target_attention` for the meaning of the arguments."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # (Nc, D)
        key: Tensor,  # (Nh, D)
        value: Tensor,  # (Nh, V)
        query_hidden: Tensor,  # (Nc, H)
        key_hidden: Tensor | None,  # (Nh, H)
        w_key: Tensor,  # (H, D)
        w_product: Tensor,  # (H, D)
        w_out: Tensor,  # (H,)
        query_score: Tensor,  # (Nc,) added to every score of the candidate
        key_score: Tensor | None,  # (Nh,) added to every score of the behaviour
        query_linear: Tensor | None,  # (Nc, D), its product with the key is added
        query_offsets: list[int],
        key_offsets: list[int],
        normalise: Normalise,
    ) -> Tensor:
        blocks = _blocks(query_offsets, key_offsets)
        out = value.new_zeros(query.shape[0], value.shape[1])
        units = w_out.shape[0]
        keep = any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        buffer = _buffer(query, blocks, units)
        for c0, c1, j0, j1 in blocks:
            count = c1 - c0
            width = count * units
            stacked = (w_key + w_product * query[c0:c1, None, :]).view(width, -1)
            hidden = query_hidden[c0:c1].view(1, count, units)
            scores = query.new_empty(j1 - j0, count)
            rows = max(1, buffer.shape[0] // width)
            for j in range(j0, j1, rows):
                top = min(j + rows, j1)
                pre = _preactivation(buffer, key[j:top], stacked, hidden, key_hidden, j, top)
                pre.relu_()
                torch.mv(pre.view(-1, units), w_out, out=scores[j - j0 : top - j0].view(-1))
            scores += query_score[c0:c1]
            if key_score is not None:
                scores += key_score[j0:j1, None]
            if query_linear is not None:
                scores.addmm_(key[j0:j1], query_linear[c0:c1].T)
            weights = _weights_of(scores, normalise)
            torch.mm(weights.T, value[j0:j1], out=out[c0:c1])
            if keep:
                kept.append(weights)
        ctx.blocks, ctx.normalise, ctx.kept = blocks, normalise, kept
        ctx.save_for_backward(query, key, value, query_hidden, key_hidden, w_key, w_product, w_out, query_linear)
        ctx.has_key_score = key_score is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, query_hidden, key_hidden, w_key, w_product, w_out, query_linear = ctx.saved_tensors
        units, dim = w_key.shape
        d_query, d_key, d_value = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        d_query_hidden = torch.zeros_like(query_hidden)
        d_key_hidden = None if key_hidden is None else torch.zeros_like(key_hidden)
        d_w_key, d_w_product = torch.zeros_like(w_key), torch.zeros_like(w_product)
        d_w_out = torch.zeros_like(w_out)
        d_query_score = query.new_zeros(query.shape[0])
        d_key_score = key.new_zeros(key.shape[0]) if ctx.has_key_score else None
        d_query_linear = None if query_linear is None else torch.zeros_like(query_linear)
        buffer = _buffer(query, ctx.blocks, units)
        d_out = d_out.contiguous()
        for (c0, c1, j0, j1), weights in zip(ctx.blocks, ctx.kept, strict=True):
            count = c1 - c0
            width = count * units
            keys = key[j0:j1]
            d_value[j0:j1].addmm_(weights, d_out[c0:c1])
            d_scores = _backward_of_weights(value[j0:j1] @ d_out[c0:c1].T, weights, ctx.normalise)
            d_query_score[c0:c1] = d_scores.sum(0)
            if d_key_score is not None:
                d_key_score[j0:j1] += d_scores.sum(1)
            if query_linear is not None and d_query_linear is not None:
                torch.mm(d_scores.T, keys, out=d_query_linear[c0:c1])
                d_key[j0:j1].addmm_(d_scores, query_linear[c0:c1])

            stacked = (w_key + w_product * query[c0:c1, None, :]).view(width, dim)
            weighted = (stacked.view(count, units, dim) * w_out[:, None]).view(width, dim)
            hidden = query_hidden[c0:c1].view(1, count, units)
            # With g = 1[pre > 0] * ds, every gradient is linear in g: w is applied to the small sums, not to the block.
            d_stacked = query.new_zeros(width, dim)
            d_hidden = query.new_zeros(width)
            d_extra = None if key_hidden is None else query.new_empty(j1 - j0, units)
            rows = max(1, buffer.shape[0] // width)
            for j in range(j0, j1, rows):
                top = min(j + rows, j1)
                part = slice(j - j0, top - j0)
                pre = _preactivation(buffer, keys[part], stacked, hidden, key_hidden, j, top)
                grid = pre.view(top - j, count, units)
                d_grid = d_scores[part, :, None].expand(-1, -1, units)
                torch.ops.aten.threshold_backward.grad_input(d_grid, grid, 0, grad_input=grid)
                d_stacked.addmm_(pre.T, keys[part])
                d_key[j:top].addmm_(pre, weighted)
                d_hidden += pre.sum(0)
                if d_extra is not None:
                    torch.sum(grid, 1, out=d_extra[part])
            cube = d_stacked.view(count, units, dim)
            d_hidden = d_hidden.view(count, units)
            d_w_out += (stacked * d_stacked).view(count, units, dim).sum((0, 2)) + (hidden[0] * d_hidden).sum(0)
            d_w_key += cube.sum(0) * w_out[:, None]
            d_w_product += (cube * query[c0:c1, None, :]).sum(0) * w_out[:, None]
            d_query[c0:c1] = (cube * (w_product * w_out[:, None])).sum(1)
            d_query_hidden[c0:c1] = d_hidden * w_out
            if key_hidden is not None and d_key_hidden is not None and d_extra is not None:
                d_w_out += (key_hidden[j0:j1] * d_extra).sum(0)
                d_key_hidden[j0:j1].addcmul_(d_extra, w_out)
        return (
            d_query,
            d_key,
            d_value,
            d_query_hidden,
            d_key_hidden,
            d_w_key,
            d_w_product,
            d_w_out,
            d_query_score,
            d_key_score,
            d_query_linear,
            None,
            None,
            None,
        )


def _buffer(like: Tensor, blocks: list[tuple[int, int, int, int]], units: int) -> Tensor:
    """Return one flat buffer that holds at least one row of the widest block."""
    widest = max(((c1 - c0) * units for c0, c1, _, _ in blocks), default=0)
    return like.new_empty(max(BLOCK_ELEMENTS, widest))


def _preactivation(
    buffer: Tensor, keys: Tensor, stacked: Tensor, hidden: Tensor, key_hidden: Tensor | None, first: int, last: int
) -> Tensor:
    """Write pre of the behaviours first .. last into the buffer and return it as (rows, candidates x units)."""
    rows, width = keys.shape[0], stacked.shape[0]
    pre = buffer[: rows * width].view(rows, width)
    if key_hidden is None:
        torch.addmm(hidden.view(1, width), keys, stacked.T, out=pre)
        return pre
    torch.add(hidden, key_hidden[first:last, None, :], out=pre.view(rows, hidden.shape[1], hidden.shape[2]))
    return pre.addmm_(keys, stacked.T)


def _backward_of_weights(d_weights: Tensor, weights: Tensor, normalise: Normalise) -> Tensor:
    if normalise == "softmax":
        return weights * (d_weights - (weights * d_weights).sum(0))
    return d_weights.mul_(d_weights.shape[0] ** -0.5) if normalise == "sqrt_length" else d_weights


def target_attention(
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    value: Tensor,
    unit: UnitWeights,
    *,
    key_hidden: Tensor | None = None,
    normalise: Normalise = "none",
) -> Tensor:
    """Sum the behaviours of each request, weighted by what the candidate makes of them.

    Args:
        query: (Nc, D) candidates, flat over requests.
        query_offsets: (B + 1,) int64 row starts of the candidates.
        key: (Nh, D) behaviours, flat over requests.
        key_offsets: (B + 1,) int64 row starts of the behaviours.
        value: (Nh, V) what is summed; may be wider than the keys.
        unit: the activation unit.
        key_hidden: (Nh, H) added before the activation, once per behaviour: action, value, place, gap.
        normalise: "none" (the paper; the sum keeps its intensity), "softmax" (its released code), "sqrt_length"
            (divided by the square root of the history's length; ours).

    Returns:
        (Nc, V); zeros for an empty history.
    """
    query_hidden = torch.addmm(unit.bias, query, unit.query.T)
    w_out, query_linear, key_score = unit.out, None, None
    query_score = unit.out_bias.expand(query.shape[0])
    if unit.slope is not None:
        # w.prelu(x) = (w (1 - slope)).relu(x) + (w slope).x, and the second term is linear in the behaviour:
        # it never needs the block.
        linear = unit.out * unit.slope
        w_out = unit.out - linear
        query_linear = linear @ unit.key + query * (linear @ unit.product)
        query_score = query_score + query_hidden @ linear
        key_score = None if key_hidden is None else key_hidden @ linear
    out: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
        query,
        key,
        value,
        query_hidden,
        key_hidden,
        unit.key,
        unit.product,
        w_out,
        query_score,
        key_score,
        query_linear,
        query_offsets.tolist(),
        key_offsets.tolist(),
        normalise,
    )
    return out


def deep_target_attention(
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    value: Tensor,
    unit: UnitWeights,
    deeper: Callable[[Tensor], Tensor],
    *,
    key_hidden: Tensor | None = None,
    normalise: Normalise = "none",
) -> Tensor:
    """Do the same with further hidden layers between the first one and the readout, by plain autograd.

    `unit.out` reads the last of them; `deeper` maps (M, H) to (M, H2). The first layer is factored all the same;
    each request is recomputed in the backward pass.
    """

    def attend(*tensors: Tensor | None) -> Tensor:
        q, k, v, e = tensors
        assert q is not None
        assert k is not None
        assert v is not None
        stacked = unit.key + unit.product * q[:, None, :]
        pre = torch.einsum("jd,chd->jch", k, stacked) + torch.addmm(unit.bias, q, unit.query.T)
        if e is not None:
            pre = pre + e[:, None, :]
        first = pre.relu() if unit.slope is None else torch.where(pre > 0, pre, pre * unit.slope)
        scores = (deeper(first.flatten(0, 1)) @ unit.out).view(first.shape[:2]) + unit.out_bias
        weights = scores.softmax(0) if normalise == "softmax" else scores
        if normalise == "sqrt_length":
            weights = scores * scores.shape[0] ** -0.5
        return weights.T @ v

    parts = []
    starts, ends = query_offsets.tolist(), key_offsets.tolist()
    for b in range(len(starts) - 1):
        j0, j1 = ends[b], ends[b + 1]
        for c in range(starts[b], starts[b + 1], CANDIDATE_BLOCK):
            q = query[c : min(c + CANDIDATE_BLOCK, starts[b + 1])]
            if j0 == j1:
                parts.append(value.new_zeros(q.shape[0], value.shape[1]))
                continue
            tensors = (q, key[j0:j1], value[j0:j1], None if key_hidden is None else key_hidden[j0:j1])
            parts.append(
                checkpoint(attend, *tensors, use_reentrant=False) if torch.is_grad_enabled() else attend(*tensors)
            )
    return torch.cat(parts) if parts else value.new_zeros(0, value.shape[1])


__all__ = ["NORMALISERS", "Normalise", "UnitWeights", "deep_target_attention", "factor", "target_attention"]
