"""Target attention with the factored activation unit: every behaviour weighted by what the target makes of it.

The activation unit of DIN (Zhou et al. 2018, arXiv:1706.06978) is a small network on [q; k; q - k; q * k]. Its first
layer needs no concatenation and no (candidates, behaviours, 4 D) tensor:

    W [q; k; q - k; q * k] + b = (W_k - W_d + W_p diag(q)) k  +  ((W_q + W_d) q + b)

so one (H, D) matrix per target meets the raw behaviours. With A = W_k - W_d and B = W_q + W_d:

    pre_cj = (A + W_p diag(q_c)) k_j + B q_c + b + e_j         e_j: what else is known of behaviour j, `key_hidden`
    s_cj   = w . act(pre_cj) + b2
    out_c  = sum_j norm(s_c)_j v_j

Letters: Nc candidates, Nh behaviours (flat over B requests), D width of queries and keys, V width of values, H units.
This file is the definition; `native_attention` is its compiled twin for float32 on a CPU. The plain form walks over
requests in blocks that stay in the cache and recomputes in the backward pass, so that nothing larger than the scores
(behaviours x candidates of a request) outlives a block.

Under `torch.autocast` the plain form runs with its matrix products in the lower precision (bfloat16: about 3
significant digits), the weighted sum of the values among them, while scores, their normalisation and the sums of
gradients over blocks stay in float32. It is for GPUs and processors with matrix units (AMX), which were not at hand to
measure; without them it is slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from sostenuto.ops.backend import is_usable
from sostenuto.ops.native_attention import attend, weigh

Normalise = Literal["none", "softmax", "sqrt_length"]
NORMALISERS: tuple[Normalise, ...] = ("none", "softmax", "sqrt_length")  # in the order of native/source/interface.h

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

    @classmethod
    def inner_product(cls, query: Tensor) -> UnitWeights:
        """Return the unit of one hidden number, the inner product of (Nc, D) candidates and behaviours, unbent."""
        none, one = query.new_zeros(1, query.shape[1]), query.new_ones(1)
        return cls(key=none, query=none, product=none + 1.0, bias=one - 1.0, out=one, out_bias=one[0] - 1.0, slope=one)


def factor(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the (H, 4 D) weight over [q; k; q - k; q * k] into the factored (key, query, product), each (H, D)."""
    query, key, difference, product = weight.chunk(4, dim=1)
    return key - difference, query + difference, product


class _Bundle(NamedTuple):
    """Requests handled in one go: one of them as slices, or several short ones as padded positions."""

    candidates: slice | Tensor  # (G, C) positions; padding points at any row
    behaviours: slice | Tensor  # (G, L)
    lengths: list[int]  # behaviours of each
    is_candidate: Tensor | None  # (G, C), None for a slice
    is_behaviour: Tensor | None  # (G, L)


def _bundles(query_offsets: list[int], key_offsets: list[int], units: int) -> list[_Bundle]:
    """Cut requests into blocks of candidates, and put short ones side by side.

    A long request fills the buffer alone. Short ones would spend their time in calls, so neighbours in length are
    padded together while they fit the buffer and at least half of the cells are real. Requests without candidates or
    behaviours make no bundle.
    """
    parts = []
    for b in range(len(query_offsets) - 1):
        c0, c1, j0, j1 = query_offsets[b], query_offsets[b + 1], key_offsets[b], key_offsets[b + 1]
        if j1 > j0:
            parts += [(c, min(c + CANDIDATE_BLOCK, c1), j0, j1) for c in range(c0, c1, CANDIDATE_BLOCK)]
    parts.sort(key=lambda part: (part[3] - part[2], part[1] - part[0]))
    bundles, open_parts, widest, real = [], parts[:0], 0, 0
    for part in parts:
        count, length = part[1] - part[0], part[3] - part[2]
        cells = (len(open_parts) + 1) * max(widest, count) * length  # lengths rise: this one is the longest
        if open_parts and (cells * units > BLOCK_ELEMENTS or cells > 2 * (real + count * length)):
            bundles.append(_bundle(open_parts))
            open_parts, widest, real = [], 0, 0
        open_parts.append(part)
        widest, real = max(widest, count), real + count * length
    return [*bundles, _bundle(open_parts)] if open_parts else bundles


