"""A user's whole history as sums by hash bucket: bounded size, exact update, no candidate needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.ops.bucket_sum import BucketTerms, bucket_interest, bucket_mean, summed_or_terms
from sostenuto.ops.jagged import newest_time, offsets_to_lengths, row_index
from sostenuto.ops.simhash import bucket_ids, random_hyperplanes

DAY_MS = 86_400_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Buckets:
    """Bucket sums of B users; a value, never changed in place. Its size does not depend on the history's length."""

    sums: Tensor | None  # (B, G, K, 1 + S, V) float64: plain, then one per half-life, decayed to `reference_ms`
    counts: Tensor | None  # (B, G, K) float64 behaviours in each bucket, where they are asked for
    reference_ms: Tensor  # (B,) int64 time of the newest behaviour; 0 for an empty history
    lengths: Tensor  # (B,) int64 behaviours in all
    terms: BucketTerms | None = None  # in training, in place of `sums`: summed when candidates ask, for them


class HashBuckets(nn.Module):
    """The long branch of SDIM (arXiv:2205.10249, section 3) with decayed bucket sets beside the plain one.

    u_g = sum of the behaviours that share the candidate's bucket of signature g; the result is the mean over g of
    u_g / |u_g|. A decayed set weighs each behaviour with 2 ** (-age / half-life). Ages count from the user's newest
    behaviour: counting from the request would multiply a whole set by one factor, which the division by |u_g|
    cancels. So a set needs no request time, and a later event is an exact rescale and add. The sets are ours.

    Args:
        dim: width of the vectors that are hashed.
        parts: widths of the parts of a value that are brought to length 1 separately.
        num_hashes: m, hyperplanes in all.
        hash_bits: tau, bits per signature; G = m / tau signatures.
        half_life_days: of the decayed sets.
        normalise: divide by |u_g|; without it the result is the mean of the sums.
        counted: also count the behaviours in every bucket, for `collisions`.
    """

    planes: Tensor
    rates: Tensor

    def __init__(
        self,
        dim: int,
        parts: Sequence[int],
        *,
        num_hashes: int,
        hash_bits: int,
        half_life_days: Sequence[float] = (),
        normalise: bool = True,
        counted: bool = False,
    ) -> None:
        super().__init__()
        self.parts = list(parts) if normalise else []
        self.counted = counted
        self.buckets = 2**hash_bits
        self.num_sets = 1 + len(half_life_days)
        self.register_buffer("planes", random_hyperplanes(dim, num_hashes // hash_bits, hash_bits))
        rates = [0.0, *(math.log(2.0) / (days * DAY_MS) for days in half_life_days)]
        self.register_buffer("rates", torch.tensor(rates, dtype=torch.float64), persistent=False)

    def hash(self, vectors: Tensor) -> Tensor:
        """Return the (N, G) int32 buckets of (N, dim) vectors; no gradient flows back to them."""
        return bucket_ids(vectors, self.planes)

    def encode(self, ids: Tensor, place: Tensor, values: Tensor, offsets: Tensor, time_ms: Tensor) -> Buckets:
        """Sum (N, V) values by bucket; behaviour n is in the (G,) buckets ids[place[n]]."""
        lengths = offsets_to_lengths(offsets)
        row = row_index(offsets)
        reference = newest_time(offsets, time_ms)
        weights = torch.exp((time_ms - reference[row]).double()[:, None] * self.rates)
        counts = None
        if self.counted:
            groups = ids.shape[1]
            columns = torch.arange(groups, device=ids.device)
            places = (row[:, None] * groups + columns) * self.buckets + ids[place]
            counts = torch.bincount(places.flatten(), minlength=len(lengths) * groups * self.buckets).double()
            counts = counts.view(len(lengths), groups, self.buckets)
        sums, terms = summed_or_terms(BucketTerms(values, weights, ids, place, offsets, self.buckets))
        return Buckets(sums=sums, counts=counts, reference_ms=reference, lengths=lengths, terms=terms)

    def append(self, state: Buckets, later: Buckets) -> Buckets:
        """Add the buckets of later events; equal to encoding everything anew. For states without a gradient."""
        if state.sums is None or later.sums is None:
            raise ValueError("states must be made without gradients to be appended, got some; use torch.no_grad()")
        reference = torch.maximum(state.reference_ms, later.reference_ms)
        fade = torch.exp(-(reference - state.reference_ms).double()[:, None] * self.rates)
        return Buckets(
            sums=state.sums * fade[:, None, None, :, None] + later.sums,
            counts=None if state.counts is None or later.counts is None else state.counts + later.counts,
            reference_ms=reference,
            lengths=state.lengths + later.lengths,
        )

    def lookup(self, state: Buckets, ids: Tensor, offsets: Tensor) -> Tensor:
        """Return (Nc, 1 + S, V) float32 interests of candidates in (Nc, G) buckets, whose rows start at `offsets`."""
        return bucket_interest(state.sums, ids, offsets, self.parts, state.terms)

    def collisions(self, state: Buckets, ids: Tensor, row: Tensor) -> Tensor:
        """Return (Nc, 1): the mean number of behaviours in the buckets of candidates at the (Nc,) rows."""
        assert state.counts is not None, "HashBuckets was made without `counted`"
        return bucket_mean(state.counts[..., None].float(), ids, row)


__all__ = ["Buckets", "HashBuckets"]
