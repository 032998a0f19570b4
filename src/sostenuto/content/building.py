"""From texts, images or vectors to `content/<name>/`: encoded once each, in shards that outlive a kill.

    content/<name>.building/     until it is whole
        plan.json                what is being built; a build of something else is refused
        shard-<n>.npz            vectors of up to SHARD units, float32, and the seconds they took

Units are different texts (or image files): items that share one are encoded once. At the end the shards are put
together, the manifest is written last, and the folder takes its place in one move.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.content.codecs import DTYPES, Dtype, decoded, encoded
from sostenuto.content.encoders import Encoder, TokenParts, state_bytes, versions_of
from sostenuto.content.texts import distinct_units
from sostenuto.data.content_folder import (
    FOLDER,
    FORMAT_VERSION,
    LAST_LAYER_FILE,
    ContentManifest,
    check_name,
    content_bytes,
    content_hash,
    cosine_errors,
    read_content_manifest,
    write_content_manifest,
)
from sostenuto.data.prepared import PreparedData
from sostenuto.data.spilling import sync_tree
from sostenuto.schema.errors import DataError, SpecError
from sostenuto.schema.features import FIRST_KNOWN, ContentField

Array = npt.NDArray[Any]

SHARD = 512  # units encoded between two writes: some ten seconds of MiniLM on one core
ROWS = 16_384  # items written at a time
MOST_STATE_BYTES = 4 << 30  # hidden states of all distinct texts

Seen = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is being built; equal plans give equal arrays."""

    name: str
    encoder: str
    versions: dict[str, str]
    settings: dict[str, Any]
    dtype: Dtype
    data_hash: str

    def as_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps({name: getattr(self, name) for name in self.__slots__}))
        return plain

    @classmethod
    def of(cls, manifest: ContentManifest) -> dict[str, Any]:
        """Return the plan of what is there, to be compared with another as JSON."""
        kept = ("encoder", "versions", "settings", "dtype", "data_hash")
        return {"name": manifest.sizes.name} | {name: getattr(manifest, name) for name in kept}


def build_encoded(
    data: PreparedData,
    name: str,
    units: Sequence[str | None],
    encoder: Encoder,
    *,
    settings: dict[str, Any],
    dtype: Dtype = "float16",
    overwrite: bool = False,
    seen: Seen | None = None,
) -> ContentManifest:
    """Encode one unit per item and write the content; what is there already and equal is returned as it is.

    Args:
        data:      prepared folder; `content/<name>` is made inside.
        name:      of the content.
        units:     per item index a text or an image file, None without one.
        encoder:   what makes vectors of them.
        settings:  what else says how the units came about (columns); kept in the manifest.
        dtype:     of the stored vectors.
        overwrite: replace content of other settings, finished or not.
        seen:      told (stage, done, total) units.

    Raises:
        SpecError: content of other settings is there, or states would take more than MOST_STATE_BYTES.
        DataError: no item has any content, or another process is building it.
    """
    distinct, place = distinct_units(units)
    if not distinct:
        raise DataError(
            f"content must be of some items, none of {len(units) - FIRST_KNOWN:,} has any; check the columns"
        )
    if encoder.settings.get("states"):
        need = state_bytes(len(distinct), int(encoder.settings["num_tokens"]), encoder.dim)
        if need > MOST_STATE_BYTES:
            raise SpecError(
                f"hidden states must stay within {MOST_STATE_BYTES / 2**30:.1f} GiB, {len(distinct):,} different texts "
                f"take {need / 2**30:.1f} GiB; lower --tokens, name fewer columns, or leave --states out"
            )
    digest = hashlib.sha256()
    for unit in distinct:
        digest.update(unit.encode() + b"\0")
    digest.update(place.tobytes())
    plan = _Plan(
        name=name,
        encoder=encoder.name,
        versions=versions_of(encoder.packages),
        settings={**settings, **encoder.settings, "inputs": digest.hexdigest()},
        dtype=dtype,
        data_hash=data.manifest.arrays_hash,
    )
    with _building(data.folder, plan, overwrite=overwrite) as found:
        if isinstance(found, ContentManifest):
            return found
        seconds = _encode_all(found, distinct, encoder, seen or _silent)
        return _put_together(found, plan, distinct, place, encoder, seconds)


