"""From a ranker and its prepared data to a bundle: everything that scoring needs, and nothing of any user."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

import sostenuto
from sostenuto.schema.errors import BundleError, SpecError
from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.serving.bundle import vocabulary_sizes
from sostenuto.serving.bundle_manifest import (
    CANDIDATE_ITEMS,
    CARD,
    FORMAT_VERSION,
    ITEMS,
    LAST_LAYER,
    MANIFEST,
    BundleManifest,
    DataFacts,
    StoredContent,
    StoredFile,
    StoredVocabulary,
    file_hash,
    ids_hash,
    manifest_hash,
)
from sostenuto.serving.model_card import model_card
from sostenuto.serving.recommending.together import write_together

if TYPE_CHECKING:
    from sostenuto.data.prepared import Array, PreparedData
    from sostenuto.features.view import HistoryView
    from sostenuto.schema.content import ItemContent
    from sostenuto.schema.features import FeatureSpec
    from sostenuto.serving.drift import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained ranker and what is known of its training."""

    name: str  # of the run
    model: str  # in the table of models
    config: Any
    features: FeatureSpec  # as it was built
    view: HistoryView
    ranker: Any
    content: Mapping[str, ItemContent] = field(default_factory=dict)  # what it was handed; {} for one that reads none
    metrics: Mapping[str, Any] = field(default_factory=dict)  # by split
    reference: Reference | None = None  # of held-out requests
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that trained it


def export_bundle(trained: Trained, data: PreparedData, out: str | Path) -> BundleManifest:
    """Write a bundle; it is at `out` whole or not at all.

    The same ranker and data give the same bytes, so the same version.

    Args:
        trained: what to export.
        data:    the prepared folder that it was trained on.
        out:     the bundle's folder; must be missing or empty.

    Raises:
        SpecError:   `out` holds files.
        BundleError: data and ranker do not belong together.
    """
    from sostenuto.models.saved import config_to_dict, save_ranker

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SpecError(f"--out must be a new or an empty folder, {out} holds something; name another one")
    if (found := data.features.num_items) != trained.features.num_items:
        raise BundleError(
            f"data must be those of training with {trained.features.num_items:,} items, {data.folder} has {found:,}; "
            "name the prepared folder of the run"
        )
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    vocabularies = _write_vocabularies(trained.features, data, partial)
    user_fields = _user_fields(trained.features, data)
    shutil.copyfile(data.folder / ITEMS, partial / ITEMS)
    _save_arrays({"item": candidate_items(data)}, partial / CANDIDATE_ITEMS)
    write_together(data, partial)
    for name, part in trained.content.items():
        (partial / "content").mkdir(exist_ok=True)
        _save_content(part, partial / "content" / f"{name}.safetensors")
    extra = {"recipe": trained.name, "view": config_to_dict(trained.view)}
    hashes = {name: part.arrays_hash for name, part in trained.content.items()}
    save_ranker(partial / "model", trained.model, trained.config, trained.features, trained.ranker, extra, hashes)
    facts = _facts(data)
    (partial / CARD).write_text(model_card(trained, data, facts, vocabularies, user_fields), encoding="utf-8")
    values: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": trained.name,
        "model": trained.model,
        "data": facts.model_dump(mode="json"),
        "vocabularies": {name: stored.model_dump() for name, stored in vocabularies.items()},
        "content": {
            name: StoredContent(arrays_hash=part.arrays_hash, heads=part.heads).model_dump()
            for name, part in trained.content.items()
        },
        "user_fields": list(user_fields),
        "metrics": json.loads(json.dumps(trained.metrics)),
        "reference": None if trained.reference is None else dataclasses.asdict(trained.reference),
        "versions": dict(trained.versions),
        "exported_with": sostenuto.__version__,
        "files": {
            path.relative_to(partial).as_posix(): StoredFile(
                bytes=path.stat().st_size, sha256=file_hash(path)
            ).model_dump()
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        },
    }
    manifest = BundleManifest(**values, hash=manifest_hash(values))
    text = json.dumps(values | {"hash": manifest.hash}, indent=2, allow_nan=False)
    (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
    if out.is_dir():
        out.rmdir()
    partial.rename(out)
    return manifest


def candidate_items(data: PreparedData) -> Array:
    """Return the (M,) int64 items that are ranked when nobody names candidates, rising.

    Those of the protocol's pool, or all that own an embedding row.
    """
    pool = data.folder / "pools" / "candidate_items.npy"
    if pool.is_file():
        return np.unique(np.load(pool).astype(np.int64))
    return np.arange(FIRST_KNOWN, data.features.num_item_rows)


def _write_vocabularies(features: FeatureSpec, data: PreparedData, folder: Path) -> dict[str, StoredVocabulary]:
    """Copy the vocabularies that scoring needs; that of the users is none of them, whatever the features are called."""
    (folder / "vocab").mkdir()
    written = {}
    for name in sorted(vocabulary_sizes(features)):
        if name == "user" or not data.has_vocabulary(name):
            continue
        ids = data.vocabulary(name)
        pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)}).write_parquet(folder / "vocab" / f"{name}.parquet")
        written[name] = StoredVocabulary(size=len(ids), ids_hash=ids_hash(ids))
    return written


def _user_fields(features: FeatureSpec, data: PreparedData) -> tuple[str, ...]:
    """Return the context fields that come from the table of users."""
    columns = set() if data.users is None else set(data.users.columns)
    return tuple(f.name for f in features.context_fields if f"field.{f.name}" in columns)


def _facts(data: PreparedData) -> DataFacts:
    manifest = data.manifest
    protocol = manifest.protocol
    return DataFacts(
        name=manifest.name,
        arrays_hash=manifest.arrays_hash,
        terms=str(manifest.source.get("terms", "")),
        protocol="" if protocol is None else f"{protocol.name} v{protocol.version}",
        splits={} if protocol is None else dict(protocol.splits),
    )


def _save_arrays(arrays: Mapping[str, Array], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def _save_content(part: ItemContent, path: Path) -> None:
    """Write the tensors of one kind of content."""
    import torch
    from safetensors.torch import save_file

    tensors = {
        f.name: value for f in dataclasses.fields(part) if isinstance(value := getattr(part, f.name), torch.Tensor)
    }
    tensors |= {LAST_LAYER + name: tensor for name, tensor in part.last_layer.items()}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


__all__ = ["Trained", "candidate_items", "export_bundle"]
