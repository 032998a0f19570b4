"""`sostenuto analyse`: what two jobs ask of one table, whether a search finds what matters, what it is made into."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sostenuto.cli.output import JsonOption, print_json, print_lines, print_table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look inside a ranker that searches by attention.")

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of dare or one of its variants.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder for numbers and pictures. Default: RUN/analysis.")]
DataOption = Annotated[Path | None, typer.Option(help="Prepared folder. Default: the one of the run.")]

SplitOption = Annotated[str, typer.Option(help="valid or test.")]


@app.command("gradients")
def gradients(
    run: RunArgument,
    steps: Annotated[int, typer.Option(min=1, help="Training steps to measure, at most.")] = 300,
    rescale: Annotated[
        bool, typer.Option("--rescale", help="Bring the attention's gradient to the other's norm, a failed remedy.")
    ] = False,
    out: OutOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the run's model anew with shared tables; measure the gradients of attention and representation apart."""
    from sostenuto.reports.analysis import conflict_pictures
    from sostenuto.training.gradient_conflict import measure_conflict
    from sostenuto.training.run import open_run

    opened = open_run(run, data)
    found = measure_conflict(opened.data, opened.config, steps=steps, rescale=rescale)
    folder = _write(out or run / "analysis", "gradients", found, conflict_pictures(found))
    if as_json:
        print_json(found)
        return
    columns = ("attention_norm", "representation_norm", "ratio", "negative_percent", "cosine")
    measured = {**found["tables"], "all": found["whole"]}
    rows = [(name, *(f"{of[column]:.4g}" for column in columns)) for name, of in measured.items()]
    print_table(f"Gradients of two jobs over {found['steps']} steps", ("table", *columns), rows, numbers=columns)
    print_lines(f"Written to {folder}")


@app.command("retrieval")
def retrieval(
    run: RunArgument,
    split: SplitOption = "test",
    positions: Annotated[int, typer.Option(min=1, help="Newest behaviours that count.")] = 50,
    k: Annotated[int, typer.Option(min=1, help="Of NDCG@k.")] = 10,
    requests: Annotated[int, typer.Option(min=1, help="Requests, drawn.")] = 500,
    out: OutOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank behaviours by the model's scores, and compare with what their category and place say of labels."""
    from sostenuto.evaluation.information import retrieval_quality
    from sostenuto.reports.analysis import retrieval_pictures
    from sostenuto.training.run import open_run

    _check_split(split)
    opened = open_run(run, data)
    found = retrieval_quality(opened.ranker, opened.collator, split=split, positions=positions, k=k, requests=requests)
    folder = _write(out or run / "analysis", "retrieval", found, retrieval_pictures(found))
    if as_json:
        print_json(found)
        return
    title = f"NDCG@{k} of behaviours, {found['candidates']:,} candidates, {found['categories']} categories"
    print_table(title, ("order", "ndcg"), [(name, value) for name, value in found["ndcg"].items()], numbers=("ndcg",))
    print_lines(f"Written to {folder}")


@app.command("discriminability")
def discriminability(
    run: RunArgument,
    split: SplitOption = "test",
    requests: Annotated[int, typer.Option(min=1, help="Requests, drawn.")] = 2_000,
    clusters: Annotated[
        list[int] | None, typer.Option(min=2, help="Number of clusters; may be repeated. Default: 2 to 1,000.")
    ] = None,
    out: OutOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cluster what the model makes of candidates, and count what the cluster says of the label."""
    from sostenuto.evaluation.discriminability import discriminability as measured
    from sostenuto.reports.analysis import discriminability_pictures
    from sostenuto.training.run import open_run

    _check_split(split)
    opened = open_run(run, data)
    found = measured(opened.ranker, opened.collator, split=split, requests=requests, clusters=clusters or ())
    folder = _write(out or run / "analysis", "discriminability", found, discriminability_pictures(found))
    if as_json:
        print_json(found)
        return
    columns = [f"{name}_{what}" for name in ("interest", "product") for what in ("bits", "chance", "corrected")]
    rows = [(f"{point['clusters']:,}", *(f"{point[column]:.4f}" for column in columns)) for point in found["points"]]
    title = f"Bits of {found['entropy']:.4f} that clusters say of the label, {found['candidates']:,} candidates"
    print_table(title, ("clusters", *columns), rows, numbers=("clusters", *columns))
    print_lines(f"Written to {folder}")


def _check_split(split: str) -> None:
    from sostenuto.schema.errors import SpecError

    if split not in ("valid", "test"):
        raise SpecError(f"--split must be valid or test, got {split!r}; the ranker has learnt training requests")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(folder: Path, name: str, found: Mapping[str, Any], pictures: Mapping[str, Any]) -> Path:
    from sostenuto.reports.page import write_page

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(dict(found)), indent=2, allow_nan=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    for part, chart in pictures.items():
        write_page(folder / f"{name}-{part}.svg", chart)
    return folder


__all__ = ["app", "discriminability", "gradients", "retrieval"]
