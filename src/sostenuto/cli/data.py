"""`sostenuto data`: from a log to prepared data."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sostenuto.cli.clean_errors import FAILURE
from sostenuto.cli.output import JsonOption, note, print_json, print_lines, print_table
from sostenuto.cli.progress import StageProgress

if TYPE_CHECKING:
    from sostenuto.data.prepared import PreparedData
    from sostenuto.data.spec import DataSpec

SHOWN_AT_MOST = 12  # values of a setting in a table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="From a log to prepared data.")

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC-or-NAME", help="TOML spec, or the name of a built-in data set.")
]
FromOption = Annotated[
    Path | None, typer.Option("--from", help="Folder of a built-in data set's files. Default: its installed package.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to make.")]


@app.command("list")
def list_sources(as_json: JsonOption = False) -> None:
    """List built-in data sets and synthetic worlds."""
    from sostenuto.data.sources import SOURCES, locate
    from sostenuto.data.worlds import WORLDS
    from sostenuto.schema.errors import MissingSource

    def is_here(name: str) -> bool:
        try:
            locate(SOURCES[name])
        except MissingSource:
            return False
        return True

    here = {name: is_here(name) for name in SOURCES}
    if as_json:
        print_json(
            {
                "data_sets": [
                    {
                        "name": s.name,
                        "title": s.title,
                        "terms": s.terms,
                        "protocol": s.protocol,
                        "package": s.package,
                        "installed": here[s.name],
                        "how_to_get": s.how_to_get,
                        "statistics": dict(s.statistics),
                        "notes": s.notes,
                    }
                    for s in SOURCES.values()
                ],
                "worlds": [{"name": world.name, "title": world.title} for world in WORLDS.values()],
            }
        )
        return
    rows = [
        (s.name, s.title, s.statistics.get("events"), s.protocol, here[s.name], way)
        for s in SOURCES.values()
        for way in [f"sostenuto data get {s.name}" if s.package else f"--from FOLDER, {s.home}"]
    ]
    columns = ("name", "data set", "events", "protocol", "here", "how to get it")
    print_table("Built-in data sets", columns, rows, numbers=("events",))
    print_lines("")
    print_table("Synthetic worlds", ("name", "planted structure"), [(w.name, w.title) for w in WORLDS.values()])


@app.command("get")
def get_source(name: Annotated[str, typer.Argument(help="Built-in data set.")]) -> None:
    """Get a built-in data set, print its terms.

    Installs the package that ships it into this environment, without what that package depends on.
    """
    from sostenuto.data.sources import find_source, get

    source = find_source(name)
    folder = get(source)
    print_lines(f"{source.title}", f"files: {folder}", f"terms: {source.terms}")
    note(f"next: sostenuto data prepare {name} --out DIR")


@app.command()
def validate(
    spec: SpecArgument,
    folder: FromOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and rejects.parquet.")] = None,
    memory_mb: Annotated[int, typer.Option(help="Memory for reading, MB.")] = 512,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 when there is a problem.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a log before it is prepared.

    Reads everything once and reports what is in it, which rows cannot be used and why, and what may leak.
    """
    from sostenuto.data.validation import validate as validate_log

    with open_spec(spec, folder) as opened, StageProgress() as progress:
        report = validate_log(opened, out=out, memory_mb=memory_mb, progress=progress)
    if as_json:
        print_json(report.as_json())
    else:
        report.show(print_table, print_lines)
    if strict and any(finding.severity == "problem" for finding in report.findings):
        raise typer.Exit(FAILURE)


@app.command()
def prepare(
    spec: SpecArgument,
    out: OutOption,
    folder: FromOption = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Draws the order of events of one moment and what the protocol samples.")
    ] = 0,
    memory_mb: Annotated[int, typer.Option(help="Memory for reading and sorting, MB.")] = 512,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier prepared folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a log into prepared data.

    The folder is written whole or not at all; the same log, spec and seed give the same hash.
    """
    from sostenuto.data.preparation import prepare as prepare_log

    with open_spec(spec, folder) as opened, StageProgress() as progress:
        data = prepare_log(opened, out, seed=seed, memory_mb=memory_mb, overwrite=overwrite, progress=progress)
    describe(data, as_json=as_json)
    if not as_json:
        note(f"next: sostenuto compare {out} --budget demo --out DIR")


@app.command()
def collect(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Store of a service: a folder, redis://..., unix://...")
    ],
    served: Annotated[Path, typer.Option(help="Folder of the service's log of served lists.")],
    out: OutOption,
    taken: Annotated[
        list[str] | None, typer.Option(help="Action that takes an item; repeatable. Default: every action.")
    ] = None,
    within_hours: Annotated[float, typer.Option(help="From a list to what came of it, hours.")] = 24.0,
    time_zone: Annotated[str, typer.Option(help="Zone of local hours and weekdays.")] = "UTC",
    feature: Annotated[
        list[str] | None,
        typer.Option(help="position, propensity or logged_score: hand it over as a candidate field. Default: none."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn what a server showed, and what came of it, into a log with a spec.

    `sostenuto data prepare OUT/spec.toml` reads it: true exposures with true labels.
    """
    import time
    from dataclasses import asdict

    from sostenuto.serving.feedback import Collecting, collect
    from sostenuto.serving.stores.opening import open_store

    settings = Collecting(
        taken=tuple(taken or ()),
        within_s=within_hours * 3_600,
        time_zone=time_zone,
        candidate_fields=tuple(feature or ()),
    )
    with open_store(store) as opened:
        found = collect(opened, served, out, settings, now_ms=time.time_ns() // 1_000_000)
    if as_json:
        print_json(asdict(found))
        return
    rows = [(name.replace("_", " "), value) for name, value in asdict(found).items() if name != "spec"]
    print_table("Collected", ("what", "count"), rows, numbers=("count",))
    note(f"next: sostenuto data prepare {found.spec} --out DIR")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Prepared folder.")],
    as_json: JsonOption = False,
) -> None:
    """Say what a prepared folder holds."""
    from sostenuto.data.prepared import PreparedData

    describe(PreparedData(folder), as_json=as_json)