def _bundle(parts: list[tuple[int, int, int, int]]) -> _Bundle:
    if len(parts) == 1:
        ((c0, c1, j0, j1),) = parts
        return _Bundle(slice(c0, c1), slice(j0, j1), [j1 - j0], None, None)
    bounds = torch.tensor(parts)
    candidates, is_candidate = _padded_positions(bounds[:, 0], bounds[:, 1])
    behaviours, is_behaviour = _padded_positions(bounds[:, 2], bounds[:, 3])
    return _Bundle(candidates, behaviours, [j1 - j0 for _, _, j0, j1 in parts], is_candidate, is_behaviour)


def _padded_positions(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    place = torch.arange(int((last - first).max()))
    real = place < (last - first)[:, None]
    return torch.where(real, first[:, None] + place, 0), real


def _take(flat: Tensor, where: slice | Tensor) -> Tensor:
    """Return (G, width of the bundle, ...)."""
    return flat[where].unsqueeze(0) if isinstance(where, slice) else flat[where.to(flat.device)]


def _add(flat: Tensor, where: slice | Tensor, values: Tensor) -> None:
    """Add (G, width of the bundle, ...) to their places; what stands on padding is zero."""
    if isinstance(where, slice):
        flat[where] += values[0]
    else:
        flat.index_add_(0, where.to(flat.device).flatten(), values.flatten(0, 1))


def _normalised(scores: Tensor, bundle: _Bundle, normalise: Normalise) -> Tensor:
    """Turn scores (G, L, C) into the weights of the sum; padding gets weight 0."""
    if bundle.is_behaviour is not None:
        hidden = ~bundle.is_behaviour.to(scores.device)[:, :, None]
        scores = scores.masked_fill_(hidden, torch.finfo(scores.dtype).min if normalise == "softmax" else 0.0)
    if normalise == "softmax":
        return scores.softmax(1)
    return scores.mul_(_root_lengths(bundle, scores)) if normalise == "sqrt_length" else scores


def _root_lengths(bundle: _Bundle, like: Tensor) -> Tensor:
    return like.new_tensor(bundle.lengths).rsqrt()[:, None, None]


def _before_normalising(d_weights: Tensor, weights: Tensor, bundle: _Bundle, normalise: Normalise) -> Tensor:
    """Turn the gradient of the weights into the gradient of the scores, 0 on padding."""
    if normalise == "softmax":
        return weights * (d_weights - (weights * d_weights).sum(1, keepdim=True))
    if normalise == "sqrt_length":
        d_weights = d_weights.mul_(_root_lengths(bundle, d_weights))
    if bundle.is_behaviour is not None:
        d_weights = d_weights.mul_(bundle.is_behaviour.to(d_weights)[:, :, None])
    return d_weights


class _Unit(NamedTuple):
    """What the hidden layer of one bundle is made of."""

    keys: Tensor  # (G, L, D)
    stacked: Tensor  # (G, C H, D), the matrix of every candidate
    hidden: Tensor  # (G, C, H), the candidate's part
    extra: Tensor | None  # (G, L, H), the behaviour's part

    def preactivation(self, buffer: Tensor, rows: slice) -> Tensor:
        """Write pre of some behaviours into the buffer and return it as (G, rows, C, H)."""
        keys = self.keys[:, rows]
        groups, count, units = self.hidden.shape
        grid = buffer[: keys.shape[1] * self.hidden.numel()].view(groups, keys.shape[1], count, units)
        if self.extra is None:
            grid.copy_(self.hidden[:, None])
        else:
            torch.add(self.hidden[:, None], self.extra[:, rows, None], out=grid)
        grid.view(groups, -1, count * units).baddbmm_(keys, self.stacked.mT)
        return grid

    def row_blocks(self, buffer: Tensor) -> list[slice]:
        """Cut the behaviours so that each block fits the buffer."""
        length = self.keys.shape[1]
        rows = max(1, buffer.shape[0] // self.hidden.numel())
        return [slice(j, min(j + rows, length)) for j in range(0, length, rows)]


def _buffer(like: Tensor, units: int, precision: torch.dtype) -> Tensor:
    """Return a flat buffer that holds at least one row of the widest block of candidates."""
    return like.new_empty(max(BLOCK_ELEMENTS, CANDIDATE_BLOCK * units), dtype=precision)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a batched product to a total that may be of higher precision."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)


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
        bundles: list[_Bundle],
        normalise: Normalise,
        precision: torch.dtype,  # of the products
    ) -> Tensor:
        out = value.new_zeros(query.shape[0], value.shape[1])
        keep = any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        buffer = _buffer(query, w_out.shape[0], precision)
        readout = w_out.to(precision)
        for bundle in bundles:
            queries = _take(query, bundle.candidates)
            unit = _unit(queries, key, query_hidden, key_hidden, w_key, w_product, bundle, precision)
            scores = query.new_empty(*unit.keys.shape[:2], queries.shape[1])
            for rows in unit.row_blocks(buffer):
                grid = unit.preactivation(buffer, rows).relu_()
                scores[:, rows] = (grid.view(-1, w_out.shape[0]) @ readout).view(grid.shape[:3]).to(scores.dtype)
            scores += _take(query_score, bundle.candidates)[:, None]
            if key_score is not None:
                scores += _take(key_score, bundle.behaviours)[:, :, None]
            if query_linear is not None:
                _add_product(scores, unit.keys, _take(query_linear, bundle.candidates).mT.to(precision))
            weights = _normalised(scores, bundle, normalise)
            found = (weights.mT.to(precision) @ _take(value, bundle.behaviours).to(precision)).to(out.dtype)
            if bundle.is_candidate is not None:
                found = found * bundle.is_candidate.to(found)[:, :, None]
            _add(out, bundle.candidates, found)
            if keep:
                kept.append(weights)
        ctx.bundles, ctx.normalise, ctx.kept, ctx.precision = bundles, normalise, kept, precision
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
        precision: torch.dtype = ctx.precision
        buffer = _buffer(query, units, precision)
        for bundle, weights in zip(ctx.bundles, ctx.kept, strict=True):
            queries = _take(query, bundle.candidates)
            d_found = _take(d_out, bundle.candidates)
            if bundle.is_candidate is not None:
                d_found = d_found * bundle.is_candidate.to(d_found)[:, :, None]
            upstream = d_found.to(precision)
            _add(d_value, bundle.behaviours, (weights.to(precision) @ upstream).to(d_value.dtype))
            d_weights = (_take(value, bundle.behaviours).to(precision) @ upstream.mT).to(weights.dtype)
            d_scores = _before_normalising(d_weights, weights, bundle, ctx.normalise)
            _add(d_query_score, bundle.candidates, d_scores.sum(1))
            if d_key_score is not None:
                _add(d_key_score, bundle.behaviours, d_scores.sum(2))

            unit = _unit(queries, key, query_hidden, key_hidden, w_key, w_product, bundle, precision)
            groups, length, count = d_scores.shape
            d_keys = query.new_zeros(unit.keys.shape)
            d_each = d_scores.to(precision)
            if query_linear is not None and d_query_linear is not None:
                _add(d_query_linear, bundle.candidates, (d_each.mT @ unit.keys).to(query.dtype))
                _add_product(d_keys, d_each, _take(query_linear, bundle.candidates).to(precision))
            readout = w_out.to(precision)[:, None]
            weighted = (unit.stacked.view(groups, count, units, dim) * readout).view(groups, -1, dim)
            # With g = 1[pre > 0] * ds, every gradient is linear in g: w is applied to the small sums, not to the block.
            d_stacked = query.new_zeros(unit.stacked.shape)
            d_hidden = query.new_zeros(groups, count * units)
            d_extra = None if key_hidden is None else query.new_empty(groups, length, units)
            for rows in unit.row_blocks(buffer):
                grid = unit.preactivation(buffer, rows)
                d_grid = d_each[:, rows, :, None].expand(-1, -1, -1, units)
                torch.ops.aten.threshold_backward.grad_input(d_grid, grid, 0, grad_input=grid)
                flat = grid.view(groups, -1, count * units)
                _add_product(d_stacked, flat.mT, unit.keys[:, rows])
                _add_product(d_keys[:, rows], flat, weighted)
                d_hidden += flat.sum(1, dtype=query.dtype)
                if d_extra is not None:
                    torch.sum(grid, 2, dtype=query.dtype, out=d_extra[:, rows])
            cube = d_stacked.view(groups, count, units, dim)
            d_hidden = d_hidden.view(groups, count, units)
            d_w_out += (unit.stacked * d_stacked).view(-1, units, dim).sum((0, 2)) + (unit.hidden * d_hidden).sum(
                (0, 1)
            )
            d_w_key += cube.sum((0, 1)) * w_out[:, None]
            d_w_product += (cube * queries[:, :, None]).sum((0, 1)) * w_out[:, None]
            _add(d_query, bundle.candidates, (cube * (w_product * w_out[:, None])).sum(2))
            _add(d_query_hidden, bundle.candidates, d_hidden * w_out)
            _add(d_key, bundle.behaviours, d_keys)
            if d_key_hidden is not None and unit.extra is not None and d_extra is not None:
                d_w_out += (unit.extra * d_extra).sum((0, 1))
                _add(d_key_hidden, bundle.behaviours, d_extra * w_out)
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


def _unit(
    queries: Tensor,
    key: Tensor,
    query_hidden: Tensor,
    key_hidden: Tensor | None,
    w_key: Tensor,
    w_product: Tensor,
    bundle: _Bundle,
    precision: torch.dtype,
) -> _Unit:
    """Gather a bundle's behaviours, and stack the (H, D) matrices of its candidates."""
    return _Unit(
        keys=_take(key, bundle.behaviours).to(precision),
        stacked=(w_key + w_product * queries[:, :, None]).flatten(1, 2).to(precision),
        hidden=_take(query_hidden, bundle.candidates).to(precision),
        extra=None if key_hidden is None else _take(key_hidden, bundle.behaviours).to(precision),
    )


def _lower_precision(device: torch.device) -> torch.dtype | None:
    """Return the precision that autocast asks for on a device, None without it."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


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
    with_key: bool = False,
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
        with_key: sum the keys too, in front of the values: the same as torch.cat([key, value], 1) for the value,
            without making it. V may then be 0.

    Returns:
        (Nc, V), or (Nc, D + V) with `with_key`; zeros for an empty history.
    """
    precision = _lower_precision(query.device)
    if precision is not None:
        with torch.autocast(query.device.type, enabled=False):
            hidden = None if key_hidden is None else key_hidden.float()
            joined = torch.cat([key, value], 1) if with_key else value
            weights = unit._replace(**{name: w.float() for name, w in unit._asdict().items() if w is not None})
            return _plain(
                query.float(),
                query_offsets,
                key.float(),
                key_offsets,
                joined.float(),
                weights,
                hidden,
                normalise,
                precision,
            )
    query_hidden = torch.addmm(unit.bias, query, unit.query.T)
    if is_usable(query, key, value, unit.key, key_hidden):
        below = torch.zeros_like(unit.out) if unit.slope is None else unit.out * unit.slope
        inputs = (query, key, value, query_hidden, key_hidden, unit.key, unit.product, unit.out, below, unit.out_bias)
        return attend(
            query,
            query_offsets,
            key,
            key_offsets,
            value,
            query_hidden,
            key_hidden,
            unit.key,
            unit.product,
            unit.out,
            below,
            unit.out_bias,
            NORMALISERS.index(normalise),
            with_key,
            torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs),
        )
    joined = torch.cat([key, value], 1) if with_key else value
    return _plain(query, query_offsets, key, key_offsets, joined, unit, key_hidden, normalise, query.dtype)


