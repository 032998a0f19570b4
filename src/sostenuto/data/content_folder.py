"""`content/<name>/` of a prepared folder: vectors of items by modality, beside the data and not part of their hash.

manifest.json          last file written; without it the content does not count
vectors.npy            (num_items, W) float16, or int8 codes; row = item index, rows 0 and 1 zero
scale.npy              (num_items,) float32, only beside codes: a vector is its codes times this
known.npy              (num_items,) bool, the item has content
text_row.npy           (num_items,) int32, equal for items of equal text, 0 without one
tokens.npy             (num_items, T) int32, 0 behind the last token
token_vectors.npy      (number of token ids, token width) float16
states.npy             (texts + 1, T, token width) float16, by text row
last_layer.safetensors the encoder's layer above the states
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from sostenuto.schema.errors import DataError, SpecError
from sostenuto.schema.features import FIRST_KNOWN, ContentField

FORMAT_VERSION = 1
ARRAY_SUFFIXES = frozenset({".npy", ".safetensors"})
LAST_LAYER_FILE = "last_layer.safetensors"
FOLDER = "content"  # inside the prepared folder; left out of the hash of its arrays
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

Array = npt.NDArray[Any]


class ContentManifest(BaseModel):
    """content/<name>/manifest.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    sizes: ContentField
    num_items: int
    dtype: Literal["float16", "int8"]
    encoder: str
    versions: dict[str, str] = {}  # of the packages that hold the encoder
    settings: dict[str, Any] = {}  # columns, lengths: what the vectors depend on beside the data
    heads: int = 0  # attention heads of the last layer
    known_items: int
    distinct: int  # different texts, images or vectors that were encoded
    unreadable: int = 0  # of them, what the encoder could make nothing of: its items are not known
    cosine_error_mean: float  # 1 - cosine of a stored row and its float32 vector, over known items
    cosine_error_max: float
    seconds: float  # spent encoding, all attempts together
    bytes: int
    data_hash: str  # `arrays_hash` of the prepared folder
    arrays_hash: str  # sha-256 over the files


def check_name(name: str) -> None:
    """Refuse a name that cannot be a folder on every system."""
    if not NAME.fullmatch(name):
        raise SpecError(
            f"a content name must be lower-case letters, digits and _, at most 40 and a letter first, got {name!r}; "
            "take a name such as text"
        )


