"""Exact attention whose scores are fused with a similarity of another kind (MUSE, arXiv:2512.07216, section 3.3).

    a_j = q . k_j        s_j = g1 a_j + g2 r_j + g3 a_j r_j + b_j        out = sum_j softmax_j(s) v_j

The bias and the mask come after the fusion: before it, the product with a negative r would turn their sign.

Letters: Nc candidates, H heads, U behaviours that were selected at all, M pairs, V width of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sostenuto.ops.table_rows import spread_rows

MOST_NUMBERS = 1 << 25  # gathered at once: 128 MiB of float32


def fused_attention(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    value: Tensor,
    similarity: Tensor,
    fusion: Tensor,
    place: Tensor,
    offsets: Tensor,
) -> Tensor:
    """Average each candidate's behaviours, once per head.

    Args:
        query: (Nc, H, A) candidates, scaled already.
        key: (U, A).
        bias: (U, H) added to the fused score of a behaviour; None adds nothing.
        value: (U, V) what is averaged.
        similarity: (M,) r of each pair.
        fusion: (3, H) factors g1, g2, g3 of each head.
        place: (M,) int64 in [0, U): the behaviours of candidates, one candidate after another.
        offsets: (Nc + 1,) int64 where candidates start in `place`.

    Returns:
        (Nc, H, V); zeros for a candidate without behaviours.
    """
    count, heads = query.shape[:2]
    lengths = offsets[1:] - offsets[:-1]
    longest = int(lengths.max()) if count else 0
    if not longest:  # zeros that still come from their inputs: a step then has gradients of zero, not none
        nothing = 0.0 * (query.sum(2, keepdim=True) + key.sum() + value.sum() + fusion.sum())
        nothing = nothing if bias is None else nothing + 0.0 * bias.sum()
        return nothing.expand(count, heads, value.shape[1])
    column = torch.arange(longest, device=place.device)
    real = column < lengths[:, None]  # (Nc, K)
    pair = (offsets[:-1, None] + column).clamp(max=place.shape[0] - 1)
    at_once = max(1, MOST_NUMBERS // (longest * (key.shape[1] + value.shape[1] + heads)))
    g1, g2, g3 = (factor[:, None] for factor in fusion)  # (H, 1)
    parts = []
    for start in range(0, count, at_once):
        some = slice(start, start + at_once)
        rows, where = pair[some].shape[0], place[pair[some]].flatten()
        alpha = query[some] @ spread_rows(key, where).view(rows, longest, key.shape[1]).mT  # (n, H, K)
        r = similarity[pair[some]][:, None]
        scores = g1 * alpha + g2 * r + g3 * alpha * r
        if bias is not None:
            scores = scores + spread_rows(bias, where).view(rows, longest, heads).mT
        mask = real[some][:, None]
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(2) * mask
        parts.append(weights @ spread_rows(value, where).view(rows, longest, value.shape[1]))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


__all__ = ["fused_attention"]
