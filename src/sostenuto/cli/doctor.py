"""`sostenuto doctor`: would a server come up here, and is its store sound?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sostenuto.cli.clean_errors import FAILURE
from sostenuto.cli.output import JsonOption, print_json, print_table
from sostenuto.cli.serve import resolve


def doctor(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="As for `sostenuto serve`.")],
    store: Annotated[str | None, typer.Option(envvar="SOSTENUTO_STORE", help="As for `sostenuto serve`.")] = None,
    host: Annotated[str | None, typer.Option(envvar="SOSTENUTO_HOST", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(envvar="SOSTENUTO_PORT", help="Port to listen on.")] = None,
    keys: Annotated[Path | None, typer.Option(envvar="SOSTENUTO_KEYS", help="Key file.")] = None,
    served: Annotated[Path | None, typer.Option(envvar="SOSTENUTO_SERVED", help="Folder of served lists.")] = None,
    control: Annotated[Path | None, typer.Option(envvar="SOSTENUTO_CONTROL", help="Folder of the server.")] = None,
    settings: Annotated[Path | None, typer.Option(envvar="SOSTENUTO_SETTINGS", help="TOML file of settings.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check packages, bundle, store, keys, port and disk; exit code 1 when there is a problem. Changes nothing."""
    from dataclasses import asdict

    of_server, of_service = resolve(
        settings, {"host": host, "port": port, "keys": keys, "served": served}, {"store": store, "control": control}
    )
    from sostenuto.serving.doctor import examine

    found = list(examine(bundle, of_server, of_service))
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        print_table("", ("check", "outcome", "what"), [(one.check, one.outcome, one.text) for one in found])
    if any(finding.outcome == "problem" for finding in found):
        raise typer.Exit(FAILURE)


__all__ = ["doctor"]
