"""bundle.json: what a bundle is and what each of its files must be, checked before any of them is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sostenuto.schema.errors import BundleError
from sostenuto.schema.features import FIRST_KNOWN

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
ITEMS = "items.parquet"
CANDIDATE_ITEMS = "candidate_items.safetensors"
CARD = "MODEL_CARD.md"
LAST_LAYER = "last_layer."  # before the names of the tensors of an encoder's last layer
VERSION_DIGITS = 12  # of the hash, hexadecimal: enough to tell all bundles of a service apart
LARGEST_MANIFEST = 64 << 20  # bytes; a larger one is no manifest
BLOCK = 1 << 20  # bytes hashed at once


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredFile(_Plain):
    """What a file must be."""

    bytes: int = Field(ge=0)
    sha256: str


class StoredVocabulary(_Plain):
    """What a vocabulary must be, whatever the file format does with it."""

    size: int = Field(ge=FIRST_KNOWN)  # padding and unknown included
    ids_hash: str  # see `ids_hash`


class StoredContent(_Plain):
    """One kind of item content that the ranker is handed."""

    arrays_hash: str  # of the build that the ranker was trained with
    heads: int = 0  # of the encoder's last layer, 0 without one


class DataFacts(_Plain):
    """Which data the ranker was trained on."""

    name: str
    arrays_hash: str
    terms: str = ""  # licence or terms of use
    protocol: str = ""  # how requests were made, with its version
    splits: dict[str, tuple[int, int]] = {}  # first and last request time, ms


class StoredReference(_Plain):
    """How scores and numbers of candidates were distributed at export; see `drift.Reference`."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    mean: dict[str, float]
    std: dict[str, float]


class BundleManifest(_Plain):
    """bundle.json."""

    format_version: int
    name: str  # of the run
    model: str  # in the table of models
    data: DataFacts
    vocabularies: dict[str, StoredVocabulary]
    content: dict[str, StoredContent]
    user_fields: tuple[str, ...]  # context fields that belong to the user, not to the request
    metrics: dict[str, Any] = {}  # by split, as training and evaluation measured them
    reference: StoredReference | None = None  # that live requests are held against
    versions: dict[str, str] = {}  # of the packages that trained it
    exported_with: str  # version of Sostenuto
    files: dict[str, StoredFile]
    hash: str  # sha-256 over all above, so over every byte of the bundle


def ids_hash(ids: Iterable[str]) -> str:
    """Return the sha-256 over ids in their order, whatever file they came from."""
    digest = hashlib.sha256()
    for raw in ids:
        text = raw.encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def manifest_hash(values: Mapping[str, Any]) -> str:
    """Return the sha-256 over what bundle.json says, `hash` left out; spelling and order of the keys do not count."""
    said = {name: value for name, value in values.items() if name != "hash"}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: str | Path) -> BundleManifest:
    """Read bundle.json; refuse what is no bundle, is damaged, or is of another format."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"a bundle must hold {MANIFEST}, {folder} does not; make one with `sostenuto export RUN --out {folder}`"
        )
    try:
        if (size := path.stat().st_size) > LARGEST_MANIFEST:
            raise ValueError(f"{size:,} bytes")
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("no JSON object")
        found = raw.get("format_version")
        if found == FORMAT_VERSION:
            is_whole = raw.get("hash") == manifest_hash(raw)
            manifest = BundleManifest.model_validate(raw) if is_whole else None
    except (ValueError, RecursionError, OSError) as error:  # ValidationError is a ValueError
        why = first_line(error)
        raise BundleError(
            f"{MANIFEST} must be as export wrote it, {path} is damaged ({why}); export it anew"
        ) from error
    if found != FORMAT_VERSION:
        raise BundleError(
            f"format_version of a bundle must be {FORMAT_VERSION}, {path} has {found!r}; "
            "export the run anew with this version, or open it with the version that wrote it"
        )
    if manifest is None:
        raise BundleError(f"{MANIFEST} must agree with its own hash, {path} was changed; export it anew")
    return manifest


def check_files(folder: Path, manifest: BundleManifest, *, contents: bool = True) -> None:
    """Refuse a bundle whose files are not those that export wrote.

    Files that `bundle.json` does not list are never read, and refused only where the ranker might look for them.

    Args:
        folder:   of the bundle.
        manifest: what it says of itself.
        contents: also read every byte and compare hashes; False compares sizes alone.
    """
    root = folder.resolve()
    for name, wanted in manifest.files.items():
        path = folder / _inside(name)
        if not path.is_file():
            raise BundleError(f"a bundle must hold {name}, {folder} does not; export it anew")
        if not path.resolve().is_relative_to(root):
            raise BundleError(f"files of a bundle must lie inside it, {path} leads out of {folder}; export it anew")
        if (size := path.stat().st_size) != wanted.bytes:
            raise BundleError(f"{name} must have {wanted.bytes:,} bytes, {path} has {size:,}; copy the bundle again")
        if contents and (found := file_hash(path)) != wanted.sha256:
            raise BundleError(
                f"{name} must have the sha-256 {wanted.sha256[:12]}..., {path} has {found[:12]}...: it was changed; "
                "copy the bundle again"
            )
    for path in sorted((folder / "model").rglob("*")):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in manifest.files:
            raise BundleError(f"model/ must hold only what {MANIFEST} lists, {path} is not listed; remove it")


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or ":" in name or not path.parts or ".." in path.parts:
        raise BundleError(f"files of a bundle must be named inside it, {MANIFEST} lists {name!r}; export it anew")
    return path


def first_line(error: BaseException) -> str:
    """Return one line that says what went wrong."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:300]


def refuse_unlisted(manifest: BundleManifest, *names: str) -> None:
    """Refuse to read a file that was not compared with bundle.json."""
    for name in names:
        if name not in manifest.files:
            raise BundleError(f"a bundle must list {name} in {MANIFEST}, it does not; export the run anew")


__all__ = [
    "CANDIDATE_ITEMS",
    "CARD",
    "FORMAT_VERSION",
    "ITEMS",
    "LAST_LAYER",
    "MANIFEST",
    "VERSION_DIGITS",
    "BundleManifest",
    "DataFacts",
    "StoredContent",
    "StoredFile",
    "StoredReference",
    "StoredVocabulary",
    "check_files",
    "file_hash",
    "first_line",
    "ids_hash",
    "manifest_hash",
    "read_manifest",
    "refuse_unlisted",
]
