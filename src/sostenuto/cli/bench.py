"""`sostenuto bench`: named speed measurements beside the limits of the machine."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sostenuto.cli.output import JsonOption, note, print_json, print_lines, print_table

if TYPE_CHECKING:
    from sostenuto.bench.limits import Limits, MemoryLimits
    from sostenuto.bench.machine import Machine
    from sostenuto.bench.measurements import Measured

GIGA = 1e9
WIDTH = 120  # columns that the tables fit
QUICK_ROUNDS, ROUNDS = 1, 5


def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Measurements; default: all.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Times that each form is measured, in turns; default 5.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch and of the compiled twins.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the data measured on.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes, one round: whether it runs, not how fast.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Write the roofline to this SVG file.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Name the measurements and run none.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Time operators beside their plain twins and the limits of the machine, which are measured first."""
    from sostenuto.bench.measurements import MEASUREMENTS, find, measure

    chosen = [find(name) for name in dict.fromkeys(names or MEASUREMENTS)]
    if listing:
        rows = [(one.name, one.words(quick=quick)) for one in chosen]
        if as_json:
            print_json([{"name": name, "what": what} for name, what in rows])
        else:
            print_table("", ("name", "what"), [(name, _wrapped(what)) for name, what in rows])
        return

    from sostenuto.bench.limits import measure_limits
    from sostenuto.bench.machine import load, this_machine

    machine = this_machine()
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    note("measuring the limits of the machine")
    limits = measure_limits(threads=threads, repeats=1 if quick else 5, quick=quick)
    measured = []
    for number, one in enumerate(chosen, 1):
        note(f"measuring {one.name} ({number} of {len(chosen)})")
        measured.append(measure(one.name, limits, rounds=rounds, seed=seed, quick=quick))
    ended = load()
    if picture is not None:
        from sostenuto.bench.roofline import roofline
        from sostenuto.reports.page import write_page

        note(f"wrote {write_page(picture, roofline(machine, limits, measured))}")
    if as_json:
        print_json(
            {
                "machine": dataclasses.asdict(machine) | {"load_at_the_end": ended},
                "settings": {"rounds": rounds, "threads": threads, "seed": seed, "quick": quick},
                "limits": dataclasses.asdict(limits) | {"compute": limits.compute},
                "measurements": [_record(one, quick=quick) for one in measured],
            }
        )
        return
    print_lines(*_machine_lines(machine, ended), "")
    _print_limits(limits)
    print_lines("")
    _print_measured(measured, rounds)


def _record(one: Measured, *, quick: bool) -> dict[str, Any]:
    timing, work = one.timing, one.work
    return {
        "name": one.measurement.name,
        "what": one.words,
        "sizes": dataclasses.asdict(one.measurement.quick if quick else one.measurement.sizes),
        "against": one.against,
        "work": dataclasses.asdict(work) | {"operations": work.operations, "moved_bytes": work.moved_bytes},
        "bound": dataclasses.asdict(one.bound) | {"seconds": one.bound.seconds, "limit": one.bound.limit},
        "seconds": timing.ours,
        "operations_per_s": one.operations_per_s,
        "bytes_per_s": one.bytes_per_s,
        "share": one.share,
        "ratio": timing.ratio,
        "naive_ratio": timing.naive_ratio,
        "ours_s": timing.ours_s,
        "plain_s": timing.plain_s,
        "naive_s": timing.naive_s,
    }


def _machine_lines(machine: Machine, ended: float | None) -> Iterable[str]:
    caches = ", ".join(f"L{cache.level} {_size(cache.size_bytes)}" for cache in machine.caches)
    memory = f"{_size(machine.memory_bytes)} of memory" if machine.memory_bytes else "memory not told"
    yield f"{machine.processor}: {machine.processors} processors, {caches or 'caches not told'}, {memory}"
    yield (
        f"{machine.system}, Python {machine.python}, torch {machine.torch} ({machine.torch_instructions}), "
        f"operators {machine.operators}"
    )
    if machine.load is not None and ended is not None:
        busy = " (others were at work: figures are for orientation)" if machine.load > 0.5 else ""
        yield f"load {machine.load:.1f} before, {ended:.1f} after{busy}"


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1024:.3g} KiB"


def _print_limits(limits: Limits) -> None:
    threads = f"{limits.threads} thread{'s' if limits.threads > 1 else ''}"
    rows = [
        *_moving("memory", limits.memory),
        *_moving("caches", limits.cached),
        ("multiply-adds in registers, fp32", _gflops(limits.multiply_add)),
        ("torch GEMM, fp32", _gflops(limits.gemm)),
        ("torch GEMM, fp32, tall", _gflops(limits.tall_gemm)),
        ("torch GEMM, bf16", _gflops(limits.bf16_gemm)),
    ]
    print_table(f"Limits of the machine, {threads}, best of several", ("limit", "reached"), rows, numbers=("reached",))


def _moving(where: str, limits: MemoryLimits) -> Iterable[tuple[str, str]]:
    arrays, table = _size(limits.array_bytes), _size(limits.table_bytes)
    yield f"{where}, copy, arrays of {arrays}", f"{limits.copy_bytes_per_s / GIGA:.1f} GB/s"
    yield f"{where}, triad, arrays of {arrays}", f"{limits.triad_bytes_per_s / GIGA:.1f} GB/s"
    for row in limits.rows:
        words = f"{where}, random rows of {row.row_bytes} B, up to {table}"
        yield words, f"{row.rows_per_s / 1e6:.0f} M rows/s, {row.bytes_per_s / GIGA:.1f} GB/s"


def _gflops(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / GIGA:.1f} GFLOP/s"


def _print_measured(measured: Iterable[Measured], rounds: int) -> None:
    columns = ("name", "ms", "GFLOP/s", "GB/s", "bound, ms", "share", "limit", "vs plain", "range", "vs naive")
    rows = []
    for one in measured:
        timing = one.timing
        rows.append(
            (
                one.measurement.name,
                f"{timing.ours * 1e3:.2f}",
                f"{one.operations_per_s / GIGA:.2f}",
                f"{one.bytes_per_s / GIGA:.2f}",
                f"{one.bound.seconds * 1e3:.3f}",
                f"{100 * one.share:.1f} %",
                one.bound.limit,
                f"{timing.ratio:.1f}x",
                f"{min(timing.ratios):.1f} - {max(timing.ratios):.1f}",
                None if timing.naive_ratio is None else f"{timing.naive_ratio:.1f}x",
            )
        )
    title = f"Medians of {rounds} round{'s' if rounds > 1 else ''}, forms in turns"
    print_table(title, columns, rows, numbers=[name for name in columns if name not in ("name", "limit")])
    print_lines(
        "",
        "GFLOP/s and GB/s count what must be computed and moved; bound is the least time for it by the limits above,",
        "share is bound / ms, limit says which one binds; vs plain is how many times faster than the plain twin.",
        "",
    )
    words = [(one.measurement.name, _wrapped(f"{one.words}; against {one.against}")) for one in measured]
    print_table("", ("name", "what"), words)


def _wrapped(words: str) -> str:
    return textwrap.fill(words, WIDTH - 24)  # beside a name


__all__ = ["bench"]
