"""Searches of two-stage models: the behaviours nearest to each candidate."""

from __future__ import annotations

from dataclasses import dataclass

from sostenuto.bench.case import Case, beside_plain_twin
from sostenuto.bench.work import Work

FLOAT, INT64 = 4, 8
WORD_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSizes:
    """Sizes of one search in the history of one user."""

    candidates: int
    length: int  # L behaviours
    kept: int = 50  # K
    dim: int = 32  # D of vectors
    bits: int = 64  # of signatures


def product_work(sizes: SearchSizes) -> Work:
    """Count a search by inner product: D multiply-adds a pair and a comparison; everything is read once."""
    pairs = float(sizes.candidates) * sizes.length
    found = sizes.candidates * sizes.kept * (FLOAT + INT64)
    return Work(
        flops=pairs * (2 * sizes.dim + 1),
        streamed_bytes=float(FLOAT * sizes.dim * (sizes.candidates + sizes.length) + found),
    )


def hamming_work(sizes: SearchSizes) -> Work:
    """Count a search by signature: per pair and word of 64 bits a difference, its bits, a sum; then a comparison.

    These are whole-number operations, held against the rate of float32 ones, which a processor does as fast or faster.
    """
    pairs, words = float(sizes.candidates) * sizes.length, -(-sizes.bits // WORD_BITS)
    found = sizes.candidates * sizes.kept * 2 * INT64
    return Work(
        flops=pairs * (3 * words + 1),
        streamed_bytes=float(INT64 * words * (sizes.candidates + sizes.length) + found),
    )


def pairs_work(sizes: SearchSizes) -> Work:
    """Count the products of every candidate with its K behaviours: D multiply-adds a pair; rows are read once."""
    pairs = float(sizes.candidates) * sizes.kept
    return Work(
        flops=pairs * 2 * sizes.dim,
        streamed_bytes=FLOAT * sizes.dim * (sizes.candidates + sizes.length) + 3 * INT64 * pairs,
    )


def pair_products(sizes: SearchSizes, seed: int) -> Case:
    """Multiply every candidate with K behaviours, anywhere in the history, in float64."""
    import torch

    from sostenuto.ops import pair_products as products

    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(sizes.candidates, sizes.dim, generator=generator)
    key = torch.randn(sizes.length, sizes.dim, generator=generator)
    candidate = torch.arange(sizes.candidates).repeat_interleave(sizes.kept)
    behaviour = torch.randint(0, sizes.length, candidate.shape, generator=generator)
    return beside_plain_twin(
        pairs_work(sizes), lambda: products.pair_products(query, key, candidate, behaviour).product
    )


def product_search(sizes: SearchSizes, seed: int) -> Case:
    """Find the largest inner products."""
    import torch

    from sostenuto.ops.top_k import inner_product_top_k

    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(sizes.candidates, sizes.dim, generator=generator)
    key = torch.randn(sizes.length, sizes.dim, generator=generator)
    starts = (torch.tensor([0, sizes.candidates]), torch.tensor([0, sizes.length]))
    return beside_plain_twin(
        product_work(sizes), lambda: inner_product_top_k(query, starts[0], key, starts[1], sizes.kept)
    )


def hamming_search(sizes: SearchSizes, seed: int) -> Case:
    """Find the smallest distances of signatures."""
    import torch

    from sostenuto.ops.top_k import hamming_top_k, pack_signatures

    generator = torch.Generator().manual_seed(seed)
    query, key = (
        pack_signatures(torch.rand(rows, sizes.bits, generator=generator) < 0.5)
        for rows in (sizes.candidates, sizes.length)
    )
    starts = (torch.tensor([0, sizes.candidates]), torch.tensor([0, sizes.length]))
    return beside_plain_twin(hamming_work(sizes), lambda: hamming_top_k(query, starts[0], key, starts[1], sizes.kept))


__all__ = [
    "SearchSizes",
    "hamming_search",
    "hamming_work",
    "pair_products",
    "pairs_work",
    "product_search",
    "product_work",
]
