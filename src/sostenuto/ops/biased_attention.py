"""Dot-product attention of candidates over jagged behaviours, with a bias per behaviour.

    s_cj = q_c . k_j + b_j        out_c = sum_j softmax_j(s_c) v_j

It is `target_attention` with one hidden unit that is the inner product and has no bend, so it takes the same compiled
path, never makes a (candidates, behaviours, width) tensor, and gives the bias its gradient. The bias is the hook for
what a behaviour is worth to a request whatever the candidate: retention, fusion of scores.

This form is for candidates that ask about behaviours, which do not ask about each other (STIM). Behaviours that read
one another take `causal_attention` (relative biases, own keys, the generative rankers and HSTU) or
`bucketed_attention` (plain softmax over short windows, SASRec).
"""

from __future__ import annotations

from torch import Tensor

from sostenuto.ops.target_attention import UnitWeights, target_attention


def biased_attention(
    query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, value: Tensor, bias: Tensor
) -> Tensor:
    """Average the behaviours of each request, weighted by softmax.

    Args:
        query: (Nc, D) candidates, scaled already.
        query_offsets: (B + 1,) int64 row starts of the candidates.
        key: (Nh, D) behaviours.
        key_offsets: (B + 1,) int64 row starts of the behaviours.
        value: (Nh, V).
        bias: (Nh,) added to every score of the behaviour; a very low one takes it out.

    Returns:
        (Nc, V); zeros for a row without behaviours.
    """
    product = UnitWeights.inner_product(query)
    return target_attention(
        query, query_offsets, key, key_offsets, value, product, key_hidden=bias[:, None], normalise="softmax"
    )


__all__ = ["biased_attention"]
