import pytest

from sostenuto.bench.limits import Limits, MemoryLimits, RowLimit, measure_limits


@pytest.fixture(scope="session")
def limits() -> Limits:
    """Limits of this machine, on tiny arrays."""
    return measure_limits(repeats=3, quick=True)


@pytest.fixture
def invented() -> Limits:
    """A machine with round numbers: 100 GFLOP/s, 10 GB/s, 20 M rows/s; its cache is ten times as fast."""

    def moving(times: float) -> MemoryLimits:
        rows = tuple(RowLimit(row_bytes=width, rows_per_s=times * 20e6 * 64 / width) for width in (64, 128))
        return MemoryLimits(
            array_bytes=1, table_bytes=1, copy_bytes_per_s=times * 9e9, triad_bytes_per_s=times * 10e9, rows=rows
        )

    return Limits(
        threads=1,
        cache_bytes=1_000_000,
        multiply_add=100e9,
        gemm=80e9,
        tall_gemm=70e9,
        bf16_gemm=160e9,
        cached=moving(10.0),
        memory=moving(1.0),
    )
