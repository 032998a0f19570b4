"""`sostenuto models`: the table of models."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from sostenuto.cli.output import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from sostenuto.models.table import ModelEntry


def models(as_json: JsonOption = False) -> None:
    """List the rankers.

    Kind, objective, size and update of a user's state, and what they need: extras, content of items.
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
            needs(entry),
            entry.paper,
        )
        for entry in MODELS.values()
    ]
    columns = ("name", "model", "kind", "objective", "state", "update", "reads request", "needs", "paper")
    print_table("Models", columns, rows)


def needs(entry: ModelEntry) -> list[str]:
    """Return what must be there before a model is trained."""
    from sostenuto.models.table import missing_extras

    missing = missing_extras(entry)
    extras = [extra + (" (not installed)" if extra in missing else "") for extra in entry.needs]
    return [*extras, "content"] if entry.content else extras


__all__ = ["models", "needs"]