def _plain(
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    value: Tensor,
    unit: UnitWeights,
    key_hidden: Tensor | None,
    normalise: Normalise,
    precision: torch.dtype,
) -> Tensor:
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
        _bundles(query_offsets.tolist(), key_offsets.tolist(), w_out.shape[0]),
        normalise,
        precision,
    )
    return out


def attention_weights(
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    unit: UnitWeights,
    deeper: Callable[[Tensor], Tensor] | None = None,
    *,
    key_hidden: Tensor | None = None,
    normalise: Normalise = "softmax",
) -> Tensor:
    """Return the weights themselves, for a reader that does something else with them than a sum.

    Args:
        query: (Nc, D); this and the others are as in `target_attention`.
        query_offsets: (B + 1,).
        key: (Nh, D).
        key_offsets: (B + 1,).
        unit: the activation unit.
        deeper: further hidden layers, as in `deep_target_attention`.
        key_hidden: (Nh, H).
        normalise: "none", "softmax" or "sqrt_length".

    Returns:
        (pairs,) request after request, in each candidate after candidate: (candidates, behaviours) of the request.
    """
    if deeper is None and _lower_precision(query.device) is None and is_usable(query, key, unit.key, key_hidden):
        query_hidden = torch.addmm(unit.bias, query, unit.query.T)
        below = torch.zeros_like(unit.out) if unit.slope is None else unit.out * unit.slope
        shared = (unit.key, unit.product, unit.out, below, unit.out_bias)
        inputs = (query, key, query_hidden, key_hidden, *shared)
        learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
        kind = NORMALISERS.index(normalise)
        return weigh(query, query_offsets, key, key_offsets, query_hidden, key_hidden, *shared, kind, learns=learns)

    def weights(*tensors: Tensor | None) -> Tensor:
        q, k, e = tensors
        return _unit_weights(q, k, e, unit, deeper, normalise).T.flatten()

    parts = [
        _checkpointed(weights, query[c], key[j], None if key_hidden is None else key_hidden[j])
        for c, j in _request_parts(query_offsets.tolist(), key_offsets.tolist())
        if j.stop > j.start
    ]
    return torch.cat(parts) if parts else query.new_zeros(0)


