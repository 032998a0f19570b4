"""`sostenuto content`: item vectors from texts, images, the log, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sostenuto.cli.output import JsonOption, note, print_json, print_lines, print_table
from sostenuto.cli.progress import StageProgress

if TYPE_CHECKING:
    from sostenuto.content.building import Seen
    from sostenuto.content.codecs import Dtype
    from sostenuto.data.content_folder import ContentManifest
    from sostenuto.data.prepared import PreparedData

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Vectors of items for rankers that read content.")

DataArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Prepared folder.")]

NOTED_ERROR = 0.01  # of a cosine; int8 rows of text encoders stay below 0.0001
LEAST_LENGTH = 0.5  # of a collaborative vector, about 1 long: a shorter one is of an item that hardly occurs, and noise
ENCODERS = ("minilm", "static", "image", "collaborative", "vectors")


@app.command()
def build(
    data: DataArgument,
    text: Annotated[
        str | None, typer.Option(help="Columns of the item table, e.g. title,description; they make one text.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="minilm, static, image, collaborative or vectors. Default: what the other options ask for."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Folder below DIR/content. Default: text, image, collaborative or vectors.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float16, or int8 with one scale a row: half the bytes.")] = "float16",
    texts: Annotated[
        Path | None, typer.Option(help="Parquet, csv or tsv with item_id and the --text columns, not the item table.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=3, help="Tokens kept of a text for training on them (minilm).")] = 24,
    states: Annotated[
        bool, typer.Option("--states", help="Also keep the states below the last layer, to train that (minilm).")
    ] = False,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images, each named by its item id: ITEM_ID.jpg.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Text column of the item table that names the image file instead.")
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="Your own: parquet, csv or tsv with item_id and numbers, or .npy with --ids.")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="One raw item id a line, for the rows of a .npy file.")] = None,
    dim: Annotated[int, typer.Option(min=1, help="Width of collaborative vectors.")] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace content of other settings.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build item vectors into DIR/content/NAME.

    Each different text or image is encoded once. A build that was killed goes on where it stopped; one that is there
    already is kept. Rows are item indices; items without content are zero and marked.
    """
    from sostenuto.content.building import build_encoded, build_vectors
    from sostenuto.data.prepared import PreparedData

    chosen = chosen_encoder(encoder, text=text, images=images, vectors=vectors)
    opened = PreparedData(data)
    default = "text" if chosen in {"minilm", "static"} else chosen
    common: dict[str, Any] = {"dtype": dtype_named(dtype), "overwrite": overwrite}
    with StageProgress() as progress:
        if chosen in {"minilm", "static", "image"}:
            unit, made, settings = encoding(opened, chosen, text, texts, tokens, states, images, image_column, progress)
            built = build_encoded(opened, name or default, unit, made, settings=settings, seen=progress, **common)
        else:
            rows, known, settings = ready_vectors(opened, chosen, vectors, ids, dim)
            built = build_vectors(opened, name or default, rows, known, encoder=chosen, settings=settings, **common)
    describe(built, as_json=as_json)
    if built.cosine_error_max > NOTED_ERROR:
        note(f"some rows lose their direction as {dtype}: cosine error {built.cosine_error_max:.3f}; try the other")
    if not as_json:
        note(f"next: sostenuto content near {data} ITEM --name {built.sizes.name}")


@app.command("list")
def list_content(data: DataArgument, as_json: JsonOption = False) -> None:
    """List the content of a prepared folder."""
    from sostenuto.data.prepared import PreparedData

    there = PreparedData(data).content()
    if as_json:
        print_json({name: manifest.model_dump() for name, manifest in there.items()})
        return
    rows = [
        (m.sizes.name, m.encoder, m.sizes.vector_dim, m.dtype, sorted(m.sizes.kinds), m.known_items, m.bytes)
        for m in there.values()
    ]
    columns = ("name", "encoder", "width", "stored as", "holds", "items", "bytes")
    print_table("Content", columns, rows, numbers=("width", "items", "bytes"))