def build_vectors(
    data: PreparedData,
    name: str,
    vectors: Array,
    known: Array,
    *,
    encoder: str,
    settings: dict[str, Any],
    dtype: Dtype = "float16",
    overwrite: bool = False,
) -> ContentManifest:
    """Write vectors that are there already: the user's, or made of the log.

    Args:
        data:     prepared folder.
        name:     of the content.
        vectors:  (num_items, W) float32, finite.
        known:    (num_items,) bool.
        encoder:  who made them.
        settings: what they depend on; equal settings mean equal vectors.
        dtype, overwrite: as in `build_encoded`.
    """
    start = time.monotonic()
    plan = _Plan(
        name=name,
        encoder=encoder,
        versions={},
        settings=settings,
        dtype=dtype,
        data_hash=data.manifest.arrays_hash,
    )
    has = np.asarray(known, bool) & (np.arange(len(known)) >= FIRST_KNOWN)
    if not has.any():
        raise DataError(f"content must be of some items, none of {len(has) - FIRST_KNOWN:,} has any; check the ids")
    with _building(data.folder, plan, overwrite=overwrite) as found:
        if isinstance(found, ContentManifest):
            return found
        sizes = ContentField(name=name, vector_dim=vectors.shape[1])
        error = _write_vectors(found, has, lambda rows: vectors[rows], sizes, dtype)
        return _manifest(found, plan, sizes, has, int(has.sum()), error, time.monotonic() - start)


def _silent(stage: str, done: int, total: int) -> None:
    pass


@contextlib.contextmanager
def _building(prepared: Path, plan: _Plan, *, overwrite: bool) -> Iterator[Path | ContentManifest]:
    """Give the folder to build in, with the shards of a killed build; or the manifest of an equal one.

    What is built takes its place when the block ends well; a failure leaves the shards for the next attempt.
    """
    import fcntl

    check_name(plan.name)
    if plan.dtype not in DTYPES:
        raise SpecError(f"--dtype must be one of {', '.join(DTYPES)}, got {plan.dtype!r}; take one of them")
    wanted = plan.as_json()
    final = prepared / FOLDER / plan.name
    replaced = final.with_name(f"{plan.name}.replaced")
    if replaced.exists() and not final.exists():  # killed between the two moves of an overwrite: the old one is whole
        replaced.rename(final)
    if (final / "manifest.json").is_file() and not overwrite:
        there = read_content_manifest(final)
        _refuse_other(final, _Plan.of(there), wanted)
        yield there
        return
    folder = final.with_name(f"{plan.name}.building")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"content must be built by one process at a time, {folder} is being written; wait") from (
                error
            )
        path = folder / "plan.json"
        begun = _read_plan(path) if path.is_file() else None
        if begun != wanted:
            if begun is not None and not overwrite:
                _refuse_other(folder, begun, wanted)
            for old in folder.iterdir():  # arrays of another plan must not stay beside those of this one
                if old.name != ".lock":
                    old.unlink()
        if not path.is_file():
            partial = folder / "plan.json.partial"
            partial.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
            partial.replace(path)
        yield folder
        for leftover in [*folder.glob("shard-*"), *folder.glob("*.partial"), folder / "distinct.npy", path]:
            leftover.unlink(missing_ok=True)
        (folder / ".lock").unlink()
        sync_tree(folder)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
            folder.rename(final)
            shutil.rmtree(replaced)
        else:
            folder.rename(final)