def _request_parts(query_offsets: list[int], key_offsets: list[int]) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of candidates of each request, and the request's behaviours."""
    for b in range(len(query_offsets) - 1):
        for c in range(query_offsets[b], query_offsets[b + 1], CANDIDATE_BLOCK):
            last = min(c + CANDIDATE_BLOCK, query_offsets[b + 1])
            yield slice(c, last), slice(key_offsets[b], key_offsets[b + 1])


def _checkpointed(function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    if not torch.is_grad_enabled():
        return function(*tensors)
    found: Tensor = checkpoint(function, *tensors, use_reentrant=False)
    return found


def _unit_weights(
    q: Tensor | None,
    k: Tensor | None,
    e: Tensor | None,
    unit: UnitWeights,
    deeper: Callable[[Tensor], Tensor] | None,
    normalise: Normalise,
) -> Tensor:
    """Return the (L, C) weights of one request: q (C, D), k (L, D), e (L, H)."""
    assert q is not None
    assert k is not None
    stacked = unit.key + unit.product * q[:, None, :]
    pre = torch.einsum("jd,chd->jch", k, stacked) + torch.addmm(unit.bias, q, unit.query.T)
    if e is not None:
        pre = pre + e[:, None, :]
    first = pre.relu() if unit.slope is None else torch.where(pre > 0, pre, pre * unit.slope)
    last = first.flatten(0, 1) if deeper is None else deeper(first.flatten(0, 1))
    scores: Tensor = (last @ unit.out).view(first.shape[:2]) + unit.out_bias
    if normalise == "sqrt_length":
        scores = scores * scores.shape[0] ** -0.5
    return scores.softmax(0) if normalise == "softmax" else scores


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
        assert v is not None
        return _unit_weights(q, k, e, unit, deeper, normalise).T @ v

    parts = []
    for c, j in _request_parts(query_offsets.tolist(), key_offsets.tolist()):
        if j.start == j.stop:
            parts.append(value.new_zeros(c.stop - c.start, value.shape[1]))
            continue
        extra = None if key_hidden is None else key_hidden[j]
        parts.append(_checkpointed(attend, query[c], key[j], value[j], extra))
    return torch.cat(parts) if parts else value.new_zeros(0, value.shape[1])


__all__ = [
    "NORMALISERS",
    "Normalise",
    "UnitWeights",
    "attention_weights",
    "deep_target_attention",
    "factor",
    "target_attention",
]