@app.command()
def near(
    data: DataArgument,
    item: Annotated[str, typer.Argument(metavar="ITEM", help="Item, as in the log.")],
    name: Annotated[str, typer.Option(help="Content to compare by.")] = "text",
    k: Annotated[int, typer.Option(min=1, help="Items to show.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Show the items of most similar content; items of the same text count once."""
    from sostenuto.content.neighbours import nearest
    from sostenuto.content.store import ContentStore
    from sostenuto.data.content_folder import FOLDER
    from sostenuto.data.prepared import PreparedData
    from sostenuto.schema.errors import DataError, did_you_mean
    from sostenuto.schema.features import FIRST_KNOWN
    from sostenuto.serving.labels import ItemLabels

    opened = PreparedData(data)
    raw = opened.vocabulary("item")
    index = {text: row for row, text in enumerate(raw) if row >= FIRST_KNOWN}
    if item not in index:
        raise DataError(f"ITEM must be an item of the log, got {item!r}.{did_you_mean(item, index)}")
    label = ItemLabels(opened)
    found = nearest(ContentStore(opened.folder / FOLDER / name), index[item], k)
    if as_json:
        print_json([{"item": raw[row], "label": label(row), "cosine": cosine} for row, cosine in found])
        return
    print_lines(f"Nearest by {name} to {item}, {label(index[item])}")
    rows = [(raw[row], label(row), f"{cosine:.3f}") for row, cosine in found]
    print_table("", ("item", "name", "cosine"), rows, numbers=("cosine",))


def chosen_encoder(encoder: str | None, *, text: str | None, images: Path | None, vectors: Path | None) -> str:
    """Return the encoder that is asked for, by name or by what is to be encoded."""
    from sostenuto.schema.errors import SpecError, did_you_mean

    given = {"minilm": text, "image": images, "vectors": vectors}
    asked = [name for name, value in given.items() if value is not None]
    if encoder is None:
        if len(asked) != 1:
            raise SpecError(
                f"one of --text, --images, --vectors or --encoder must be given, got {len(asked)}; build one at a time"
            )
        return asked[0]
    if encoder not in ENCODERS:
        raise SpecError(
            f"--encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}.{did_you_mean(encoder, ENCODERS)}"
        )
    fits = {"static": "minilm"}.get(encoder, encoder)
    wrong = [name for name in asked if name != fits]
    if wrong or (fits in given and not asked):
        raise SpecError(
            f"--encoder {encoder} must come with its own input alone, "
            f"got {', '.join(asked) or 'none'}; see `sostenuto content build --help`"
        )
    return encoder


def dtype_named(name: str) -> Dtype:
    """Return the name of a codec, or say which there are."""
    from sostenuto.content.codecs import DTYPES
    from sostenuto.schema.errors import SpecError

    for known in DTYPES:
        if name == known:
            return known
    raise SpecError(f"--dtype must be one of {', '.join(DTYPES)}, got {name!r}; take one of them")


def encoding(
    data: PreparedData,
    encoder: str,
    text: str | None,
    texts: Path | None,
    tokens: int,
    states: bool,
    images: Path | None,
    image_column: str | None,
    seen: Seen,
) -> tuple[list[str | None], Any, dict[str, Any]]:
    """Return what is to be encoded per item, the loaded encoder, and what says so in the manifest."""
    if encoder == "image":
        from sostenuto.content.images import EfficientNetLite, image_files

        assert images is not None
        made = EfficientNetLite()
        return image_files(data, images, image_column), made, {"images": str(images), "column": image_column}
    from sostenuto.content.texts import item_texts

    seen("loading the encoder", 0, 1)
    columns = [part.strip() for part in (text or "").split(",") if part.strip()]
    units = item_texts(data, columns, texts)
    settings = {"columns": columns, "file": None if texts is None else texts.name}
    if encoder == "static":
        from sostenuto.content.static import StaticVectors

        return units, StaticVectors(), settings
    from sostenuto.content.encoders import state_bytes
    from sostenuto.content.minilm import DIM, MiniLM

    if states:
        distinct = len({unit for unit in units if unit is not None})
        size = state_bytes(distinct, tokens, DIM)
        note(f"hidden states of {distinct:,} different texts will take {size / 2**20:,.0f} MiB on disk")
    return units, MiniLM(num_tokens=tokens, states=states), settings


def ready_vectors(
    data: PreparedData, encoder: str, vectors: Path | None, ids: Path | None, dim: int
) -> tuple[Any, Any, dict[str, Any]]:
    """Return vectors by item index that need no encoder, which are known, and what says so in the manifest."""
    import numpy as np

    if encoder == "collaborative":
        from sostenuto.features.cooccurrence import VECTORS_VERSION, item_vectors

        found = item_vectors(data, dim).last[:, :dim]
        rows = np.zeros((data.features.num_items, dim), np.float32)
        rows[: len(found)] = found
        settings = {"dim": dim, "version": VECTORS_VERSION, "least_length": LEAST_LENGTH}
        return rows, np.linalg.norm(rows, axis=1) >= LEAST_LENGTH, settings
    from sostenuto.content.given import file_hash, given_vectors

    assert vectors is not None
    rows, known, strange = given_vectors(data, vectors, ids)
    if strange:
        note(f"{strange:,} ids of {vectors.name} are not in the data and are left out")
    return rows, known, {"file": vectors.name, "inputs": file_hash(vectors, ids)}


def describe(manifest: ContentManifest, *, as_json: bool) -> None:
    """Print what was built."""
    if as_json:
        print_json(manifest.model_dump() | {"kinds": sorted(manifest.sizes.kinds)})
        return
    from sostenuto.schema.features import FIRST_KNOWN

    m = manifest
    speed = f"{m.distinct / m.seconds:,.0f}" if m.seconds else None
    rows = [
        ("name", m.sizes.name),
        ("encoder", m.encoder),
        ("width", m.sizes.vector_dim),
        ("holds", sorted(m.sizes.kinds)),
        ("items with content", f"{m.known_items:,} of {m.num_items - FIRST_KNOWN:,}"),
        ("different texts, images or vectors", m.distinct),
        ("unreadable", m.unreadable),
        ("stored as", m.dtype),
        ("cosine error, mean", f"{m.cosine_error_mean:.2e}"),
        ("cosine error, largest", f"{m.cosine_error_max:.2e}"),
        ("bytes", m.bytes),
        ("seconds", m.seconds),
        ("encoded a second", speed),
    ]
    print_table("Content", ("what", "value"), rows)


__all__ = ["app", "build", "chosen_encoder", "describe", "dtype_named", "encoding", "ready_vectors"]
