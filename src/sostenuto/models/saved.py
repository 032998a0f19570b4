"""Rankers on disk: `model.json` says what it is, safetensors hold the numbers. Nothing here can run code.

model.json            format version, model name, configuration, features, hashes of item content, extra
weights.safetensors   parameters and buffers of a neural ranker
fitted/               what a fitted ranker's own `save` wrote
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

import sostenuto
from sostenuto.models.table import build, config_class, entry_of
from sostenuto.schema.content import ItemContent
from sostenuto.schema.errors import RunError, SpecError, did_you_mean
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.ranker import Ranker

FORMAT_VERSION = 1

T = TypeVar("T")


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration (frozen dataclasses, nested) as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def config_from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """Rebuild a configuration dataclass; unknown keys and wrong types are refused with their place."""
    _refuse_unknown(cls, values, cls.__name__)
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{cls.__name__}.{place} is refused: {first['msg']}, got {first['input']!r}") from error


def _refuse_unknown(cls: type[Any], values: dict[str, Any], place: str) -> None:
    known = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in known:
            raise SpecError(f"{place} has no field {key!r}; it has {', '.join(known)}.{did_you_mean(key, known)}")
        if isinstance(value, dict) and dataclasses.is_dataclass(known[key]):
            _refuse_unknown(typing.cast("type[Any]", known[key]), value, f"{place}.{key}")


def save_ranker(
    folder: str | Path,
    name: str,
    config: Any,
    features: FeatureSpec,
    ranker: Any,
    extra: dict[str, Any] | None = None,
    content: Mapping[str, str] | None = None,
) -> None:
    """Write a ranker into `folder`; `model.json` comes last, so a folder without it does not count.

    Args:
        folder: made when missing.
        name: the model's name in the table of models.
        config: its configuration.
        features: the specification it was built with.
        ranker: the ranker.
        extra: JSON values that travel along (view, threshold of training, metrics).
        content: `arrays_hash` by name of the item content that it was handed; the content itself is not saved.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entry = entry_of(name)
    if entry.kind == "neural":
        from safetensors.torch import save_file

        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in ranker.state_dict().items()}
        partial = folder / "weights.safetensors.partial"
        save_file(tensors, partial)
        partial.replace(folder / "weights.safetensors")
    elif hasattr(ranker, "save"):
        (folder / "fitted").mkdir(exist_ok=True)
        ranker.save(folder / "fitted")
    meta = {
        "format_version": FORMAT_VERSION,
        "sostenuto": sostenuto.__version__,
        "model": name,
        "config": config_to_dict(config),
        "features": dataclasses.asdict(features),
        "content": dict(content or {}),
        "extra": extra or {},
    }
    partial = folder / "model.json.partial"
    partial.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / "model.json")


def read_meta(folder: str | Path) -> dict[str, Any]:
    """Return model.json of a saved ranker, refused when missing or of another format."""
    path = Path(folder) / "model.json"
    if not path.is_file():
        raise RunError(f"a saved ranker must hold model.json, {folder} does not; train it first")
    try:
        meta: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"model.json of a saved ranker must be as training wrote it, {path} is damaged ({error}); train it again"
        ) from error
    if meta.get("format_version") != FORMAT_VERSION:
        raise RunError(
            f"format_version of a saved ranker must be {FORMAT_VERSION}, {path} has {meta.get('format_version')!r}; "
            "train it again with this version, or read it with the version that wrote it"
        )
    return meta


def load_ranker(folder: str | Path) -> tuple[Ranker, dict[str, Any]]:
    """Read what `save_ranker` wrote.

    A ranker that reads content of items is still without it: `check_content`, then its `take_content`.

    Returns:
        the ranker (a neural one in evaluation mode), and model.json as a dictionary whose `config` and `features` are
        rebuilt objects.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    name = meta["model"]
    entry = entry_of(name)
    config = config_from_dict(config_class(name), meta["config"])
    features = config_from_dict(FeatureSpec, meta["features"])
    ranker: Any = build(name, config, features)
    if entry.kind == "neural":
        from safetensors import SafetensorError
        from safetensors.torch import load

        weights = folder / "weights.safetensors"
        try:
            tensors = load(weights.read_bytes())  # a mapped file that is cut meanwhile would end the process
        except SafetensorError as error:
            raise RunError(f"weights must be whole, {weights} is damaged ({error}); train it again") from error
        ranker.load_state_dict(tensors)
        ranker.eval()
    elif hasattr(ranker, "load"):
        ranker.load(folder / "fitted")
    return ranker, meta | {"config": config, "features": features}


def check_content(meta: Mapping[str, Any], content: Mapping[str, ItemContent]) -> None:
    """Refuse content that is not what a saved ranker was trained with.

    Args:
        meta:    model.json, as `load_ranker` returns it.
        content: what the ranker is about to be handed.
    """
    for name, wanted in meta.get("content", {}).items():
        found = content[name].arrays_hash if name in content else "nothing"
        if found != wanted:
            raise RunError(
                f"content {name!r} must be the {wanted[:12]} that the ranker was trained with, got {found[:12]}; "
                "build the content with the settings of then, or train anew"
            )


__all__ = [
    "FORMAT_VERSION",
    "check_content",
    "config_from_dict",
    "config_to_dict",
    "load_ranker",
    "read_meta",
    "save_ranker",
]
