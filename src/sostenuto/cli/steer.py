"""`sostenuto steer`: what a model with heads trades for what, over a knob of decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sostenuto.cli.output import JsonOption, print_json, print_lines, print_table


def steer(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a model with prior heads.")],
    knob: Annotated[
        str,
        typer.Option(
            help="habit (> 0 what the user is used to, < 0 what is new), frequency (< 0 raises rare groups), "
            "long_term (> 0 the far future) or level (1 brings the heads to one level)."
        ),
    ] = "habit",
    values: Annotated[str, typer.Option(help="Values of the knob, commas between.")] = "-1,-0.5,-0.25,0,0.25,0.5,1,2",
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    requests: Annotated[int, typer.Option(min=1, help="Requests, drawn.")] = 500,
    k: Annotated[int, typer.Option(min=1, help="Length of the lists.")] = 10,
    out: Annotated[
        Path | None, typer.Option(help="Folder for steering-KNOB.json and its pictures. Default: RUN/steering.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared folder. Default: the one of the run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a knob of decoding and measure: accuracy, diversity, near and far future. Nothing is trained."""
    from sostenuto.evaluation.steering import steering_curve
    from sostenuto.reports.page import write_page
    from sostenuto.reports.steering import steering_pictures
    from sostenuto.schema.errors import SpecError
    from sostenuto.training.config import read_text
    from sostenuto.training.run import open_run

    if split not in ("valid", "test"):
        raise SpecError(f"--split must be valid or test, got {split!r}; training requests are not measured")
    wanted = read_text(values, tuple[float, ...], "--values")
    if not wanted:
        raise SpecError("--values must name at least one value, got none; for example -1,0,1")
    opened = open_run(run, data)
    curve = steering_curve(opened.ranker, opened.collator, knob, wanted, split=split, requests=requests, k=k)
    folder = out or run / "steering"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(curve, indent=2).replace("NaN", "null")
    (folder / f"steering-{knob}.json").write_text(text + "\n", encoding="utf-8")
    for name, chart in steering_pictures(curve).items():
        write_page(folder / f"steering-{knob}-{name}.svg", chart)
    if as_json:
        print_json(curve)
        return
    names = [name for name in curve["points"][0] if name != "value"]
    rows = [(f"{point['value']:g}", *(point[name] for name in names)) for point in curve["points"]]
    print_table(f"Knob {knob}, {curve['requests']} requests, k = {k}", (knob, *names), rows, numbers=(knob, *names))
    print_lines(f"Written to {folder}")


__all__ = ["steer"]