@app.command()
def synth(
    world: Annotated[str, typer.Argument(metavar="WORLD", help="Synthetic world; see `sostenuto data list`.")],
    out: OutOption,
    events: Annotated[int, typer.Option(min=1_000, max=10_000_000, help="Behaviours in the log.")] = 100_000,
    users: Annotated[int | None, typer.Option(min=1, help="Users. Default: follows the events.")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="Items. Default: follows the events.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Exposed lists. Default: follows the events.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files.")] = 0,
) -> None:
    """Write a synthetic log with a known truth.

    The folder holds events, exposures, items, spec.toml for `sostenuto data prepare`, and the truth.
    """
    from sostenuto.data.worlds import make_world

    spec = make_world(world, out, events=events, users=users, items=items, requests=requests, seed=seed)
    print_lines(str(spec))
    note(f"next: sostenuto data prepare {spec} --out DIR")


@app.command()
def export(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="Prepared folder.")],
    out: OutOption,
    content: Annotated[
        str | None, typer.Option(help="Content whose vectors are written beside; see `sostenuto content`.")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Behaviours of a sequence, the newest.")] = 1_000,
    pad: Annotated[bool, typer.Option("--pad", help="Make every sequence that long, with 0 on the left.")] = False,
) -> None:
    """Write prepared data in the format of TAOBAO-MM: joined shards of samples, int8 vectors of items."""
    from sostenuto.data.prepared import PreparedData
    from sostenuto.data.taobao_shards import write_shards

    opened, vectors, known = PreparedData(data), None, None
    if content is not None:
        from sostenuto.content.store import ContentStore

        store = ContentStore(data / "content" / content)
        vectors, known = store.rows(slice(None)), store.known
    counts = write_shards(opened, out, vectors=vectors, known=known, length=length, pad=pad)
    print_table("Written", ("what", "rows"), list(counts.items()), numbers=("rows",))


@contextmanager
def open_spec(spec: str, folder: Path | None) -> Generator[DataSpec]:
    """Yield the spec of a file or of a built-in data set; converted files live until the block ends."""
    from sostenuto.data.sources import SOURCES, open_source
    from sostenuto.data.spec import load_spec
    from sostenuto.schema.errors import SpecError

    is_file = spec.endswith(".toml") or Path(spec).is_file()
    if is_file and folder is not None:
        raise SpecError(f"--from must go with a built-in data set, {spec} is a spec; set `folder` in the spec")
    if is_file:
        yield load_spec(spec)
        return
    with tempfile.TemporaryDirectory(prefix="sostenuto-") as cache:
        opened = open_source(spec, cache, folder=folder)
        note(f"{SOURCES[spec].title}\nterms: {opened.terms}")
        yield opened


def describe(data: PreparedData, *, as_json: bool) -> None:
    """Print what a prepared folder holds."""
    manifest = data.manifest
    if as_json:
        print_json({"folder": str(data.folder), **manifest.model_dump(mode="json")})
        return
    features = manifest.features
    rows: list[tuple[str, Any]] = [("folder", str(data.folder)), ("name", manifest.name), *manifest.counts.items()]
    rows += [
        ("item vocabulary", features.num_items),
        ("items with an embedding row", features.num_item_rows),
        ("category path", [level.name for level in features.categories]),
        ("item fields", [f.name for f in features.item_fields]),
        ("event fields", [f.name for f in features.behaviour_fields]),
        ("candidate fields", [f.name for f in features.candidate_fields]),
        ("request fields", [f.name for f in features.context_fields]),
        ("time zone", manifest.time_zone),
        ("seed", manifest.seed),
        ("hash of the arrays", manifest.arrays_hash),
    ]
    print_table("Prepared data", ("what", "value"), rows)
    if manifest.protocol is None:
        return
    p = manifest.protocol
    print_lines("")
    rows = [("lists", p.lists), *((name, shortened(value)) for name, value in p.settings.items())]
    print_table(f"Protocol {p.name} v{p.version}, seed {p.seed}", ("setting", "value"), rows)
    from sostenuto.cli.rank import local_text

    splits = []
    for split, (first, last) in p.splits.items():
        requests = data.requests(split)
        zone = manifest.time_zone
        splits.append((split, len(requests), len(requests.item), local_text(first, zone), local_text(last, zone)))
    print_lines("")
    columns = ("split", "requests", "candidates", "first", "last")
    print_table("Requests", columns, splits, numbers=("requests", "candidates"))


def shortened(value: Any) -> Any:
    """Return a long list as its beginning and its length; JSON output has it whole.

    >>> shortened([1, 2]), shortened(list(range(30)))
    ([1, 2], '0, 1, 2, 3 ... (30 in all)')
    """
    if isinstance(value, list | tuple) and len(value) > SHOWN_AT_MOST:
        return f"{', '.join(map(str, value[:4]))} ... ({len(value)} in all)"
    return value


__all__ = ["app", "describe", "open_spec", "shortened"]
