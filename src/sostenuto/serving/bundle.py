"""A bundle: one folder with everything that scoring needs and nothing of any user. Opening it cannot run code.

bundle.json                  what it is, and size and sha-256 of every other file; written last
model/                       the ranker, see models/saved.py; `extra` holds the view
vocab/<name>.parquet         raw id -> index, as in the prepared folder; no users
items.parquet                the item table, as in the prepared folder
candidate_items.safetensors  items that are ranked when nobody names candidates
together.safetensors         items that go together, for candidates; see recommending/together.py
content/<name>.safetensors   item content, where the model reads some
MODEL_CARD.md                for people

`version` is a hash over all of it: two bundles of one version score alike. It guards against damage and mix-ups, not
against a stranger who rewrites the hashes too; of a stranger's bundle the worst is wrong scores or an error, because
every file is data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

import sostenuto
from sostenuto.data.prepared import category_paths, column_array
from sostenuto.features.clock import CLOCK_FIELDS
from sostenuto.features.popularity import POPULARITY_FIELDS
from sostenuto.features.view import HistoryView
from sostenuto.ops.text_index import TextIndex
from sostenuto.schema.errors import BundleError, MissingExtra
from sostenuto.schema.features import FIRST_KNOWN, PADDING, UNKNOWN, FeatureSpec
from sostenuto.schema.features import Field as FeatureField
from sostenuto.serving.bundle_manifest import (
    CANDIDATE_ITEMS,
    ITEMS,
    LAST_LAYER,
    MANIFEST,
    VERSION_DIGITS,
    BundleManifest,
    check_files,
    first_line,
    ids_hash,
    read_manifest,
    refuse_unlisted,
)
from sostenuto.serving.labels import ItemLabels
from sostenuto.serving.recommending.together import TOGETHER, Together, read_together

if TYPE_CHECKING:
    from sostenuto.models.table import ModelEntry
    from sostenuto.schema.content import ItemContent
    from sostenuto.schema.histories import Catalogue

Array = npt.NDArray[Any]


class Vocabulary:
    """Raw ids and their indices: 0 padding or missing, 1 unknown, 2.. known."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids
        self._known = TextIndex(ids[FIRST_KNOWN:])

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, raw: str | None) -> int:
        """Return the index of a raw id; missing (none or empty) is 0, one that is not known is 1.

        >>> [Vocabulary(["", "?", "a"]).index(raw) for raw in ("a", "b", "", None, "?")]
        [2, 1, 0, 0, 1]
        """
        return self._known.get(raw, UNKNOWN - FIRST_KNOWN) + FIRST_KNOWN if raw else PADDING

    def indices(self, raws: Iterable[str | None]) -> Array:
        """Return (N,) int64 indices of raw ids."""
        texts = [raw or "" for raw in raws]
        found = self._known.find(texts) + FIRST_KNOWN
        found[found < FIRST_KNOWN] = UNKNOWN
        if "" in texts:
            found[[n for n, text in enumerate(texts) if not text]] = PADDING
        return found


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle opened for scoring. Nothing is read from its folder afterwards."""

    folder: Path
    manifest: BundleManifest
    entry: ModelEntry  # the model's row in the table of models
    config: Any  # the model's configuration
    features: FeatureSpec  # as the ranker was built: with clock, popularity and match features of the view
    view: HistoryView
    ranker: Any  # in evaluation mode; content taken, items kept
    items: pl.DataFrame  # row = item index: `item_id`, `category.<level>`, `field.<name>`, texts
    item_category: Array  # (num_items, K) int32
    item_fields: Mapping[str, Array]  # (num_items,) or (num_items, width), by name
    candidate_items: Array  # (M,) int64 item indices, rising: what is ranked when nobody names candidates
    content: Mapping[str, ItemContent]  # what the ranker was handed, by name; {} where it reads none
    together: Together | None  # items that go together; None in a bundle that was exported without
    # raw id -> index: `item`, `action`, `place` (where the data have them), category levels, categorical fields
    vocabularies: Mapping[str, Vocabulary]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Hash over every byte, shortened: cached states and logged lists belong to it."""
        return self.manifest.hash[:VERSION_DIGITS]

    @property
    def time_zone(self) -> str:
        """IANA zone of local hours and weekdays."""
        return self.features.time_zone

    @property
    def user_fields(self) -> tuple[FeatureField, ...]:
        """Context fields that belong to the user, not to the request."""
        return tuple(f for f in self.features.context_fields if f.name in self.manifest.user_fields)

    @cached_property
    def prepared_features(self) -> FeatureSpec:
        """The features without what a view adds: those of the events, items and requests themselves."""
        return replace(
            self.features,
            candidate_fields=_without(self.features.candidate_fields, POPULARITY_FIELDS),
            context_fields=_without(self.features.context_fields, CLOCK_FIELDS),
            match=(),
        )

    @cached_property
    def label(self) -> ItemLabels:
        """Names of items that a person can read."""
        return ItemLabels(self)

    def has_vocabulary(self, name: str) -> bool:
        """Say whether raw ids of that name are there."""
        return name in self.vocabularies

    def vocabulary(self, name: str) -> list[str]:
        """Raw ids by index; the first two are padding and unknown."""
        return self.vocabularies[name].ids

    def catalogue(self) -> Catalogue:
        """Return what is known of every item, as the ranker takes it."""
        return catalogue_of(self.item_category, self.item_fields)


