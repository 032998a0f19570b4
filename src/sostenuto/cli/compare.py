"""`sostenuto compare`: several recipes on the same requests, one table and one report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sostenuto.cli.output import JsonOption, cell, note, print_json, print_lines, print_table
from sostenuto.cli.train import DataArgument, SetOption

if TYPE_CHECKING:
    from sostenuto.reports.comparison import ComparisonResult, Difference, Score

SHOWN = ("gauc_request", "gauc_user", "ndcg@10", "recall@10", "logloss", "ece")


def compare(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for runs, table and report; a comparison that was killed goes on.")],
    models: Annotated[
        str | None,
        typer.Option(help="Recipes with commas between, e.g. repeat,trees,din,din_recent50. Default: one of each."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each recipe, seeds 0, 1, ...")] = 3,
    budget: Annotated[str, typer.Option(help="smoke, demo, standard or full: how many requests are used.")] = "demo",
    baseline: Annotated[str | None, typer.Option(help="Recipe that the others are tested against.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at the same time, one thread each. Default: one per core, two at most."),
    ] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare recipes: one table, one report.

    Every recipe is trained with every seed on the same requests; the table has spread and significance, and
    report.html opens without a server or a network.
    """
    from sostenuto.recipes import COMPARED
    from sostenuto.recipes.comparison import run_comparison
    from sostenuto.training.reporting import RichReporter

    result = run_comparison(
        data,
        out,
        recipes=COMPARED if models is None else tuple(name.strip() for name in models.split(",") if name.strip()),
        seeds=tuple(range(seeds)),
        budget=budget,
        baseline=baseline,
        changes=changes or [],
        workers=workers,
        reporter=RichReporter(),
    )
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    show(result)
    note(f"report: {out / 'report.html'}")


def score_text(score: Score | None, *, with_spread: bool) -> str:
    """Return a mean with its spread over seeds."""
    if score is None or score.mean is None:
        return "-"
    return cell(score.mean) + (f" +-{score.spread:.4f}" if with_spread and score.spread is not None else "")


def verdict(difference: Difference | None) -> str:
    """Say how a row stands against the baseline."""
    if difference is None:
        return "(baseline)"
    word = "better" if difference.beats else "worse" if difference.loses else "no difference shown"
    return f"{difference.difference:+.4f} ({difference.low:+.4f} .. {difference.high:+.4f}) {word}"


def show(result: ComparisonResult) -> None:
    """Print one table per candidate list, best row first."""
    for name in result.lists:
        ranked = sorted(
            (row for row in result.rows if name in row.lists),
            key=lambda row: -(row.lists[name].metrics[result.headline].mean or 0.0),
        )
        known = [m for m in SHOWN if any(m in row.lists[name].metrics for row in ranked)]
        rows = [
            (
                row.title,
                row.history,
                row.match,
                *(score_text(row.lists[name].metrics.get(m), with_spread=m == result.headline) for m in known),
                verdict(row.lists[name].versus_baseline),
            )
            for row in ranked
        ]
        columns = ("model", "history", "match", *known, f"against {result.baseline}, {result.headline}")
        print_table(f"List {name}: budget {result.budget}, {len(result.seeds)} seeds", columns, rows, numbers=known)
        print_lines("")


__all__ = ["compare", "score_text", "show", "verdict"]
