"""The prepared folder: what `prepare` writes and every later room reads.

    manifest.json                 last file written; without it the folder does not count
    vocab/<name>.parquet          column `id` (text); row = index; 0 padding, 1 unknown
    items.parquet                 row = item index; `item_id`, `category.<level>`, `field.<name>`, texts as they came
    users.parquet                 row = user index; `user_id`, `field.<name>`; absent without a user table
    content/<name>/               item vectors by modality, not part of the hash; see content_folder.py
    behaviours/                   every event once, by user then time: offsets, item, time_ms, action, value, place,
                                  field.<name>
    pools/                        candidate universes, by protocol
    requests/{train,valid,test}/  user, time_ms, prefix, place, context.<name>; offsets, item, label, list_id,
                                  candidate.<name>

Arrays are `.npy`, opened memory-mapped. A history is (user, prefix length): a slice, never a copy.
Item indices are ordered by training frequency, so that `index < num_item_rows` says who owns an embedding row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict

from sostenuto.data.content_folder import FOLDER as CONTENT
from sostenuto.data.content_folder import ContentManifest, content_manifests
from sostenuto.schema.errors import DataError
from sostenuto.schema.features import FeatureSpec

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")

Array = npt.NDArray[Any]


class Protocol(BaseModel):
    """How requests were made of a log. Named, versioned, seeded; the same for everyone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: int
    seed: int
    lists: tuple[str, ...]  # names of the candidate lists; `list_id` indexes them
    settings: dict[str, Any] = {}  # every number the protocol used
    splits: dict[str, tuple[int, int]] = {}  # split -> first and last request time, ms


class Manifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    name: str
    source: dict[str, Any]  # files, sizes, hashes, spec, terms
    time_zone: str  # zone of local hours and weekdays
    seed: int
    counts: dict[str, int]
    features: FeatureSpec
    protocol: Protocol | None
    arrays_hash: str  # sha-256 over all arrays and vocabularies
    made_with: dict[str, str] = {}  # versions; not part of the hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviours:
    """Every event of U users as flat arrays; user u (index) is offsets[u] .. offsets[u + 1]."""

    offsets: Array  # (U + 1,) int64; users 0 and 1 (padding, unknown) are empty
    item: Array  # (N,) int32
    time_ms: Array  # (N,) int64
    action: Array  # (N,) int16
    value: Array  # (N,) float32, NaN missing
    place: Array  # (N,) int32
    fields: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """R requests of one split and their C candidates, jagged."""

    user: Array  # (R,) int32
    time_ms: Array  # (R,) int64
    prefix: Array  # (R,) int32 behaviours of the user strictly before time_ms
    place: Array  # (R,) int32
    context: Mapping[str, Array] = field(default_factory=dict)  # (R,) each
    offsets: Array  # (R + 1,) int64
    item: Array  # (C,) int32
    label: Array  # (C,) float32
    list_id: Array  # (C,) uint8
    candidate: Mapping[str, Array] = field(default_factory=dict)  # (C,) each

    def __len__(self) -> int:
        return len(self.user)


def write_arrays(folder: Path, arrays: Mapping[str, Array]) -> None:
    """Write each array as `<name>.npy` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array))


def _prefixed(prefix: str, columns: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{prefix}.{name}": column for name, column in columns.items()}


def write_behaviours(folder: Path, behaviours: Behaviours) -> None:
    """Write `behaviours/` of the prepared folder `folder`."""
    b = behaviours
    arrays = {name: getattr(b, name) for name in ("offsets", "item", "time_ms", "action", "value", "place")}
    write_arrays(folder / "behaviours", arrays | _prefixed("field", b.fields))


def write_requests(folder: Path, split: str, requests: Requests) -> None:
    """Write `requests/<split>/` of the prepared folder `folder`."""
    r = requests
    names = ("user", "time_ms", "prefix", "place", "offsets", "item", "label", "list_id")
    arrays = {name: getattr(r, name) for name in names}
    columns = _prefixed("context", r.context) | _prefixed("candidate", r.candidate)
    write_arrays(folder / "requests" / split, arrays | columns)


def _read(folder: Path) -> dict[str, Array]:
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def _take_prefix(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name[len(prefix) + 1 :]: a for name, a in arrays.items() if name.startswith(prefix + ".")}


def _plain(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: a for name, a in arrays.items() if "." not in name}


def hashed_files(folder: Path) -> Iterator[Path]:
    """Yield the files that `arrays_hash` covers, in a fixed order."""
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).parts[0] == CONTENT:
            continue
        if path.suffix in {".npy", ".parquet"} and path.name != "rejects.parquet":
            yield path


def arrays_hash(folder: Path) -> str:
    """Return the sha-256 over names and contents of all arrays and tables (parquet by value, not by bytes)."""
    digest = hashlib.sha256()
    for path in hashed_files(folder):
        digest.update(str(path.relative_to(folder)).encode())
        if path.suffix == ".npy":
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        else:
            digest.update(pl.read_parquet(path).write_ipc(None).getvalue())
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json; call it last."""
    text = manifest.model_dump_json(indent=2)
    partial = folder / "manifest.json.partial"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(folder / "manifest.json")


