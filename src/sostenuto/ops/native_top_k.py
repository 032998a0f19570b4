"""The compiled twins of the searches, as torch operators; the definitions are the plain forms in `top_k`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sostenuto.native.library import SearchShape, any_library
from sostenuto.ops.checked_arrays import check_shape, checked_offsets
from sostenuto.ops.operators import operator


def _search(
    name: str, query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    starts = checked_offsets(query_offsets, query.shape[0], "query_offsets")
    ends = checked_offsets(key_offsets, key.shape[0], "key_offsets")
    check_shape("key_offsets", ends, tuple(starts.shape))
    shape = SearchShape(
        requests=starts.shape[0] - 1,
        width=query.shape[1],
        k=k,
        threads=torch.get_num_threads(),
        query_offsets=starts.data_ptr(),
        key_offsets=ends.data_ptr(),
    )
    positions = starts.new_empty(query.shape[0], k)
    values = query.new_empty(query.shape[0], k)
    tensors = (query.contiguous(), key.contiguous(), positions, values)
    getattr(any_library().handle, name)(ctypes.byref(shape), *(t.data_ptr() for t in tensors))
    return positions, values


def _hamming_search(
    query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return (Nc, k) positions and distances for (Nc, words) and (Nh, words) int64 signatures."""
    return _search("sostenuto_hamming_top_k", query, query_offsets, key, key_offsets, k)


def _product_search(
    query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return (Nc, k) positions and products for (Nc, D) and (Nh, D) float32 vectors; nothing has a gradient."""
    return _search("sostenuto_product_top_k", query, query_offsets, key, key_offsets, k)


def _fake_search(
    query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    return query_offsets.new_empty(query.shape[0], k), query.new_empty(query.shape[0], k)


hamming_search = operator("hamming_top_k", _hamming_search, fake=_fake_search)
product_search = operator("product_top_k", _product_search, fake=_fake_search)

__all__ = ["hamming_search", "product_search"]
