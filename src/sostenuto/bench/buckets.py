"""SDIM's hash buckets: summing a history by bucket, and what candidates find there."""

from __future__ import annotations

from dataclasses import dataclass

from sostenuto.bench.case import Case, beside_plain_twin
from sostenuto.bench.work import RowGather, Work

FLOAT, INT32, DOUBLE, INT64 = 4, 4, 8, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSizes:
    """Sizes of one call."""

    users: int  # B
    length: int = 900  # L behaviours of each user
    items: int = 5_000  # U distinct ones
    candidates: int = 0  # of each user, in a lookup
    signatures: int = 48  # G
    bits: int = 3  # tau; 2 ** tau buckets a signature
    sets: int = 2  # S, the plain one and a decayed one
    width: int = 48  # V of a value
    dim: int = 32  # of the vectors that are hashed


def sums_work(sizes: BucketSizes) -> Work:
    """Count the sums and their gradient.

    Per behaviour: S V products, and G S V additions into the buckets, in float32 inside a stretch. Back: G S V
    additions of what the buckets got, and S V multiply-adds, in float64. Read: values, weights, places and buckets of
    each behaviour twice; the gradient of the table once. Written: the table, and the gradient of the values.
    """
    behaviours, row = sizes.users * sizes.length, sizes.sets * sizes.width
    table = sizes.users * sizes.signatures * 2**sizes.bits * row
    read_twice = FLOAT * sizes.width + DOUBLE * sizes.sets + INT64 + INT32 * sizes.signatures
    return Work(
        flops=float(behaviours) * row * (sizes.signatures + 1),
        double_flops=float(behaviours) * row * (sizes.signatures + 2),
        streamed_bytes=2.0 * behaviours * read_twice + FLOAT * behaviours * sizes.width + 2.0 * DOUBLE * table,
    )


def lookup_work(sizes: BucketSizes) -> Work:
    """Count the lookup of candidates in a cached state.

    Per candidate: the projection on G tau planes is G tau D multiply-adds; G S V additions for the mean.
    Per element of the state: a square, an addition, a division in float64 for the length of its row. Read: the
    state, the planes, the vectors, and one row of S V a candidate and signature. Written: the result.
    """
    candidates, row = sizes.users * sizes.candidates, sizes.sets * sizes.width
    table = sizes.users * sizes.signatures * 2**sizes.bits * row
    planes = sizes.dim * sizes.signatures * sizes.bits
    return Work(
        flops=float(candidates) * (sizes.signatures * row + 2.0 * planes),
        double_flops=3.0 * table,
        streamed_bytes=float(DOUBLE * table + FLOAT * planes + FLOAT * candidates * (sizes.dim + row)),
        gathers=(
            RowGather(rows=float(candidates) * sizes.signatures, row_bytes=FLOAT * row, table_bytes=FLOAT * table),
        ),
    )


def bucket_sums(sizes: BucketSizes, seed: int) -> Case:
    """Sum the values of histories by bucket, forward and backward."""
    import torch

    from sostenuto.ops.bucket_sum import weighted_bucket_sum

    generator = torch.Generator().manual_seed(seed)
    behaviours, buckets = sizes.users * sizes.length, 2**sizes.bits
    values = torch.randn(behaviours, sizes.width, generator=generator).requires_grad_()
    weights = torch.rand(behaviours, sizes.sets, dtype=torch.float64, generator=generator)
    ids = torch.randint(0, buckets, (sizes.items, sizes.signatures), generator=generator, dtype=torch.int32)
    place = torch.randint(0, sizes.items, (behaviours,), generator=generator)
    offsets = torch.arange(sizes.users + 1) * sizes.length
    shape = (sizes.users, sizes.signatures, buckets, sizes.sets, sizes.width)
    upstream = torch.randn(*shape, dtype=torch.float64, generator=generator)

    def ours() -> object:
        table = weighted_bucket_sum(values, weights, ids, place, offsets, buckets)
        return torch.autograd.grad(table, values, upstream)

    return beside_plain_twin(sums_work(sizes), ours)


def bucket_lookup(sizes: BucketSizes, seed: int) -> Case:
    """Look candidates up in the cached state of their users."""
    import torch

    from sostenuto.layers.hash_buckets import HashBuckets

    generator = torch.Generator().manual_seed(seed)
    behaviours, candidates = sizes.users * sizes.length, sizes.users * sizes.candidates
    layer = HashBuckets(
        sizes.dim,
        [sizes.width],
        num_hashes=sizes.signatures * sizes.bits,
        hash_bits=sizes.bits,
        half_life_days=tuple(28.0 * (1 + i) for i in range(sizes.sets - 1)),
    )
    layer.planes.copy_(torch.randn(layer.planes.shape, generator=generator))
    vectors = torch.randn(behaviours, sizes.dim, generator=generator)
    values = torch.randn(behaviours, sizes.width, generator=generator)
    offsets, times = torch.arange(sizes.users + 1) * sizes.length, torch.arange(behaviours) * 3_600_000
    wanted = torch.randn(candidates, sizes.dim, generator=generator)
    starts = torch.arange(sizes.users + 1) * sizes.candidates
    with torch.inference_mode():
        state = layer.encode(layer.hash(vectors), torch.arange(behaviours), values, offsets, times)

    @torch.inference_mode()
    def ours() -> object:
        return layer.lookup(state, layer.hash(wanted), starts)

    return beside_plain_twin(lookup_work(sizes), ours)


__all__ = ["BucketSizes", "bucket_lookup", "bucket_sums", "lookup_work", "sums_work"]
