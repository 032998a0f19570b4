"""Errors that we raise on purpose end a command with one line, not with a traceback."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from sostenuto.cli.output import note
from sostenuto.schema.errors import SostenutoError, SpecError

FAILURE, USAGE = 1, 2


class CleanErrors(TyperGroup):
    """A group of verbs; `--debug` lets tracebacks through.

    Exit codes: 0 fine; 1 it failed; 2 the command line, a spec or an option is refused.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except SostenutoError as error:
            if ctx.params.get("debug"):
                raise
            note(f"error: {error}")
            raise typer.Exit(USAGE if isinstance(error, SpecError) else FAILURE) from error
        except OSError as error:
            if ctx.params.get("debug") or error.filename is None:
                raise
            note(f"error: {error.filename} cannot be used: {error.strerror}; name another file or folder")
            raise typer.Exit(FAILURE) from error


__all__ = ["FAILURE", "USAGE", "CleanErrors"]
