"""Limits are those of a machine, and bounds are what they say about some work."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.bench.limits import Bound, measure_limits, torch_threads
from sostenuto.bench.machine import this_machine
from sostenuto.bench.work import RowGather, Work
from sostenuto.ops.backend import using
from sostenuto.schema.errors import SpecError


def test_every_limit_is_found(limits):
    assert limits.compute >= limits.gemm > 0
    assert limits.tall_gemm > 0
    assert limits.bf16_gemm > 0
    for moving in (limits.cached, limits.memory):
        assert moving.bytes_per_s >= moving.copy_bytes_per_s > 0
        assert [row.row_bytes for row in moving.rows] == [64, 128, 256]
        assert all(row.rows_per_s > 0 for row in moving.rows)


def test_a_table_of_the_large_kind_counts_as_memory(limits):
    assert limits.holding(limits.memory.table_bytes) is limits.memory
    assert limits.holding(limits.cached.array_bytes) is limits.cached


def test_without_a_library_the_product_is_the_limit():
    with using(None):
        found = measure_limits(repeats=1, quick=True)
    assert found.multiply_add is None
    assert found.compute == max(found.gemm, found.tall_gemm)


def test_the_bound_is_computing_or_moving_whichever_is_longer(invented):
    assert invented.bound(Work(flops=100e9, streamed_bytes=5e9)) == Bound(compute_s=1.0, stream_s=0.5, gather_s=0.0)
    assert invented.bound(Work(flops=100e9, streamed_bytes=5e9)).limit == "compute"
    streamed = invented.bound(Work(flops=1e9, double_flops=2e9, streamed_bytes=20e9))
    assert streamed.compute_s == pytest.approx(0.05)  # float64 counts twice
    assert (streamed.seconds, streamed.limit) == (2.0, "bandwidth")
    rows = RowGather(rows=40e6, row_bytes=64, table_bytes=1 << 30)
    gathered = invented.bound(Work(streamed_bytes=1e9, gathers=(rows,)))
    assert gathered.seconds == pytest.approx(2.1)
    assert gathered.limit == "gather"


def test_what_a_cache_holds_is_compared_with_the_cache(invented):
    assert invented.bound(Work(streamed_bytes=1e6)).stream_s == pytest.approx(1e6 / 100e9)
    assert invented.bound(Work(streamed_bytes=2e6)).stream_s == pytest.approx(2e6 / 10e9)
    small, large = (RowGather(rows=1e6, row_bytes=64, table_bytes=size) for size in (1_000_000, 1_000_001))
    assert invented.bound(Work(gathers=(large,))).gather_s == pytest.approx(
        10 * invented.bound(Work(gathers=(small,))).gather_s
    )


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_a_wider_row_never_takes_less_time(first, second):
    from sostenuto.bench.limits import MemoryLimits, RowLimit

    rows = (RowLimit(row_bytes=64, rows_per_s=40e6), RowLimit(row_bytes=256, rows_per_s=9e6))
    moving = MemoryLimits(array_bytes=1, table_bytes=1, copy_bytes_per_s=1.0, triad_bytes_per_s=1.0, rows=rows)
    narrow, wide = sorted((first, second))
    assert 0 < moving.row_seconds(narrow) <= moving.row_seconds(wide)


def test_threads_are_set_inside_the_block_only():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"repeats": 0}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(SpecError, match="must be at least 1, got 0"):
        measure_limits(quick=True, **wrong)


def test_the_machine_has_a_name():
    machine = this_machine()
    assert machine.processor
    assert machine.processors >= 1
    assert all(cache.size_bytes > 0 for cache in machine.caches)
    assert machine.operators in {"plain", "generic", "avx2", "avx512"}
    assert dataclasses.asdict(machine)["torch"] == torch.__version__
