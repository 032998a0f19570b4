"""`sostenuto train`: one recipe on prepared data, into a run folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sostenuto.cli.output import JsonOption, note, print_json, print_lines, print_table

if TYPE_CHECKING:
    from sostenuto.training.config import RunConfig

DataArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Prepared folder.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Set one field, e.g. training.learning_rate=3e-4; see --print-config."),
]


def train(
    data: DataArgument,
    recipe: Annotated[str, typer.Option(help="Named run, e.g. din, din_recent50, trees.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; a run that is in it and was killed goes on.")] = None,
    changes: SetOption = None,
    budget: Annotated[
        str | None, typer.Option(help="smoke, demo, standard or full: how many requests are used.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of initial values, order of requests, dropout.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the whole config as JSON and end.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run that is in --out and start anew.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train (or fit) one recipe.

    Early stopping looks at validation, never at test. A memory plan is printed before the first step.
    """
    from sostenuto.training.config import plain

    config = resolved(recipe, changes or [], budget=budget, seed=seed)
    if print_config:
        print_json(plain(config))
        return
    if out is None:
        raise typer.BadParameter("a run needs a folder: give --out RUN", param_hint="--out")
    from sostenuto.training.reporting import RichReporter
    from sostenuto.training.run import run_training

    result = run_training(data, out, config, reporter=RichReporter(), resume=not fresh)
    finished = result.finished
    if as_json:
        print_json({"run": str(result.folder), "recipe": config.name, "model": config.model, **asdict(finished)})
        return
    rows = [
        *([] if finished.metric == "gauc" else [(f"validation {finished.metric}, all items", finished.best_value)]),
        ("validation GAUC by request", finished.gauc),
        *((f"  on list {name}", value) for name, value in finished.by_list.items()),
        ("validation logloss", finished.logloss),
        ("steps", finished.steps),
        ("stopped by", finished.stopped),
        ("best step", finished.best_step),
        ("parameters", finished.parameters),
        ("seconds", f"{finished.seconds:,.1f}"),
        ("peak memory, MB", None if finished.peak_rss_mb is None else f"{finished.peak_rss_mb:,.0f}"),
    ]
    print_lines(f"{config.name}: {result.folder}")
    print_table("", ("what", "value"), rows, numbers=("value",))
    note(f"next: sostenuto evaluate {result.folder}")


def resolved(recipe: str, changes: list[str], *, budget: str | None, seed: int | None) -> RunConfig:
    """Return the config of a recipe with budget, seed and single fields set, in this order."""
    from dataclasses import replace

    from sostenuto.recipes import recipe_named
    from sostenuto.training.config import apply_overrides, budget_named

    config = recipe_named(recipe)
    if budget is not None:
        config = replace(config, budget=budget_named(budget))
    if seed is not None:
        from sostenuto.training.run import with_seed

        config = with_seed(config, seed)
    return apply_overrides(config, changes)


__all__ = ["resolved", "train"]
