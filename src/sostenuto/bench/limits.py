"""Limits of the machine, measured in the run that is compared with them: multiply-adds, streams, random rows.

Each is the best of several, since a limit is what nothing disturbed. Streams and random rows are measured on arrays
that a cache holds and on arrays that it cannot hold; an operation is compared with those that its own size calls for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sostenuto.bench.machine import available_bytes, this_machine
from sostenuto.bench.work import RowGather, Work
from sostenuto.schema.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["compute", "bandwidth", "gather"]

ROW_BYTES = (64, 128, 256)
TABLE_BYTES = 1 << 30  # of random rows in memory
ARRAY_BYTES = 256 << 20  # of each array of a stream in memory
CACHED_ROWS = 50_000  # of random rows in a cache: a catalogue, 3 to 13 MB
CACHED_ARRAY_BYTES = 1 << 20
CACHE_BYTES = 32 << 20  # where the system does not tell how large its last cache is
BAG = 50  # random rows are added up by so many: nothing but reading them is left
COPIED_ROWS = 20_000  # at once: where they are copied to stays in a cache
PEAK_ROUNDS = 200_000  # some milliseconds: long beside the start of a thread
SLOW_S = 0.2  # a product that would take longer is not made larger


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLimit:
    """Reading rows at random places."""

    row_bytes: int
    rows_per_s: float

    @property
    def bytes_per_s(self) -> float:
        """Bytes of rows."""
        return self.rows_per_s * self.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimits:
    """Moving data of one size class."""

    array_bytes: int  # of each array of the streams
    table_bytes: int  # of the widest rows
    copy_bytes_per_s: float  # a <- b: two arrays
    triad_bytes_per_s: float  # a <- b + s c: three arrays
    rows: tuple[RowLimit, ...]  # narrowest first

    @property
    def bytes_per_s(self) -> float:
        """Reading and writing in order, the better of copy and triad."""
        return max(self.copy_bytes_per_s, self.triad_bytes_per_s)

    def row_seconds(self, row_bytes: int) -> float:
        """Return the seconds of one row: of the next wider that was measured, in parts beyond the widest."""
        for limit in self.rows:
            if row_bytes <= limit.row_bytes:
                return 1.0 / limit.rows_per_s
        return row_bytes / self.rows[-1].bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The least time that some work takes by the limits of this machine, and what it is made of."""

    compute_s: float
    stream_s: float
    gather_s: float

    @property
    def seconds(self) -> float:
        """The larger of computing and moving: at best one hides behind the other."""
        return max(self.compute_s, self.stream_s + self.gather_s)

    @property
    def limit(self) -> Kind:
        """What takes that time."""
        if self.compute_s >= self.stream_s + self.gather_s:
            return "compute"
        return "gather" if self.gather_s > self.stream_s else "bandwidth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What this machine can do at a number of threads, in operations and bytes per second."""

    threads: int
    cache_bytes: int  # what is larger is compared with `memory`, the rest with `cached`
    multiply_add: float | None  # float32 in registers; None without a compiled library
    gemm: float  # float32 product of torch, 1,024 cubed
    tall_gemm: float  # float32, (20,000 x 32) (32 x 64): the shape of an activation unit
    bf16_gemm: float  # bfloat16, 1,024 cubed, or 256 cubed where that is slow
    cached: MemoryLimits
    memory: MemoryLimits

    @property
    def compute(self) -> float:
        """The most float32 operations per second that were seen."""
        return max(self.multiply_add or 0.0, self.gemm, self.tall_gemm)

    def holding(self, size_bytes: float) -> MemoryLimits:
        """Return the limits of moving data of this size."""
        return self.cached if size_bytes <= self.cache_bytes else self.memory

    def bound(self, work: Work) -> Bound:
        """Say how fast some work could be done at best."""
        return Bound(
            compute_s=(work.flops + 2.0 * work.double_flops) / self.compute,
            stream_s=work.streamed_bytes / self.holding(work.streamed_bytes).bytes_per_s,
            gather_s=sum(self._gather_s(gather) for gather in work.gathers),
        )

    def _gather_s(self, gather: RowGather) -> float:
        return gather.rows * self.holding(gather.table_bytes).row_seconds(gather.row_bytes)


