"""The command `sostenuto`: one verb per file, each a thin function over the rooms."""

from __future__ import annotations

from typing import Annotated

import typer

import sostenuto
from sostenuto.cli import (
    analyse,
    bench,
    compare,
    content,
    data,
    doctor,
    evaluate,
    export,
    models,
    rank,
    serve,
    steer,
    store,
    train,
)
from sostenuto.cli.clean_errors import CleanErrors
from sostenuto.cli.output import print_lines

app = typer.Typer(
    name="sostenuto",
    cls=CleanErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Rank from a user's whole history: raw log, prepared data, fairly compared rankers, a served ranking.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print_lines(f"sostenuto {sostenuto.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", envvar="SOSTENUTO_DEBUG", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Say it and end.")
    ] = False,
) -> None:
    """Options of all verbs."""


app.add_typer(data.app, name="data")
app.add_typer(content.app, name="content")
app.command("models")(models.models)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("rank")(rank.rank)
app.command("export")(export.export)
app.command("steer")(steer.steer)
app.add_typer(analyse.app, name="analyse")
app.add_typer(serve.app, name="serve")
app.add_typer(store.app, name="store")
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)


def main() -> None:
    """Entry point of the console script."""
    app()


__all__ = ["app", "main"]
