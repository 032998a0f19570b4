"""The table of measurements: a name, its sizes, and the function that makes the case. Adding one is one entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sostenuto.bench import arrays, attention, buckets, searches, tables
from sostenuto.bench.case import Case
from sostenuto.bench.limits import Bound, Limits, torch_threads
from sostenuto.bench.timing import Timing, time_in_turns
from sostenuto.bench.work import Work
from sostenuto.schema.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance as Sizes

LEAST_S = 0.03  # of a round: longer than the slice of time that another process may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One named measurement; `sizes` and `quick` are of the type that `make` takes."""

    name: str
    what: str
    make: Callable[[Any, int], Case]  # sizes, seed
    sizes: Sizes
    quick: Sizes  # tiny: shows that it works, not how fast it is

    def words(self, *, quick: bool = False) -> str:
        """Say what is measured with its sizes."""
        return f"{self.what}: {size_words(self.quick if quick else self.sizes)}"


def size_words(sizes: Sizes) -> str:
    """Write sizes as words.

    >>> size_words(tables.StepSizes(rows=200_000, touched=4_000, dim=32))
    'rows 200,000, touched 4,000, dim 32'
    """
    words = []
    for name, value in dataclasses.asdict(sizes).items():
        if isinstance(value, bool):
            words += [name] if value else []
        elif value:
            words.append(f"{name} {value:,}")
    return ", ".join(words)


_SCORING = attention.AttentionSizes(requests=1, candidates=500, length=1_000)
_SAMPLES = attention.AttentionSizes(requests=1_024, candidates=1, length=50, width=32)
_REQUESTS = attention.AttentionSizes(
    requests=16, candidates=42, length=900, dim=48, units=32, width=66, softmax=True, prelu=True
)  # a batch of Complete Journey
_FEW_SAMPLES = dataclasses.replace(_SAMPLES, requests=16)
_FEW_REQUESTS = dataclasses.replace(_REQUESTS, requests=2, candidates=6, length=40)

MEASUREMENTS: dict[str, Measurement] = {
    measurement.name: measurement
    for measurement in (
        Measurement(
            name="attention_scoring",
            what="target attention, forward",
            make=attention.attention_forward,
            sizes=_SCORING,
            quick=dataclasses.replace(_SCORING, candidates=20, length=100),
        ),
        Measurement(
            name="attention_50",
            what="target attention, forward and backward",
            make=attention.attention_training_beside_naive,
            sizes=_SAMPLES,
            quick=_FEW_SAMPLES,
        ),
        Measurement(
            name="attention_200",
            what="target attention, forward and backward",
            make=attention.attention_training,
            sizes=dataclasses.replace(_SAMPLES, length=200),
            quick=_FEW_SAMPLES,
        ),
        Measurement(
            name="attention_690",
            what="target attention, forward and backward",
            make=attention.attention_training,
            sizes=dataclasses.replace(_SAMPLES, length=690),
            quick=_FEW_SAMPLES,
        ),
        Measurement(
            name="attention_requests",
            what="target attention, forward and backward",
            make=attention.attention_training,
            sizes=_REQUESTS,
            quick=_FEW_REQUESTS,
        ),
        Measurement(
            name="bucket_sums",
            what="SDIM's sums by hash bucket, forward and backward",
            make=buckets.bucket_sums,
            sizes=buckets.BucketSizes(users=16),
            quick=buckets.BucketSizes(users=2, length=30),
        ),
        Measurement(
            name="bucket_lookup",
            what="SDIM's lookup in a cached state",
            make=buckets.bucket_lookup,
            sizes=buckets.BucketSizes(users=1, candidates=500),
            quick=buckets.BucketSizes(users=2, length=30, candidates=10, signatures=4),
        ),
        Measurement(
            name="hamming_search",
            what="the nearest signatures",
            make=searches.hamming_search,
            sizes=searches.SearchSizes(candidates=500, length=10_000),
            quick=searches.SearchSizes(candidates=10, length=200),
        ),
        Measurement(
            name="product_search",
            what="the largest inner products",
            make=searches.product_search,
            sizes=searches.SearchSizes(candidates=500, length=10_000),
            quick=searches.SearchSizes(candidates=10, length=200),
        ),
        Measurement(
            name="pair_products",
            what="products with what a search found",
            make=searches.pair_products,
            sizes=searches.SearchSizes(candidates=500, length=10_000, kept=100, dim=384),
            quick=searches.SearchSizes(candidates=10, length=200, kept=5, dim=20),
        ),
        Measurement(
            name="table_lookup",
            what="embedding rows, forward and backward",
            make=tables.table_lookup,
            sizes=tables.LookupSizes(rows=50_000, lookups=700_000, dim=16),
            quick=tables.LookupSizes(rows=2_000, lookups=5_000, dim=16),
        ),
        Measurement(
            name="touched_rows",
            what="Adam step on the rows that a batch touched",
            make=tables.touched_rows,
            sizes=tables.StepSizes(rows=500_000, touched=4_000, dim=32),
            quick=tables.StepSizes(rows=5_000, touched=50, dim=32),
        ),
        Measurement(
            name="match_index",
            what="match index built and looked up",
            make=arrays.match_index,
            sizes=arrays.MatchSizes(users=32, length=1_000, candidates=60),
            quick=arrays.MatchSizes(users=4, length=100, candidates=10),
        ),
        Measurement(
            name="gauc",
            what="GAUC",
            make=arrays.gauc,
            sizes=arrays.AucSizes(rows=200_000, groups=4_000),
            quick=arrays.AucSizes(rows=2_000, groups=50),
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measurement with its times, beside the limits of the same run."""

    measurement: Measurement
    against: str  # what `plain` is
    words: str
    work: Work
    bound: Bound
    timing: Timing

    @property
    def operations_per_s(self) -> float:
        """Operations that must be computed, in the median time."""
        return self.work.operations / self.timing.ours

    @property
    def bytes_per_s(self) -> float:
        """Bytes that must move, in the median time."""
        return self.work.moved_bytes / self.timing.ours

    @property
    def share(self) -> float:
        """Least possible time over the median time: 1 is the limit of the machine."""
        return self.bound.seconds / self.timing.ours

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.work.operations / self.work.moved_bytes


def find(name: str) -> Measurement:
    """Return a measurement of the table."""
    if name not in MEASUREMENTS:
        known = ", ".join(MEASUREMENTS)
        raise SpecError(f"measurement must be one of {known}, got {name!r}.{did_you_mean(name, MEASUREMENTS)}")
    return MEASUREMENTS[name]


def measure(name: str, limits: Limits, *, rounds: int = 5, seed: int = 0, quick: bool = False) -> Measured:
    """Run one measurement of the table, at the threads of the limits."""
    measurement = find(name)
    if rounds < 1:
        raise SpecError(f"rounds must be at least 1, got {rounds}; 5 is usual")
    with torch_threads(limits.threads):
        case = measurement.make(measurement.quick if quick else measurement.sizes, seed)
        timing = time_in_turns(case.ours, case.plain, case.naive, rounds=rounds, least_s=0.0 if quick else LEAST_S)
    return Measured(
        measurement=measurement,
        against=case.against,
        words=measurement.words(quick=quick),
        work=case.work,
        bound=limits.bound(case.work),
        timing=timing,
    )


__all__ = ["MEASUREMENTS", "Measured", "Measurement", "find", "measure", "size_words"]
