"""A request's behaviours summed with their inner products: what a search by product would weigh, without a softmax.

    out_c = sum_j (q_c . k_j) k_j = M q_c        M = sum_j k_j k_j^T, one matrix per request

Letters: B requests, Nc candidates, Nh behaviours (flat), D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sostenuto.ops.jagged import offsets_to_lengths
from sostenuto.ops.target_attention import UnitWeights, target_attention

CROWD = 4  # a request has many candidates when there are D / CROWD of them: then its matrix costs less than its pairs


def product_pooling(query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor) -> Tensor:
    """Sum the behaviours of each request for each of its candidates.

    Few candidates meet the behaviours one by one, as an attention without normalisation does; many share a matrix.

    Args:
        query: (Nc, D) candidates.
        query_offsets: (B + 1,) int64 row starts of the candidates.
        key: (Nh, D) behaviours.
        key_offsets: (B + 1,) int64 row starts of the behaviours.

    Returns:
        (Nc, D); zeros for a row without behaviours.
    """
    requests, (candidates, width) = query_offsets.shape[0] - 1, query.shape
    if requests and CROWD * candidates >= width * requests:
        queries = torch.split(query, offsets_to_lengths(query_offsets).tolist())
        keys = torch.split(key, offsets_to_lengths(key_offsets).tolist())
        return torch.cat([q @ (k.T @ k) for q, k in zip(queries, keys, strict=True)])
    unit = UnitWeights.inner_product(query)
    nothing = key.new_zeros(key.shape[0], 0)
    return target_attention(query, query_offsets, key, key_offsets, nothing, unit, normalise="none", with_key=True)


__all__ = ["product_pooling"]
