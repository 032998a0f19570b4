"""`sostenuto evaluate`: the numbers of a run, and whether another run beats it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sostenuto.cli.output import JsonOption, print_json, print_lines, print_table

if TYPE_CHECKING:
    from sostenuto.training.run import Run

SHOWN = ("gauc_request", "gauc_user", "auc", "logloss", "ne", "pcoc", "ece", "ndcg@10", "recall@10", "coverage@10")


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    against: Annotated[
        list[Path] | None, typer.Option(help="Another run, measured on the same requests: paired test. Repeatable.")
    ] = None,
    full_ranking: Annotated[
        bool, typer.Option("--full-ranking", help="Also rank all candidate items; see --full-requests.")
    ] = False,
    full_requests: Annotated[
        int | None,
        typer.Option(min=1, help="Requests of the full ranking. Default: all for models that search, else 200."),
    ] = None,
    exclude_seen: Annotated[
        bool | None,
        typer.Option(
            "--exclude-seen/--with-seen",
            help="Leave out what the user met before, of models that search. Default: as in training.",
        ),
    ] = None,
    slices: Annotated[bool, typer.Option("--slices", help="Show the slices too.")] = False,
    data: Annotated[Path | None, typer.Option(help="Prepared folder. Default: the one of the run.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure anew, even when it was done before.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a run, or test it against others.

    Metrics by candidate list with 95 % intervals over users; with --against, a paired test on common draws of users.
    """
    from sostenuto.schema.errors import SpecError
    from sostenuto.training.measuring import measure
    from sostenuto.training.run import open_run

    if split not in ("valid", "test"):
        raise SpecError(f"--split must be valid or test, got {split!r}; training requests are not measured")
    run = open_run(folder, data)
    answer: dict[str, Any] = {
        "run": str(folder),
        "recipe": run.config.name,
        "model": run.config.model,
        "split": split,
        "metrics": measure(run, split, again=again),
    }
    if against:
        answer["comparison"] = paired(run, [open_run(other, data) for other in against], split)
    if full_ranking:
        answer["full_ranking"] = ranked_catalogue(run, split, full_requests, exclude_seen)
    if as_json:
        print_json(answer)
    else:
        show(answer, with_slices=slices)


def ranked_catalogue(run: Run, split: str, requests: int | None, exclude_seen: bool | None) -> dict[str, Any]:
    """Rank all items: of a model that searches, for every request by matrix products; else for some."""
    from sostenuto.evaluation.catalogue import catalogue_ranking, searches
    from sostenuto.evaluation.full_ranking import full_ranking
    from sostenuto.schema.errors import SpecError

    seed = run.config.budget.seed
    if not searches(run.ranker):
        if exclude_seen:
            raise SpecError(f"--exclude-seen is for models that search, {run.config.model} does not; leave it out")
        return full_ranking(run.ranker, run.collator, split, requests=requests or 200, seed=seed)
    exclude = run.config.training.exclude_seen if exclude_seen is None else exclude_seen
    return catalogue_ranking(run.ranker, run.collator, split, requests=requests, seed=seed, exclude_seen=exclude)


def paired(run: Run, others: list[Run], split: str) -> dict[str, Any]:
    """Test a run against others over common draws of users."""
    from sostenuto.evaluation.evaluate import compare_runs
    from sostenuto.schema.errors import SpecError
    from sostenuto.training.measuring import predictions_of

    protocol = run.data.manifest.protocol
    own = str(run.folder)
    if any(other.folder.resolve() == run.folder.resolve() for other in others):
        raise SpecError(f"--against must be another run, got {own} itself; name the run to test against")
    names = {own: run, **{str(other.folder): other for other in others}}
    return compare_runs(
        {name: [predictions_of(opened, split)] for name, opened in names.items()},
        lists=protocol.lists if protocol is not None else ("all",),
        pairs=[(own, str(other.folder)) for other in others],
    )


def interval(value: dict[str, Any] | None) -> str:
    """Return a value with its interval.

    >>> interval({"value": 0.84213, "low": 0.838, "high": 0.8461})
    '0.8421  0.8380 .. 0.8461'
    """
    if value is None or value.get("value") is None:
        return "-"
    text = f"{value['value']:.4f}"
    return text if value.get("low") is None else f"{text}  {value['low']:.4f} .. {value['high']:.4f}"


def signed(value: float | None) -> str:
    """Return a difference with its sign; a dash where there is none (no group with both classes).

    >>> signed(0.01234), signed(None)
    ('+0.0123', '-')
    """
    return "-" if value is None else f"{value:+.4f}"


def show(answer: dict[str, Any], *, with_slices: bool) -> None:
    """Print metrics, comparison and full ranking for people."""
    measured = answer["metrics"]
    lists = measured["lists"]
    print_lines(f"{answer['recipe']} on {answer['split']}: {answer['run']}")
    known = [name for name in SHOWN if any(name in block["metrics"] for block in lists.values())]
    rows = [(name, *(interval(block["metrics"].get(name)) for block in lists.values())) for name in known]
    print_table("Metrics with 95 % intervals, users resampled", ("metric", *lists), rows)
    if with_slices:
        show_slices(lists)
    if "comparison" in answer:
        show_comparison(answer["comparison"])
    if "full_ranking" in answer:
        full = answer["full_ranking"]
        print_lines("")
        seen = ", without what the user met before" if full.get("exclude_seen") else ""
        title = f"All {full['candidates']:,} items ranked for {full['requests']} requests{seen}"
        print_table(title, ("metric", "value"), [(name, interval(value)) for name, value in full["metrics"].items()])


def show_slices(lists: dict[str, Any]) -> None:
    """Print GAUC by request of every slice."""
    for name, block in lists.items():
        rows = [
            (cut["title"], part["name"], part["requests"], part["rows"], interval(part["metrics"]["gauc_request"]))
            for cut in block["slices"].values()
            for part in cut["parts"]
        ]
        print_lines("")
        columns = ("slice", "part", "requests", "candidates", "value")
        print_table(f"GAUC by request on list {name}", columns, rows, numbers=("requests", "candidates"))


def show_comparison(comparison: dict[str, Any]) -> None:
    """Print who beats whom; positive is better."""
    rows = [
        (
            list_name,
            measured["title"],
            one["a"],
            one["b"],
            signed(one["difference"]),
            f"{signed(one['low'])} .. {signed(one['high'])}",
            "-" if one["p_holm"] is None else f"{one['p_holm']:.3f}",
            "better" if one["beats"] else "worse" if one["loses"] else "no difference shown",
        )
        for list_name, by_measure in comparison["lists"].items()
        for measured in by_measure.values()
        for one in measured["comparisons"]
    ]
    print_lines("")
    columns = ("list", "measure", "run", "against", "difference", "95 % interval", "p, Holm", "so it is")
    print_table("Paired over users", columns, rows, numbers=("difference", "p, Holm"))


__all__ = ["evaluate", "interval", "paired", "ranked_catalogue", "show", "show_comparison", "show_slices"]