def content_hash(folder: Path) -> str:
    """Return the sha-256 over names and contents of all files but the manifest."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in ARRAY_SUFFIXES:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


def write_content_manifest(folder: Path, manifest: ContentManifest) -> None:
    """Write manifest.json; call it last."""
    partial = folder / "manifest.json.partial"
    partial.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / "manifest.json")


def read_content_manifest(folder: Path) -> ContentManifest:
    """Read manifest.json of one content; refuse a damaged one or one of another format."""
    path = folder / "manifest.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = raw.get("format_version") if isinstance(raw, dict) else None
        if found == FORMAT_VERSION:
            return ContentManifest.model_validate(raw)
    except ValueError as error:
        why = str(error).partition("\n")[0]
        raise DataError(f"a content manifest must be whole, {path} is damaged ({why}); build the content again") from (
            error
        )
    raise DataError(
        f"format_version of content must be {FORMAT_VERSION}, {path} has {found!r}; build the content again"
    )


def content_manifests(prepared: Path, data_hash: str) -> dict[str, ContentManifest]:
    """Return the content of a prepared folder by name, in order of the names.

    Raises:
        DataError: a manifest is damaged, or was made of other data.
    """
    found = {}
    for path in sorted((prepared / FOLDER).glob("*/manifest.json")):
        if path.parent.suffix:  # being built
            continue
        manifest = read_content_manifest(path.parent)
        if manifest.data_hash != data_hash:
            raise DataError(
                f"content must be made of the data it lies with, {path.parent} was made of data "
                f"{manifest.data_hash[:12]}... and the folder holds {data_hash[:12]}...; remove it or build it again"
            )
        found[manifest.sizes.name] = manifest
    return found


def write_content(
    prepared: Path,
    name: str,
    *,
    vectors: Array,
    known: Array,
    encoder: str,
    tokens: Array | None = None,
    token_vectors: Array | None = None,
    text_row: Array | None = None,
    states: Array | None = None,
    last_layer: Mapping[str, Array] | None = None,
    heads: int = 0,
) -> None:
    """Write content that needs no encoder, a synthetic world's for one, into a finished prepared folder, as float16.

    Args:
        prepared: the prepared folder.
        name:     of the content; it must not be there yet.
        vectors:  (num_items, W); rows of items that are not known are written as zero.
        known:    (num_items,) bool.
        encoder:  who made them.
        tokens, token_vectors, text_row, states, last_layer, heads: as in `schema.content.ItemContent`.
    """
    check_name(name)
    folder = prepared / FOLDER / name
    folder.mkdir(parents=True)
    has = np.asarray(known, bool) & (np.arange(len(known)) >= FIRST_KNOWN)
    exact = np.where(has[:, None], vectors, 0.0).astype(np.float32)
    stored = exact.astype(np.float16)
    given: dict[str, tuple[Array | None, Any]] = {
        "tokens": (tokens, np.int32),
        "text_row": (text_row, np.int32),
        "token_vectors": (token_vectors, np.float16),
        "states": (states, np.float16),
    }
    arrays = {key: np.asarray(array, dtype) for key, (array, dtype) in given.items() if array is not None}
    for key, array in {"vectors": stored, "known": has, **arrays}.items():
        np.save(folder / f"{key}.npy", array)
    if last_layer is not None:
        from safetensors.numpy import save_file

        save_file({key: np.asarray(array, np.float32) for key, array in last_layer.items()}, folder / LAST_LAYER_FILE)
    ids, width = arrays["token_vectors"].shape if "token_vectors" in arrays else (0, 0)
    error = cosine_errors(exact[has], stored[has])
    write_content_manifest(
        folder,
        ContentManifest(
            format_version=FORMAT_VERSION,
            sizes=ContentField(
                name=name,
                vector_dim=exact.shape[1],
                num_tokens=arrays["tokens"].shape[1] if "tokens" in arrays else 0,
                num_token_ids=ids,
                token_dim=width,
                has_states="states" in arrays,
            ),
            num_items=len(exact),
            dtype="float16",
            encoder=encoder,
            heads=heads,
            known_items=int(has.sum()),
            distinct=int(has.sum()),
            cosine_error_mean=float(error.mean()) if len(error) else 0.0,
            cosine_error_max=float(error.max(initial=0.0)),
            seconds=0.0,
            bytes=content_bytes(folder),
            data_hash=json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))["arrays_hash"],
            arrays_hash=content_hash(folder),
        ),
    )


def cosine_errors(exact: Array, stored: Array) -> Array:
    """Return (N,) 1 - cosine of rows and what is stored of them; a zero row stored as zero has none."""
    first, second = exact.astype(np.float64), stored.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    both_zero = ~first.any(1) & ~second.any(1)
    cosine = (first * second).sum(1) / np.where(norms > 0, norms, 1.0)
    return np.where(both_zero, 0.0, np.maximum(1.0 - cosine, 0.0))


def content_bytes(folder: Path) -> int:
    """Return the bytes of all arrays of one content."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in ARRAY_SUFFIXES)


def identities(manifests: Mapping[str, ContentManifest]) -> dict[str, str]:
    """Return what tells one build of some content from another, by name."""
    return {name: manifest.arrays_hash for name, manifest in manifests.items()}


__all__ = [
    "ARRAY_SUFFIXES",
    "FOLDER",
    "FORMAT_VERSION",
    "LAST_LAYER_FILE",
    "ContentManifest",
    "check_name",
    "content_bytes",
    "content_hash",
    "content_manifests",
    "cosine_errors",
    "identities",
    "read_content_manifest",
    "write_content",
    "write_content_manifest",
]