@contextlib.contextmanager
def torch_threads(count: int) -> Generator[None]:
    """Let torch, and the compiled twins with it, use so many threads inside the block."""
    import torch

    if count < 1:
        raise SpecError(f"threads must be at least 1, got {count}; 1 shows what one core can do")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_limits(*, threads: int = 1, repeats: int = 5, quick: bool = False) -> Limits:
    """Measure this machine: about 5 s and 2 GiB, less where memory is short; `quick` takes tiny arrays."""
    import torch

    if repeats < 1:
        raise SpecError(f"repeats must be at least 1, got {repeats}; 5 is usual")
    room = available_bytes()
    array_bytes, table_bytes = (4 << 20, 16 << 20) if quick else (ARRAY_BYTES, TABLE_BYTES)
    array_bytes, table_bytes = _lower(array_bytes, room // 16), _lower(table_bytes, room // 8)
    caches = this_machine().caches
    with torch_threads(threads), torch.inference_mode():
        return Limits(
            threads=threads,
            # a table that is made small for the sake of time must still count as one that no cache holds
            cache_bytes=min(caches[-1].size_bytes if caches else CACHE_BYTES, table_bytes // 2),
            multiply_add=_multiply_add(repeats, PEAK_ROUNDS // 10 if quick else PEAK_ROUNDS),
            gemm=_product((256, 256, 256) if quick else (1024, 1024, 1024), torch.float32, repeats),
            tall_gemm=_product((2_000 if quick else 20_000, 32, 64), torch.float32, repeats),
            bf16_gemm=_bf16(repeats, quick),
            cached=_memory(CACHED_ARRAY_BYTES, [row * CACHED_ROWS for row in ROW_BYTES], repeats, calls=20),
            memory=_memory(array_bytes, [table_bytes for _ in ROW_BYTES], repeats, calls=1),
        )


def _lower(wanted: int, most: int) -> int:
    """Return the wanted size, or the largest power of two that is allowed."""
    return wanted if wanted <= most else 1 << max(20, most.bit_length() - 1)


def _best_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _multiply_add(repeats: int, rounds: int) -> float | None:
    from sostenuto.ops.multiply_adds import multiply_adds

    operations = multiply_adds(rounds)
    return None if operations is None else operations / _best_seconds(lambda: multiply_adds(rounds), repeats)


def _product(sizes: tuple[int, int, int], dtype: object, repeats: int) -> float:
    """Return operations per second of (M x K) (K x N)."""
    import torch

    assert isinstance(dtype, torch.dtype)
    rows, inner, columns = sizes
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    return 2.0 * rows * inner * columns / _best_seconds(lambda: torch.mm(left, right, out=out), repeats)


def _bf16(repeats: int, quick: bool) -> float:
    """Without instructions for bfloat16 torch may take a hundred times longer: a small product tells."""
    import torch

    found = _product((256, 256, 256), torch.bfloat16, 1 if quick else repeats)
    if quick or 2.0 * 1024**3 / found > SLOW_S:
        return found
    return _product((1024, 1024, 1024), torch.bfloat16, repeats)


def _memory(array_bytes: int, table_bytes: list[int], repeats: int, *, calls: int) -> MemoryLimits:
    """Measure streams over arrays and random rows of tables, `calls` in a row where one is too short to time."""
    import torch

    copied, added = _streams(array_bytes, repeats, calls)
    storage = torch.full((max(table_bytes) // 4,), 1.0)
    rows = tuple(
        RowLimit(row_bytes=width, rows_per_s=_rows_per_s(storage[: size // 4].view(-1, width // 4), repeats))
        for width, size in zip(ROW_BYTES, table_bytes, strict=True)
    )
    return MemoryLimits(
        array_bytes=array_bytes,
        table_bytes=max(table_bytes),
        copy_bytes_per_s=copied,
        triad_bytes_per_s=added,
        rows=rows,
    )


def _streams(array_bytes: int, repeats: int, calls: int) -> tuple[float, float]:
    """Return bytes per second of a <- b, and of a <- b + s c."""
    import torch

    first, second, third = (torch.full((array_bytes // 4,), value) for value in (1.0, 2.0, 3.0))

    def copy() -> None:
        for _ in range(calls):
            first.copy_(second)

    def triad() -> None:
        for _ in range(calls):
            torch.add(second, third, alpha=0.5, out=first)

    copied = 2 * array_bytes * calls / _best_seconds(copy, repeats)
    return copied, 3 * array_bytes * calls / _best_seconds(triad, repeats)


def _rows_per_s(table: Tensor, repeats: int) -> float:
    """Return random rows per second: the better of adding them up as they come and of copying them out."""
    import torch
    from torch.nn import functional as F

    from sostenuto.ops.table_rows import lookup_rows

    count = min(400_000, table.shape[0]) // BAG * BAG
    index = torch.randint(0, table.shape[0], (count,), generator=torch.Generator().manual_seed(0))
    bags = index.view(-1, BAG)
    added = _best_seconds(lambda: F.embedding_bag(bags, table, mode="sum"), repeats)
    pieces = [index[at : at + COPIED_ROWS] for at in range(0, count, COPIED_ROWS)]
    copied = _best_seconds(lambda: [lookup_rows(table, piece, 0).shape for piece in pieces], repeats)
    return count / min(added, copied)


__all__ = ["Bound", "Kind", "Limits", "MemoryLimits", "RowLimit", "measure_limits", "torch_threads"]