class PreparedData:
    """A prepared folder, opened for reading. Arrays are memory-mapped; nothing is loaded until asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise DataError(
                f"prepared folder must hold manifest.json, {self.folder} does not; "
                f"run `sostenuto data prepare ... --out {self.folder}`"
            )
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            found = raw.get("format_version") if isinstance(raw, dict) else None
            if found == FORMAT_VERSION:
                self.manifest = Manifest.model_validate(raw)
        except ValueError as error:  # no UTF-8, no JSON, or not what Manifest says
            why = str(error).partition("\n")[0]
            raise DataError(
                f"manifest must be as prepare wrote it, {path} is damaged ({why}); prepare again"
            ) from error
        if found != FORMAT_VERSION:
            raise DataError(
                f"manifest format_version must be {FORMAT_VERSION}, {path} has {found!r}; "
                "prepare the data again with this version"
            )

    @cached_property
    def features(self) -> FeatureSpec:
        """The feature specification as prepared (no match or popularity features: those come from a view)."""
        return replace(self.manifest.features, time_zone=self.manifest.time_zone)  # older manifests have it here only

    @cached_property
    def behaviours(self) -> Behaviours:
        """All events, memory-mapped."""
        arrays = _read(self.folder / "behaviours")
        return Behaviours(**_plain(arrays), fields=_take_prefix("field", arrays))

    @cached_property
    def items(self) -> pl.DataFrame:
        """items.parquet: row = item index."""
        return pl.read_parquet(self.folder / "items.parquet")

    @cached_property
    def users(self) -> pl.DataFrame | None:
        """users.parquet: row = user index, or None."""
        path = self.folder / "users.parquet"
        return pl.read_parquet(path) if path.is_file() else None

    @cached_property
    def item_category(self) -> Array:
        """(num_items, K) int32 category path of every item index."""
        return category_paths(self.items, self.features)

    def item_field(self, name: str) -> Array:
        """Return the column (num_items,) or (num_items, width) of an item field."""
        return column_array(self.items[f"field.{name}"])

    def user_field(self, name: str) -> Array:
        """Return the column (num_users,) or (num_users, width) of a user field."""
        if self.users is None:
            raise DataError(f"user field {name!r} was asked for, but {self.folder} has no users.parquet")
        return column_array(self.users[f"field.{name}"])

    def requests(self, split: str) -> Requests:
        """Requests of a split, memory-mapped."""
        folder = self.folder / "requests" / split
        if not folder.is_dir():
            raise DataError(f"split must be one of {', '.join(SPLITS)} and prepared, {split!r} is not in {self.folder}")
        arrays = _read(folder)
        return Requests(
            **_plain(arrays),
            context=_take_prefix("context", arrays),
            candidate=_take_prefix("candidate", arrays),
        )

    def content(self) -> dict[str, ContentManifest]:
        """What content of items was built in this folder, by name; read anew at every call."""
        return content_manifests(self.folder, self.manifest.arrays_hash)

    def has_vocabulary(self, name: str) -> bool:
        """Say whether raw ids of that name were written."""
        return (self.folder / "vocab" / f"{name}.parquet").is_file()

    def vocabulary(self, name: str) -> list[str]:
        """Raw ids by index; the first two are padding and unknown."""
        return pl.read_parquet(self.folder / "vocab" / f"{name}.parquet")["id"].to_list()


def category_paths(items: pl.DataFrame, features: FeatureSpec) -> Array:
    """Return the (num_items, K) int32 category path of every row of an item table."""
    names = [f"category.{level.name}" for level in features.categories]
    if not names:
        return np.zeros((features.num_items, 0), np.int32)
    return np.ascontiguousarray(items.select(names).to_numpy().astype(np.int32))


def column_array(column: pl.Series) -> Array:
    """Return a polars column as an array; a fixed-width array column becomes (rows, width)."""
    return np.ascontiguousarray(column.to_numpy())


__all__ = [
    "FORMAT_VERSION",
    "SPLITS",
    "Behaviours",
    "Manifest",
    "PreparedData",
    "Protocol",
    "Requests",
    "arrays_hash",
    "category_paths",
    "column_array",
    "hashed_files",
    "write_arrays",
    "write_behaviours",
    "write_manifest",
    "write_requests",
]
