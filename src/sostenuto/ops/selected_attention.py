"""Softmax attention of candidates over the few behaviours that a search has selected for each of them.

    a_chj = q_ch . k_j    s_chj = a_chj + b_jh        out_ch = sum over selected j of softmax_j(s_ch) v_j

With a similarity r of another kind (MUSE, arXiv:2512.07216, section 3.3) the scores are fused with it:

    s_chj = g1h a_chj + g2h r_cj + g3h a_chj r_cj + b_jh

Bias and mask come after the fusion: before it, the product with a negative r would turn their sign.

Every candidate has its own behaviours, about as many as the next one: they are gathered and laid side by side, so that
scores and sums are batched products. What a request's candidates share is `biased_attention`.

Letters: Nc candidates, H heads, A width of a query, U behaviours that were selected by any candidate, M pairs of a
candidate and a behaviour selected for it, V width of values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sostenuto.ops.table_rows import spread_rows

MOST_NUMBERS = 1 << 25  # gathered at once: 128 MiB of float32


class Fusion(NamedTuple):
    """A similarity that scores are fused with."""

    similarity: Tensor  # (M,) r of each pair
    factors: Tensor  # (3, H) g1, g2, g3 of each head


def selected_attention(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    value: Tensor,
    place: Tensor,
    offsets: Tensor,
    *,
    with_key: bool = False,
    fusion: Fusion | None = None,
) -> Tensor:
    """Average each candidate's behaviours, once per head.

    Args:
        query: (Nc, H, A) candidates, scaled already.
        key: (U, A).
        bias: (U, H) added to the scores of a behaviour; None adds nothing.
        value: (U, V) what is averaged.
        place: (M,) int64 in [0, U): the behaviours of candidates, one candidate after another.
        offsets: (Nc + 1,) int64 where candidates start in `place`.
        with_key: average the keys too, in front of the values. V may then be 0.
        fusion: a similarity that the scores are fused with.

    Returns:
        (Nc, H, V), or (Nc, H, A + V) with `with_key`; zeros for a candidate without behaviours.
    """
    count, heads = query.shape[:2]
    width = value.shape[1] + (key.shape[1] if with_key else 0)
    lengths = offsets[1:] - offsets[:-1]
    longest = int(lengths.max()) if count else 0
    if not longest:  # zeros that still come from their inputs: a step then has gradients of zero, not none
        more = [part.sum() for part in (bias, None if fusion is None else fusion.factors) if part is not None]
        nothing = 0.0 * (query.sum(2, keepdim=True) + key.sum() + value.sum() + sum(more))
        return nothing.expand(count, heads, width)
    column = torch.arange(longest, device=place.device)
    real = column < lengths[:, None]  # (Nc, K)
    pair = (offsets[:-1, None] + column).clamp(max=place.shape[0] - 1)
    is_full = bool((lengths == longest).all())
    at_once = max(1, MOST_NUMBERS // (longest * (key.shape[1] + value.shape[1] + heads)))
    parts = []
    for start in range(0, count, at_once):
        some = slice(start, start + at_once)
        where = place[pair[some]]
        rows = where.shape[0]

        def gathered(values: Tensor, where: Tensor = where, rows: int = rows) -> Tensor:
            return spread_rows(values, where.flatten()).view(rows, longest, values.shape[1])

        keys = gathered(key)
        scores = query[some] @ keys.mT  # (n, H, K)
        if fusion is not None:
            g1, g2, g3 = (factor[:, None] for factor in fusion.factors)  # (H, 1)
            r = fusion.similarity[pair[some]][:, None]
            scores = g1 * scores + g2 * r + g3 * scores * r
        if bias is not None:
            scores = scores + gathered(bias).mT
        if not is_full:
            scores = scores.masked_fill(~real[some][:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(2)
        if not is_full:
            weights = weights * real[some][:, None]
        read = [weights @ keys] if with_key else []
        if value.shape[1]:
            read.append(weights @ gathered(value))
        parts.append(torch.cat(read, 2) if len(read) > 1 else read[0])
    return torch.cat(parts) if len(parts) > 1 else parts[0]


__all__ = ["Fusion", "selected_attention"]
