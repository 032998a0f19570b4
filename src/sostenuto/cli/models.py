"""`sostenuto models`: the table of models."""

from __future__ import annotations

from dataclasses import asdict

from sostenuto.cli.output import JsonOption, print_json, print_table


def models(as_json: JsonOption = False) -> None:
    """List the rankers.

    Kind, objective, size and update of a user's state, and the extras they need.
    """
    from sostenuto.models.table import MODELS, missing_extras

    if as_json:
        print_json([asdict(entry) | {"installed": not missing_extras(entry)} for entry in MODELS.values()])
        return
    rows = [
        (
            entry.name,
            entry.title,
            entry.kind,
            entry.objective,
            entry.state,
            entry.update,
            entry.request_context,
            [extra + (" (not installed)" if extra in missing_extras(entry) else "") for extra in entry.needs],
            entry.paper,
        )
        for entry in MODELS.values()
    ]
    columns = ("name", "model", "kind", "objective", "state", "update", "reads request", "needs", "paper")
    print_table("Models", columns, rows)


__all__ = ["models"]
