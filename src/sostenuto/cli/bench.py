"""`sostenuto bench`: named speed measurements."""

from __future__ import annotations

from typing import Annotated

import typer

from sostenuto.cli.output import JsonOption, note, print_json, print_table


def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Measurements; default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each is measured, in turns with its plain twin.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the data measured on.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Time named pieces against plain twins."""
    import platform

    import torch

    from sostenuto.bench.measurements import MEASUREMENTS, measure

    torch.set_num_threads(threads)
    results = []
    for name in names or list(MEASUREMENTS):
        note(f"measuring {name}")
        timing = measure(name, rounds=rounds, seed=seed)
        results.append((MEASUREMENTS[name], timing))
    if as_json:
        print_json(
            {
                "machine": {
                    "processor": platform.machine(),
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                },
                "settings": {"rounds": rounds, "threads": threads, "seed": seed},
                "measurements": [
                    {
                        "name": measurement.name,
                        "ours": measurement.ours,
                        "plain": measurement.plain,
                        "ratio": timing.ratio,
                        "ours_s": timing.ours_s,
                        "plain_s": timing.plain_s,
                    }
                    for measurement, timing in results
                ],
            }
        )
        return
    rows = [
        (
            measurement.name,
            f"{timing.ours * 1e3:.2f}",
            f"{timing.plain * 1e3:.2f}",
            f"{timing.ratio:.1f}x",
            f"{min(timing.ratios):.1f} - {max(timing.ratios):.1f}",
            measurement.ours,
            measurement.plain,
        )
        for measurement, timing in results
    ]
    columns = ("name", "ours, ms", "plain, ms", "faster", "range", "what", "against")
    print_table("Medians over rounds", columns, rows, numbers=columns[1:5])


__all__ = ["bench"]