def _without(fields: tuple[FeatureField, ...], added: tuple[FeatureField, ...]) -> tuple[FeatureField, ...]:
    return tuple(f for f in fields if f not in added)


def catalogue_of(category: Array, fields: Mapping[str, Array]) -> Catalogue:
    """Return a catalogue of (num_items, K) category paths and item fields."""
    import torch

    from sostenuto.schema.histories import Catalogue

    def tensor(array: Array) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))

    return Catalogue(category=tensor(category), fields={name: tensor(column) for name, column in fields.items()})


@contextlib.contextmanager
def _reading(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever reading or building something goes wrong with into one clear refusal.

    The bytes are a stranger's: readers of three libraries may fail with anything, polars even by a panic, which is no
    Exception.
    """
    try:
        yield
    except (BundleError, MissingExtra):
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        raise BundleError(
            f"{what} of a bundle must be as export wrote it, that of {folder} cannot be used ({first_line(error)}); "
            "export the run anew"
        ) from error


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Open a bundle for scoring.

    Args:
        path:   its folder.
        verify: read every file once more and compare its hash. Leave it out only for a folder that was verified
                before and has been out of reach since: other workers of one server, say.

    Raises:
        BundleError:  it is no bundle, of another format, incomplete, changed, or its parts do not fit each other.
        MissingExtra: the model needs a package that is not installed.
    """
    from sostenuto.models.saved import check_content, config_from_dict, load_ranker, read_meta
    from sostenuto.models.table import MODELS
    from sostenuto.schema.ranker import ItemKeeper

    folder = Path(path)
    manifest = read_manifest(folder)
    if manifest.model not in MODELS:
        raise BundleError(
            f"the model of a bundle must be in this version's table of models, {folder} holds {manifest.model!r} "
            f"(exported with {manifest.exported_with}, this is {sostenuto.__version__}); "
            "open it with the version that wrote it"
        )
    check_files(folder, manifest, contents=verify)
    entry = MODELS[manifest.model]
    with _reading(folder, "model/model.json"):
        refuse_unlisted(
            manifest, "model/model.json", *(["model/weights.safetensors"] if entry.kind == "neural" else [])
        )
        meta = read_meta(folder / "model")
        if meta["model"] != manifest.model:
            raise ValueError(f"it holds {meta['model']!r}, {MANIFEST} says {manifest.model!r}")
        features = config_from_dict(FeatureSpec, meta["features"])
        view = config_from_dict(HistoryView, meta["extra"]["view"])
        names = {f.name for f in features.context_fields}
        if stray := set(manifest.user_fields) - names:
            raise ValueError(f"user_fields names {', '.join(sorted(stray))}, which the features do not have")
    vocabularies = _read_vocabularies(folder, manifest, features)
    items, category, fields = _read_items(folder, manifest, features, vocabularies)
    with _reading(folder, CANDIDATE_ITEMS):
        candidate_items = _read_candidate_items(folder, manifest, features)
    together = None
    if TOGETHER in manifest.files:
        with _reading(folder, TOGETHER):
            together = read_together(folder, features)
    content: dict[str, ItemContent] = {}
    with _reading(folder, "the ranker"):
        ranker, meta = load_ranker(folder / "model")
        if entry.content:
            content = _read_content(folder, manifest, features, entry)
            check_content(meta, content)
            ranker.take_content(content)  # type: ignore[attr-defined]
        if isinstance(ranker, ItemKeeper):
            ranker.keep_items(catalogue_of(category, fields))
    return Bundle(
        folder=folder,
        manifest=manifest,
        entry=entry,
        config=meta["config"],
        features=features,
        view=view,
        ranker=ranker,
        items=items,
        item_category=category,
        item_fields=fields,
        candidate_items=candidate_items,
        content=content,
        together=together,
        vocabularies=vocabularies,
    )


def _read_vocabularies(folder: Path, manifest: BundleManifest, features: FeatureSpec) -> dict[str, Vocabulary]:
    wanted = vocabulary_sizes(features)
    found = {}
    if "item" not in manifest.vocabularies:
        raise BundleError(f"a bundle must have the vocabulary of items, {folder} has none; export the run anew")
    for name, stored in manifest.vocabularies.items():
        what = f"vocab/{name}.parquet"
        with _reading(folder, what):
            refuse_unlisted(manifest, what)
            ids = pl.read_parquet(folder / what)["id"].to_list()
            if len(ids) != stored.size or ids_hash(ids) != stored.ids_hash:
                raise ValueError(f"its ids are not those of {MANIFEST}")
            if name in wanted and len(ids) != wanted[name]:
                raise ValueError(f"it has {len(ids):,} ids, the ranker was built for {wanted[name]:,}")
            found[name] = Vocabulary(ids)
    return found


def vocabulary_sizes(features: FeatureSpec) -> dict[str, int]:
    """Return the names of all vocabularies that scoring may need, with the size that each must have."""
    sizes = {"item": features.num_items, "action": features.num_actions, "place": features.num_places}
    fields = (
        *(features.categories + features.item_fields + features.behaviour_fields),
        *(features.candidate_fields + features.context_fields),
    )
    return sizes | {f.name: f.size for f in fields if f.kind in {"categorical", "multi"} and f not in CLOCK_FIELDS}


def _read_items(
    folder: Path, manifest: BundleManifest, features: FeatureSpec, vocabularies: Mapping[str, Vocabulary]
) -> tuple[pl.DataFrame, Array, dict[str, Array]]:
    with _reading(folder, ITEMS):
        refuse_unlisted(manifest, ITEMS)
        items = pl.read_parquet(folder / ITEMS)
        if len(items) != features.num_items:
            raise ValueError(f"it has {len(items):,} rows, the ranker was built for {features.num_items:,} items")
        if items["item_id"].cast(pl.String).to_list() != vocabularies["item"].ids:
            raise ValueError("item_id is not the vocabulary of items")
        for level in features.categories:
            _check_column(items[f"category.{level.name}"], level)
        for field in features.item_fields:
            _check_column(items[f"field.{field.name}"], field)
        category = category_paths(items, features)
        return items, category, {f.name: column_array(items[f"field.{f.name}"]) for f in features.item_fields}


def _check_column(column: pl.Series, field: FeatureField) -> None:
    """Refuse a column of the item table that is not what the feature says: its values index tables of the ranker."""
    values = column_array(column)
    shape = (len(column), field.width) if field.kind in {"multi", "vector"} else (len(column),)
    is_index = field.kind in {"categorical", "multi"}
    if column.null_count() or values.shape != shape or values.dtype.kind not in ("iu" if is_index else "f"):
        raise ValueError(f"{column.name} must be {shape} of {field.kind} values, got {values.shape} of {values.dtype}")
    if is_index and values.size and not (values.min() >= 0 and values.max() < field.size):
        raise ValueError(
            f"{column.name} must lie in 0 .. {field.size - 1}, it reaches {values.min()} .. {values.max()}"
        )


def _read_candidate_items(folder: Path, manifest: BundleManifest, features: FeatureSpec) -> Array:
    from safetensors.numpy import load_file

    refuse_unlisted(manifest, CANDIDATE_ITEMS)
    found: Array = load_file(folder / CANDIDATE_ITEMS)["item"]
    if found.ndim != 1 or found.dtype != np.int64 or (np.diff(found) <= 0).any():
        raise ValueError("item must be rising int64 indices")
    if len(found) and not (found[0] >= FIRST_KNOWN and found[-1] < features.num_items):
        raise ValueError(f"item must lie in {FIRST_KNOWN} .. {features.num_items - 1}")
    return found


def _read_content(
    folder: Path, manifest: BundleManifest, features: FeatureSpec, entry: ModelEntry
) -> dict[str, ItemContent]:
    from safetensors.torch import load

    from sostenuto.schema.content import ItemContent

    found = {}
    for sizes in features.content:
        if sizes.name not in manifest.content:
            raise ValueError(f"the ranker reads content {sizes.name!r}, {MANIFEST} does not have it")
        stored = manifest.content[sizes.name]
        name = f"content/{sizes.name}.safetensors"
        refuse_unlisted(manifest, name)
        tensors = load((folder / name).read_bytes())  # a mapped file that is cut would end the process
        layer = {
            key.removeprefix(LAST_LAYER): tensors.pop(key) for key in sorted(tensors) if key.startswith(LAST_LAYER)
        }
        wanted = (features.num_items, sizes.vector_dim)
        if tuple(tensors["vectors"].shape) != wanted or tensors["known"].shape[0] != wanted[0]:
            raise ValueError(f"{name} must hold vectors of shape {wanted}, got {tuple(tensors['vectors'].shape)}")
        found[sizes.name] = ItemContent(
            name=sizes.name, arrays_hash=stored.arrays_hash, **tensors, last_layer=layer, heads=stored.heads
        )
    return found


__all__ = ["Bundle", "Vocabulary", "catalogue_of", "open_bundle", "vocabulary_sizes"]
