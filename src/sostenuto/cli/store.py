"""`sostenuto store`: look after the store of a running service."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sostenuto.cli.output import JsonOption, note, print_json, print_table

if TYPE_CHECKING:
    from sostenuto.serving.stores.moving import Contents, Moved
    from sostenuto.serving.stores.store import Store

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Stores of a service: what users did, and states.")

StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="Folder, redis://HOST:PORT/DB, rediss://... or unix:///SOCKET.")
]
DAY_MS = 86_400_000


@app.command()
def stats(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Count what a store holds."""
    from sostenuto.serving.stores.opening import open_store

    with open_store(store) as opened:
        found = opened.stats()
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    lags = [f"{name}: {found.last_sequence - at:,} behind" for name, at in sorted(found.cursors.items())]
    print_table(
        "Store",
        ("what", "value"),
        [
            ("kind", found.kind),
            ("location", found.location),
            ("users", found.users),
            ("events", found.events),
            ("items with fields", found.items),
            ("states", found.states),
            ("changes in the stream", found.changes),
            ("deleted users", found.deleted),
            ("last sequence", found.last_sequence),
            ("consumers", lags),
            ("bytes", found.bytes),
            ("limit, bytes", found.most_bytes),
        ],
    )


@app.command()
def verify(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Read everything and say what contradicts itself; exit code 1 when something does."""
    from sostenuto.serving.stores.opening import open_store

    with open_store(store) as opened:
        problems = opened.verify()
    if as_json:
        print_json({"problems": problems})
    else:
        print_table("", ("problems",), [(each,) for each in problems or ["none"]])
    if problems:
        raise typer.Exit(1)


@app.command()
def compact(
    store: StoreArgument,
    most_events: Annotated[int | None, typer.Option(min=1, help="Newest events kept of a user.")] = None,
    most_days: Annotated[float | None, typer.Option(min=0.001, help="Age up to which events are kept, days.")] = None,
    rewrite: Annotated[
        bool,
        typer.Option("--rewrite", help="Also write the files anew: no byte of what was deleted stays on the disk."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Drop old events, and changes that every consumer has seen."""
    from sostenuto.serving.stores.opening import open_store
    from sostenuto.serving.stores.store import CompactionPolicy

    age = None if most_days is None else int(most_days * DAY_MS)
    policy = CompactionPolicy(most_events=most_events, most_age_ms=age)
    with open_store(store) as opened:
        done = opened.compact(policy, now_ms=time.time_ns() // 1_000_000)
        if rewrite:
            opened.rewrite()
    told = dataclasses.asdict(done) | {"rewritten": rewrite}
    if as_json:
        print_json(told)
    else:
        print_table("Compacted", tuple(told), [tuple(told.values())], numbers=("users", "events", "changes"))


@app.command("warm-up")
def warm(
    store: StoreArgument,
    data: Annotated[Path, typer.Option(help="Prepared folder whose log is written into the store.")],
    until: Annotated[
        str | None, typer.Option(help="Only events before this moment, e.g. 2017-11-27, in the data's zone.")
    ] = None,
    bundle: Annotated[
        list[Path] | None, typer.Option(help="Encode every user with this bundle as well; may be given several times.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a prepared log into a store, which is made where there is none. Called again, it adds what is missing."""
    from sostenuto.cli.progress import StageProgress
    from sostenuto.cli.rank import moment_ms
    from sostenuto.data.prepared import PreparedData
    from sostenuto.serving.bundle import open_bundle
    from sostenuto.serving.deployed import Deployed
    from sostenuto.serving.stores.layout import RecordLayout
    from sostenuto.serving.stores.opening import open_store
    from sostenuto.serving.warming import warm_up

    prepared = PreparedData(data)
    until_ms = None if until is None else moment_ms(until, prepared.manifest.time_zone)
    bundles = [open_bundle(path) for path in bundle or []]
    states: dict[str, int] = {}
    with open_store(store, RecordLayout.of(prepared.features.behaviour_fields)) as opened, StageProgress() as progress:
        new = warm_up(opened, prepared, until_ms=until_ms, progress=lambda done, total: progress("users", done, total))
        for one in bundles:
            encoder = Deployed.of(one, opened).encoder
            states[one.version] = encoder.warm_up(lambda done, total: progress("states", done, total))
        found = opened.stats()
    if as_json:
        print_json({"new_events": new, "events": found.events, "users": found.users, "states": states})
        return
    rows = [("new events", new), ("events", found.events), ("users", found.users)]
    print_table("Store", ("what", "value"), rows + [(f"states of {v}", n) for v, n in states.items()])


@app.command()
def encode(
    store: StoreArgument,
    bundle: Annotated[list[Path], typer.Option(help="Model whose states are kept fresh; may be given several times.")],
    every: Annotated[float, typer.Option(min=0.001, help="Seconds between two looks while nothing changes.")] = 0.1,
    once: Annotated[bool, typer.Option("--once", help="Catch up, then end.")] = False,
) -> None:
    """Keep the encoded states of users fresh, away from the server, until a signal ends it.

    The server is then told `encode = false`. It catches up with what came while it was away.
    """
    import signal
    import threading

    from sostenuto.serving.bundle import open_bundle
    from sostenuto.serving.deployed import Deployed
    from sostenuto.serving.stores.opening import open_store

    ended = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: ended.set())
    with open_store(store) as opened:
        encoders = [Deployed.of(open_bundle(path), opened).encoder for path in bundle]
        for encoder in encoders:
            note(f"{encoder.name}: {encoder.lag:,} changes behind")
        while not ended.is_set():
            done = sum(encoder.run_once() for encoder in encoders)
            if not done and once:
                break
            if not done:
                ended.wait(every)
        for encoder in encoders:
            note(f"{encoder.name}: {encoder.lag:,} changes behind at the end")


@app.command()
def backup(
    store: StoreArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder of the backup.")],
    as_json: JsonOption = False,
) -> None:
    """Write a store into a new folder, while it is in use. Encoded states are left out."""
    from sostenuto.serving.stores.moving import backup as write_backup
    from sostenuto.serving.stores.opening import open_store

    with open_store(store) as opened:
        describe("Backup", write_backup(opened, folder), as_json=as_json)


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the backup.")],
    store: StoreArgument,
    deletions: Annotated[
        list[str] | None,
        typer.Option(help="Store or later backup that knows who was deleted since; may be given several times."),
    ] = None,
    no_deletions: Annotated[
        bool, typer.Option("--no-deletions", help="Nothing is left that knows: users deleted since come back.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fill a new store from a backup, without those who were deleted since it was made."""
    from sostenuto.schema.errors import SpecError
    from sostenuto.serving.stores.moving import Backup, fill
    from sostenuto.serving.stores.opening import open_store

    if bool(deletions) == no_deletions:
        raise SpecError(
            "who was deleted since the backup must not come back, which needs --deletions STORE_OR_BACKUP; "
            "say --no-deletions, and nothing else, where none is left"
        )
    source = Backup(folder)
    opened: list[Store] = []
    known: list[Contents] = []
    try:
        for each in deletions or ():
            if (Path(each) / "backup.json").is_file():
                known.append(Backup(each))
            else:
                opened.append(open_store(each))
                known.append(opened[-1])
        with open_store(store, source.summary().layout) as target:
            moved = fill(target, source, deletions_of=known)
    finally:
        for other in opened:
            other.close()
    describe("Restored", moved, as_json=as_json)


@app.command()
def migrate(
    source: StoreArgument,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="New store: a folder or a URL, as STORE.")],
    as_json: JsonOption = False,
) -> None:
    """Copy a store into a new one, of either kind.

    Encoded states are left out. Events that come meanwhile are not copied: end the source's servers first.
    """
    from sostenuto.serving.stores.moving import fill
    from sostenuto.serving.stores.opening import open_store

    with open_store(source) as old, open_store(target, old.layout) as new:
        moved = fill(new, old)
        if old.last_sequence() != moved.last_sequence:
            note("the source took events meanwhile, which the target lacks: end its servers and migrate again")
    describe("Migrated", moved, as_json=as_json)


def describe(title: str, moved: Moved, *, as_json: bool) -> None:
    """Print what was written."""
    told: dict[str, Any] = dataclasses.asdict(moved)
    if as_json:
        print_json(told)
    else:
        print_table(title, tuple(told), [tuple(told.values())], numbers=tuple(told))


__all__ = ["app", "backup", "compact", "describe", "migrate", "restore", "stats", "verify"]
