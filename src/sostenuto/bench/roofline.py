"""The roofline of a run: every measurement as a dot under the limits of the machine."""

from __future__ import annotations

from collections.abc import Sequence

from sostenuto.bench.limits import Kind, Limits
from sostenuto.bench.machine import Machine
from sostenuto.bench.measurements import Measured
from sostenuto.reports.charts import Point, Roof, roofline_chart
from sostenuto.reports.markup import Markup
from sostenuto.reports.numbers import significant
from sostenuto.reports.page import picture

GIGA = 1e9
COLOURS: dict[Kind, str] = {"compute": "c0", "bandwidth": "c1", "gather": "c4"}


def roofline(machine: Machine, limits: Limits, measured: Sequence[Measured]) -> Markup:
    """Draw one run as an SVG file of its own."""
    points = [
        Point(
            label=one.measurement.name,
            x=one.intensity,
            y=one.operations_per_s / GIGA,
            small=(one.work.operations / one.timing.plain / GIGA,),
            colour=COLOURS[one.bound.limit],
            tip=(
                f"{one.words}: {significant(one.timing.ours * 1e3, 3)} ms, "
                f"{100 * one.share:.0f} % of the limit ({one.bound.limit}), {one.timing.ratio:.1f}x {one.against}"
            ),
        )
        for one in measured
    ]
    narrowest = limits.memory.rows[0]
    roofs = [
        _computing("multiply-adds in registers", limits.multiply_add, thin=False),
        _computing("torch GEMM", limits.gemm, thin=limits.multiply_add is not None),
        _moving("caches", limits.cached.bytes_per_s, thin=True),
        _moving("memory", limits.memory.bytes_per_s, thin=False),
        _moving(f"random rows of {narrowest.row_bytes} B", narrowest.bytes_per_s, thin=True),
    ]
    threads = f"{limits.threads} thread{'s' if limits.threads > 1 else ''}"
    chart = roofline_chart(
        points,
        [roof for roof in roofs if roof is not None],
        title="Roofline",
        description=f"{machine.processor}, {threads}, operators: {machine.operators}",
        x_caption="operations per byte that must move",
        y_caption=f"GFLOP/s · {machine.processor}, {threads}",
        key=[
            *((colour, f"limited by {kind}") for kind, colour in COLOURS.items()),
            ("hollow c7", "plain form of the same work"),
        ],
    )
    return picture(chart)


def _computing(name: str, rate: float | None, *, thin: bool) -> Roof | None:
    if rate is None:
        return None
    return Roof(label=f"{name}, {significant(rate / GIGA)} GFLOP/s", operations=rate / GIGA, thin=thin)


def _moving(name: str, rate: float, *, thin: bool) -> Roof:
    return Roof(label=f"{name}, {significant(rate / GIGA)} GB/s", bytes=rate / GIGA, thin=thin)


__all__ = ["roofline"]
