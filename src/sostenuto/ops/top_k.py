"""The behaviours nearest to each candidate, by signature or by inner product: what two-stage rankers attend over.

A search looks at every pair of candidate and behaviour, so a pair must cost next to nothing: one product, or the bits
in which two signatures differ. Signatures of random hyperplanes are those of ETA (Chen et al. 2021, arXiv:2108.04468).
Of equally near behaviours the newer one is taken; rows are oldest first.

Letters: Nc candidates, Nh behaviours (flat over B requests), D width, K kept. This file is the definition;
`native_top_k` holds its compiled twins for a CPU. The plain forms walk over blocks of candidates and behaviours and
keep the best so far: never more than a block of the (Nc, Nh) matrix is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sostenuto.ops.backend import is_usable
from sostenuto.ops.jagged import Taken, lengths_to_offsets
from sostenuto.ops.native_top_k import hamming_search, product_search
from sostenuto.ops.pair_products import pair_products

WORD_BITS = 64
CANDIDATE_BLOCK = 128
BEHAVIOUR_BLOCK = 2048
TIE = (
    2.0**-21
)  # two products are equal when they differ by less than this part of their terms: 4 units in the last place
MOST_BEHAVIOURS = 2**31 - 1  # of a batch: a position and a value share 64 bits


class TopK(NamedTuple):
    """The K best behaviours of each candidate, best first; of equals the newer one first."""

    positions: Tensor  # (Nc, K) int64 into the flat behaviours, -1 where the history has fewer than K
    values: Tensor  # (Nc, K) distances (int64, -1 where there is none) or products (float32, -inf where there is none)


class Selected(NamedTuple):
    """Candidates as rows of their own, each with its own behaviours: the form that `target_attention` takes."""

    query_offsets: Tensor  # (Nc + 1,) one candidate a row
    taken: Taken  # positions (M,) of the behaviours, nearest first in every row, and row starts (Nc + 1,)


def pack_signatures(bits: Tensor) -> Tensor:
    """Return (N, words) int64 for (N, m) bool: 64 bits a word, the first one lowest; the last word's rest is 0."""
    count, width = bits.shape
    words = -(-width // WORD_BITS)
    padded = bits.new_zeros(count, words * WORD_BITS)
    padded[:, :width] = bits
    shifts = torch.arange(WORD_BITS, device=bits.device)
    return (padded.view(count, words, WORD_BITS).long() << shifts).sum(2)  # the highest bit is the sign: sums wrap


def hamming_top_k(query_code: Tensor, query_offsets: Tensor, key_code: Tensor, key_offsets: Tensor, k: int) -> TopK:
    """Find the `k` behaviours whose signatures differ in the fewest bits from the candidate's.

    Args:
        query_code: (Nc, words) int64 packed signatures of the candidates.
        query_offsets: (B + 1,) int64 row starts of the candidates.
        key_code: (Nh, words) int64 packed signatures of the behaviours, oldest first in a row.
        key_offsets: (B + 1,) int64 row starts of the behaviours.
        k: behaviours to find, at least 1.

    Returns:
        positions and distances in bits.

    Raises:
        ValueError: `k` below 1, signatures of different widths, or not of int64 words.
    """
    _check(query_code, key_code, k)
    for code in (query_code, key_code):
        if code.dtype != torch.int64:
            raise ValueError(f"signatures must be int64 words, got {code.dtype}; pack them with pack_signatures")
    if is_usable() and query_code.device.type == "cpu":
        return TopK(*hamming_search(query_code, query_offsets, key_code, key_offsets, k))

    def products(some: Tensor, others: Tensor) -> Tensor:
        # signs make the distance a product: exact in float32, which holds whole numbers up to 2 ** 24
        with torch.autocast(some.device.type, enabled=False):
            return _signs(some) @ _signs(others).T

    best = _blockwise(products, query_code, query_offsets, key_code, key_offsets, k)
    agreement = _product_of(best).masked_fill(best == _NONE, 0.0).long()
    distances = (query_code.shape[1] * WORD_BITS - agreement) // 2
    return TopK(_position_of(best), distances.masked_fill(best == _NONE, -1))


def inner_product_top_k(query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, k: int) -> TopK:
    """Find the `k` behaviours with the largest inner product with the candidate.

    The plain form multiplies in float64 and rounds to float32, the twin adds up each product in one order: in both,
    behaviours of one vector have one product wherever they stand, and their tie goes to the newer. Where
    products of different vectors agree in all but the last bit, the plain form and the twin may order them differently.

    Args:
        query: (Nc, D) float32 candidates.
        query_offsets: (B + 1,) int64 row starts of the candidates.
        key: (Nh, D) float32 behaviours, oldest first in a row.
        key_offsets: (B + 1,) int64 row starts of the behaviours.
        k: behaviours to find, at least 1.

    Returns:
        positions and products; no gradient flows back. A product that is not a number comes last.

    Raises:
        ValueError: `k` below 1, or vectors of different widths.
    """
    _check(query, key, k)
    query, key = query.detach(), key.detach()
    if is_usable(query, key):
        return TopK(*product_search(query, query_offsets, key, key_offsets, k))

    def products(some: Tensor, others: Tensor) -> Tensor:
        return (some.double() @ others.double().T).float()

    best = _blockwise(products, query, query_offsets, key, key_offsets, k)
    return TopK(_position_of(best), _product_of(best))


def _check(query: Tensor, key: Tensor, k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}; ask for one behaviour or more")
    if query.shape[1] != key.shape[1]:
        raise ValueError(
            f"candidates and behaviours must be equally wide, got {query.shape[1]} and {key.shape[1]}; "
            "make both with the same planes"
        )
    if key.shape[0] > MOST_BEHAVIOURS:
        raise ValueError(f"at most {MOST_BEHAVIOURS} behaviours can be searched at once, got {key.shape[0]}; split")


def _signs(code: Tensor) -> Tensor:
    """Return (N, words * 64) float32: 1 for a set bit, -1 for the others."""
    bits = (code[:, :, None] >> torch.arange(WORD_BITS, device=code.device)) & 1
    return (2 * bits - 1).flatten(1).float()


def _rank(products: Tensor, positions: Tensor) -> Tensor:
    """Put (C, L) float32 products and (L,) positions in one int64, the larger the earlier it comes."""
    known = torch.nan_to_num(products, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf) + 0.0  # -0 equals 0
    bits = known.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # whole numbers in the order of the floats
    return (ordered.long() << 32) | positions


def _product_of(rank: Tensor) -> Tensor:
    ordered = (rank >> 32).int()
    products = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return products.masked_fill(rank == _NONE, -torch.inf)


def _position_of(rank: Tensor) -> Tensor:
    return (rank & 0xFFFFFFFF).masked_fill(rank == _NONE, -1)


_NONE = torch.iinfo(torch.int64).min  # below the rank of any product


def _blockwise(
    products: Callable[[Tensor, Tensor], Tensor],
    query: Tensor,
    query_offsets: Tensor,
    key: Tensor,
    key_offsets: Tensor,
    k: int,
) -> Tensor:
    """Return (Nc, k) the largest ranks of every candidate, falling."""
    starts, ends = query_offsets.tolist(), key_offsets.tolist()
    found = torch.full((query.shape[0], k), _NONE, dtype=torch.int64, device=query.device)
    for b in range(len(starts) - 1):
        for c in range(starts[b], starts[b + 1], CANDIDATE_BLOCK):
            some = slice(c, min(c + CANDIDATE_BLOCK, starts[b + 1]))
            best = found[some]
            for j in range(ends[b], ends[b + 1], BEHAVIOUR_BLOCK):
                last = min(j + BEHAVIOUR_BLOCK, ends[b + 1])
                positions = torch.arange(j, last, device=query.device)
                ranks = _rank(products(query[some], key[j:last]), positions)
                best = torch.cat([best, ranks], 1).topk(k, dim=1).values
            found[some] = best
    return found


def equal_products(query: Tensor, key: Tensor, candidate: Tensor, behaviour: Tensor, other: Tensor) -> Tensor:
    """Say of M candidates whether their products with two behaviours are equal but for rounding.

    Two vectors that are made alike may differ in their last bits, by where they stand in a batch.

    Args:
        query: (Nc, D) candidates.
        key: (Nh, D) behaviours.
        candidate: (M,) int64 rows of `query`.
        behaviour: (M,) int64 rows of `key`.
        other: (M,) int64 likewise.

    Returns:
        (M,) bool.
    """
    first, second = (pair_products(query, key, candidate, one, with_magnitude=True) for one in (behaviour, other))
    slack = TIE * torch.maximum(first.magnitude, second.magnitude)
    return (first.product - second.product).abs() <= slack


def pair_distances(query_code: Tensor, key_code: Tensor) -> Tensor:
    """Return (M,) int64, the bits in which M pairs of packed signatures differ."""
    octets = torch.arange(256, device=query_code.device)
    ones = sum(((octets >> bit) & 1 for bit in range(8)), torch.zeros_like(octets))
    differing = (query_code ^ key_code).contiguous().view(torch.uint8)  # 8 to a word
    return ones[differing.long()].sum(1)


def selected(positions: Tensor) -> Selected:
    """Make each candidate a row of its own out of the (Nc, K) positions of a search; places with -1 fall away."""
    real = positions >= 0
    count = positions.shape[0]
    return Selected(
        query_offsets=torch.arange(count + 1, device=positions.device),
        taken=Taken(positions[real], lengths_to_offsets(real.sum(1))),
    )


__all__ = [
    "Selected",
    "TopK",
    "equal_products",
    "hamming_top_k",
    "inner_product_top_k",
    "pack_signatures",
    "pair_distances",
    "selected",
]
