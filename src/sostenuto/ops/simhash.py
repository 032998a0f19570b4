"""Random-hyperplane signatures: vectors of similar direction tend to fall into the same buckets (Charikar 2002).

P[one bit equal] = 1 - angle / pi; a signature is tau bits, so two vectors share a bucket with probability
(1 - angle / pi) ** tau. Letters: N vectors, D width, G signatures, tau bits each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sostenuto.ops.backend import is_usable
from sostenuto.ops.native_buckets import hashed

WORD_BITS = 64
PACKED_BITS = 16  # of one signature among those that are packed


def random_hyperplanes(dim: int, signatures: int, bits: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw (D, G, tau) float32 normals. Draw once and store them: they are part of the model."""
    return torch.randn(dim, signatures, bits, generator=generator)


def signature_bits(vectors: Tensor, planes: Tensor) -> Tensor:
    """Say on which side of each hyperplane a vector lies.

    The projection is done in float64 whatever the inputs: in float32 the order of summation depends on the shape of
    the batch and could flip a bit of a vector near a plane, and training and serving would disagree.

    Args:
        vectors: (N, D); no gradient flows back.
        planes: (D, G, tau).

    Returns:
        (N, G, tau) bool; exactly on the plane (a zero vector) counts as False.
    """
    flat = planes.double().flatten(1)
    return (vectors.detach().double() @ flat > 0).view(vectors.shape[0], *planes.shape[1:])


def bucket_ids(vectors: Tensor, planes: Tensor) -> Tensor:
    """Return (N, G) int32 in [0, 2 ** tau): the tau bits of each signature, the first one lowest."""
    if is_usable(vectors, planes):
        return hashed(vectors.detach(), planes)
    bits = signature_bits(vectors, planes).int()
    return (bits << torch.arange(planes.shape[2], dtype=torch.int32, device=planes.device)).sum(2, dtype=torch.int32)


def packed_signatures(vectors: Tensor, planes: Tensor) -> Tensor:
    """Return (N, words) int64 signatures for the Hamming search: those of `bucket_ids` one after another.

    The same as packing the (N, G * tau) bits of `signature_bits`, 64 a word, made by the compiled twin of `bucket_ids`.

    Args:
        vectors: (N, D); no gradient flows back.
        planes: (D, G, PACKED_BITS).
    """
    ids = bucket_ids(vectors, planes).long()
    each = WORD_BITS // PACKED_BITS
    words = -(-ids.shape[1] // each)
    padded = ids.new_zeros(ids.shape[0], words * each)
    padded[:, : ids.shape[1]] = ids
    shifts = PACKED_BITS * torch.arange(each, device=ids.device)
    return (padded.view(-1, words, each) << shifts).sum(2)  # the highest bit is the sign: sums wrap


__all__ = ["PACKED_BITS", "bucket_ids", "packed_signatures", "random_hyperplanes", "signature_bits"]
