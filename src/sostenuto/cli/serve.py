"""`sostenuto serve`: a ranking server, and the keys of those who may ask it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sostenuto.cli.output import JsonOption, note, print_json, print_lines, print_table

if TYPE_CHECKING:
    from sostenuto.serving.http.settings import ServerSettings
    from sostenuto.serving.starting import ServiceTable


class ServeGroup(TyperGroup):
    """`serve BUNDLE` stands for `serve run BUNDLE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb in where it was left out."""
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ServeGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A ranking server: `sostenuto serve BUNDLE`. And the keys of those who may ask it.",
)
keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Who may ask what: API keys, kept as hashes.")
app.add_typer(keys, name="keys")

KeysOption = Annotated[Path, typer.Option("--keys", envvar="SOSTENUTO_KEYS", help="Key file.")]


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `sostenuto export` made.")],
    store: Annotated[
        str | None,
        typer.Option(
            envvar="SOSTENUTO_STORE",
            help="Folder, redis://HOST:PORT/DB, rediss://... or unix:///SOCKET. Default: BUNDLE.store",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(envvar="SOSTENUTO_HOST", help="Address; other than loopback needs keys. [127.0.0.1]")
    ] = None,
    port: Annotated[int | None, typer.Option(envvar="SOSTENUTO_PORT", help="Port; 0 takes a free one. [8000]")] = None,
    workers: Annotated[int | None, typer.Option(envvar="SOSTENUTO_WORKERS", help="Processes. [1]")] = None,
    keys: Annotated[
        Path | None, typer.Option(envvar="SOSTENUTO_KEYS", help="Key file; without one, loopback only.")
    ] = None,
    served: Annotated[
        Path | None, typer.Option(envvar="SOSTENUTO_SERVED", help="Folder for the log of served lists.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(envvar="SOSTENUTO_LOG", help="File for requests and audit, JSON lines. [stderr]")
    ] = None,
    control: Annotated[
        Path | None, typer.Option(envvar="SOSTENUTO_CONTROL", help="Folder of this server. [STORE.server]")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(envvar="SOSTENUTO_SETTINGS", help="TOML file with these and all other settings.")
    ] = None,
    show_settings: Annotated[bool, typer.Option("--show-settings", help="Print all settings, start nothing.")] = False,
) -> None:
    """Answer rankings over HTTP from a bundle and a store, until a signal ends it.

    Options win over the environment, that over the settings file.
    """
    from dataclasses import asdict

    given = {"host": host, "port": port, "workers": workers, "keys": keys, "log": log, "served": served}
    of_server, of_service = resolve(settings, given, {"store": store, "control": control})
    if show_settings:
        print_json({**asdict(of_server), "service": asdict(of_service)})
        return
    with extra():
        import prometheus_client  # noqa: F401  what is imported in workers only is missed here, before they start

        from sostenuto.serving.http.server import serve as listen
    from sostenuto.serving.bundle import open_bundle
    from sostenuto.serving.starting import start_service

    opened = open_bundle(bundle)  # what is wrong with it is said here, before any worker starts
    location, folder = of_service.places(bundle.resolve())
    note(f"model: {opened.name} {opened.version}")
    note(f"store: {without_password(location)}")
    note(f"server folder: {folder}")
    if of_server.is_open:
        note("no keys: only this machine may ask, and it may ask anything")
    listen(partial(start_service, bundle.resolve(), of_service), of_server)


def resolve(file: Path | None, server: dict[str, Any], service: dict[str, Any]) -> tuple[ServerSettings, ServiceTable]:
    """Put options over a settings file.

    Raises:
        MissingExtra: what a server is made of is not installed. SpecError: a setting that cannot be.
    """
    with extra():
        from sostenuto.serving.http.settings import ServerSettings, make, read_tables
        from sostenuto.serving.starting import ServiceTable
    origin = "options" if file is None else str(file)
    tables = {} if file is None else read_tables(file)
    table = {**tables.pop("service", {}), **{name: one for name, one in service.items() if one is not None}}
    folder = server.pop("served")
    tables |= {name: one for name, one in server.items() if one is not None}
    if folder is not None:
        tables["served"] = {**tables.get("served", {}), "folder": folder}
    return make(ServerSettings, tables, origin), make(ServiceTable, table, f"{origin}: service")


@contextlib.contextmanager
def extra() -> Iterator[None]:
    """Name the extra where a package that a server is made of cannot be imported.

    Raises:
        MissingExtra: it is not installed.
    """
    from sostenuto.schema.errors import MissingExtra

    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(f"a server needs {error.name}; pip install 'sostenuto[serve]'") from error


def without_password(location: str) -> str:
    """Return a store's location as it may be shown.

    >>> without_password("redis://user:secret@host:6379/0")
    'redis://host:6379/0'
    """
    scheme, mark, rest = location.partition("://")
    return scheme + mark + rest.rsplit("@", 1)[-1] if mark else location


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Option(help="Who gets it, for people.")],
    scope: Annotated[list[str], typer.Option(help="rank, events, users, items, models, metrics or admin; repeatable.")],
    file: KeysOption,
    requests_per_s: Annotated[
        float | None, typer.Option(help="Requests a second, in place of the server's limit.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    from sostenuto.serving.http.keys import KeyFile

    key, token = KeyFile(file).add(name, scope, requests_per_s=requests_per_s)
    if as_json:
        print_json({"id": key.key_id, "key": token, "scopes": sorted(key.scopes)})
        return
    print_lines(token)
    note(f"key {key.key_id} for {name}: {', '.join(sorted(key.scopes))}. It is shown only now.")


@keys.command("list")
def list_keys(file: KeysOption, as_json: JsonOption = False) -> None:
    """List keys: ids, names, scopes; never the keys."""
    from sostenuto.serving.http.keys import KeyFile

    found = KeyFile(file).read()
    if as_json:
        print_json(
            [
                {
                    "id": key.key_id,
                    "name": key.name,
                    "scopes": sorted(key.scopes),
                    "created": key.created,
                    "requests_per_s": key.requests_per_s,
                }
                for key in found
            ]
        )
        return
    columns = ("id", "name", "scopes", "requests/s", "created")
    rows = [(key.key_id, key.name, sorted(key.scopes), key.requests_per_s, key.created) for key in found]
    print_table("", columns, rows, numbers=("requests/s",))


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `serve keys list` shows it.")],
    file: KeysOption,
) -> None:
    """Take a key back; running servers refuse it within a second."""
    from sostenuto.serving.http.keys import KeyFile

    key = KeyFile(file).revoke(key_id)
    note(f"key {key.key_id} for {key.name} is revoked")


__all__ = ["app", "resolve", "without_password"]