def _read_plan(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _refuse_other(folder: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Name the first thing that differs."""
    flat_there = {**there, **there.get("settings", {})}
    flat_wanted = {**wanted, **wanted["settings"]}
    for name in sorted({*flat_there, *flat_wanted} - {"settings"}):
        old, new = flat_there.get(name), flat_wanted.get(name)
        if old != new:
            raise SpecError(
                f"{name} must be {_short(old)} as in the content that is in {folder}, got {_short(new)}; take another "
                "--name, or pass --overwrite to build it anew"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _shard(folder: Path, start: int) -> Path:
    return folder / f"shard-{start // SHARD:06d}.npz"


def _read_shard(path: Path, count: int) -> dict[str, Array] | None:
    """Return a shard, None when it is not there or was cut short."""
    try:
        with path.open("rb") as file, np.load(file) as kept:
            shard = {name: kept[name] for name in kept.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return None
    return shard if len(shard.get("vectors", ())) == count else None


def _encode_all(folder: Path, distinct: Sequence[str], encoder: Encoder, seen: Seen) -> float:
    """Encode what no shard holds yet; return the seconds of all shards."""
    seconds = 0.0
    total = len(distinct)
    for start in range(0, total, SHARD):
        units = distinct[start : start + SHARD]
        path = _shard(folder, start)
        kept = _read_shard(path, len(units))
        if kept is None:
            began = time.monotonic()
            found = encoder.encode(units)
            arrays: dict[str, Any] = {"vectors": found.vectors, "good": found.good}
            if found.states is not None:
                arrays["states"] = found.states
            arrays["seconds"] = np.array(time.monotonic() - began)
            kept = arrays
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez(file, **arrays)
            partial.replace(path)
        seconds += float(kept["seconds"])
        seen(f"encoding {total:,} different texts or images", min(start + SHARD, total), total)
    return seconds


def _put_together(
    folder: Path, plan: _Plan, distinct: Sequence[str], place: Array, encoder: Encoder, seconds: float
) -> ContentManifest:
    """Write the arrays by item from the shards by unit."""
    start = time.monotonic()
    parts = encoder.token_parts(distinct)
    matrix = np.lib.format.open_memmap(folder / "distinct.npy", "w+", np.float32, (len(distinct), encoder.dim))
    good = np.zeros(len(distinct), bool)
    states = None
    if parts is not None and parts.last_layer:
        shape = (len(distinct) + 1, *parts.tokens.shape[1:], parts.token_vectors.shape[1])
        states = np.lib.format.open_memmap(folder / "states.npy", "w+", np.float16, shape)
    for first in range(0, len(distinct), SHARD):
        rows = slice(first, min(first + SHARD, len(distinct)))
        shard = _read_shard(_shard(folder, first), rows.stop - rows.start)
        if shard is None:
            raise DataError(f"a shard must be whole, {_shard(folder, first)} is damaged; remove it and build again")
        matrix[rows] = shard["vectors"]
        good[rows] = shard["good"]
        if states is not None:
            states[rows.start + 1 : rows.stop + 1] = shard["states"]
    known = (place >= 0) & good[np.maximum(place, 0)]
    sizes = _sizes(plan.name, encoder.dim, parts)
    if parts is not None:
        _write_tokens(folder, parts, place, known)
    error = _write_vectors(folder, known, lambda rows: matrix[place[rows]], sizes, plan.dtype)
    if states is not None:
        states.flush()
    heads = 0 if parts is None else parts.heads
    unread = int((~good).sum())
    seconds += time.monotonic() - start
    return _manifest(folder, plan, sizes, known, len(distinct) - unread, error, seconds, heads=heads, unreadable=unread)


def _sizes(name: str, dim: int, parts: TokenParts | None) -> ContentField:
    if parts is None:
        return ContentField(name=name, vector_dim=dim)
    ids, width = parts.token_vectors.shape
    return ContentField(
        name=name,
        vector_dim=dim,
        num_tokens=parts.tokens.shape[1],
        num_token_ids=ids,
        token_dim=width,
        has_states=bool(parts.last_layer),
    )


def _write_tokens(folder: Path, parts: TokenParts, place: Array, known: Array) -> None:
    of_item = np.where(known[:, None], parts.tokens[np.maximum(place, 0)], 0)
    np.save(folder / "tokens.npy", of_item.astype(np.int32))
    np.save(folder / "text_row.npy", np.where(known, place + 1, 0).astype(np.int32))
    np.save(folder / "token_vectors.npy", parts.token_vectors)
    if parts.last_layer:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(w) for name, w in parts.last_layer.items()}, folder / LAST_LAYER_FILE)


def _write_vectors(
    folder: Path, known: Array, vectors_of: Callable[[Array], Array], sizes: ContentField, dtype: Dtype
) -> tuple[float, float]:
    """Write vectors, scale and known; return the mean and the largest cosine error of what is stored."""
    shape = (len(known), sizes.vector_dim)
    stored = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.dtype(dtype), shape)
    scale = np.zeros(len(known), np.float32) if dtype == "int8" else None
    total, largest = 0.0, 0.0
    rows_known = np.flatnonzero(known)
    for start in range(0, len(rows_known), ROWS):
        rows = rows_known[start : start + ROWS]
        exact = np.asarray(vectors_of(rows), np.float32)
        codes, scales = encoded(exact, dtype)
        stored[rows] = codes
        if scale is not None and scales is not None:
            scale[rows] = scales
        error = cosine_errors(exact, decoded(codes, scales))
        total += float(error.sum())
        largest = max(largest, float(error.max(initial=0.0)))
    stored.flush()
    if scale is not None:
        np.save(folder / "scale.npy", scale)
    np.save(folder / "known.npy", known)
    return total / max(len(rows_known), 1), largest


def _manifest(
    folder: Path,
    plan: _Plan,
    sizes: ContentField,
    known: Array,
    distinct: int,
    error: tuple[float, float],
    seconds: float,
    heads: int = 0,
    unreadable: int = 0,
) -> ContentManifest:
    """Write and return the manifest of a folder whose arrays are all there."""
    (folder / "distinct.npy").unlink(missing_ok=True)
    manifest = ContentManifest(
        format_version=FORMAT_VERSION,
        sizes=sizes,
        num_items=len(known),
        dtype=plan.dtype,
        encoder=plan.encoder,
        versions=plan.versions,
        settings=plan.settings,
        heads=heads,
        known_items=int(known.sum()),
        distinct=distinct,
        unreadable=unreadable,
        cosine_error_mean=error[0],
        cosine_error_max=error[1],
        seconds=round(seconds, 3),
        bytes=content_bytes(folder),
        data_hash=plan.data_hash,
        arrays_hash=content_hash(folder),
    )
    write_content_manifest(folder, manifest)
    return manifest


__all__ = ["MOST_STATE_BYTES", "ROWS", "SHARD", "build_encoded", "build_vectors"]
