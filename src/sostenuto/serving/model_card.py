"""MODEL_CARD.md of a bundle: what was trained on what, how good it was, and what one must know to use it."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import sostenuto
from sostenuto.models.table import entry_of

if TYPE_CHECKING:
    from sostenuto.data.prepared import PreparedData
    from sostenuto.models.table import ModelEntry
    from sostenuto.schema.features import FeatureSpec
    from sostenuto.serving.bundle_manifest import DataFacts, StoredVocabulary
    from sostenuto.serving.exporting import Trained

# all else that was measured stands in bundle.json
SHOWN = (
    "gauc_request",
    "gauc_user",
    "gauc",
    "auc",
    "logloss",
    "ne",
    "pcoc",
    "ece",
    "ndcg@10",
    "recall@10",
)  # the rest stands in bundle.json


def model_card(
    trained: Trained,
    data: PreparedData,
    facts: DataFacts,
    vocabularies: Mapping[str, StoredVocabulary],
    user_fields: tuple[str, ...],
) -> str:
    """Return the card as Markdown; the same inputs give the same text."""
    entry = entry_of(trained.model)
    counts = ", ".join(f"{count:,} {name}" for name, count in data.manifest.counts.items()) or "not counted"
    lines = [
        f"# {trained.name}",
        "",
        f"{entry.title}{f' ({entry.paper})' if entry.paper else ''}, trained on {facts.name} and exported with "
        f"Sostenuto {sostenuto.__version__}.",
        "",
        "| | |",
        "|---|---|",
        f"| model | `{trained.model}`, {entry.kind}, objective {entry.objective} |",
        f"| gives | {_gives(entry)} |",
        f"| state of a user | {entry.state}; {_update(entry)} |",
        f"| request | {'time and place are read' if entry.request_context else 'only its candidates are read'} |",
        f"| history | {_history(trained)} |",
        f"| item content | {', '.join(trained.content) or 'none'} |",
        f"| data | {facts.name}, `{facts.arrays_hash[:12]}`; {counts} |",
        f"| protocol | {facts.protocol or 'none'} |",
        *(f"| {split} | {_day(first)} to {_day(last)} |" for split, (first, last) in facts.splits.items()),
        f"| time zone | {trained.features.time_zone} |",
        f"| terms of the data | {_one_line(facts.terms) or 'not stated'} |",
        "",
        "## Measured",
        "",
        *_metrics(trained.metrics),
        "",
        "## What it reads",
        "",
        *_reads(trained.features, user_fields),
        "",
        "Vocabularies: " + ", ".join(f"{name} {stored.size:,}" for name, stored in vocabularies.items()) + ".",
        "",
        "## Mind",
        "",
        "- It ranks what people did next in the data above. It says nothing of what is good for them.",
        "- Items, actions and places beyond the vocabularies share the row of the unknown; items with few training",
        "  events live by category and content.",
        f"- {_calibration(entry)}",
        "- No user and no behaviour is in this folder. Names of items, categories and field values are: the terms of",
        "  the data apply to them.",
        "",
        "## Settings",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_one_line(value)} |" for name, value in _settings(trained.config)),
        *(f"| trained with {name} | {version} |" for name, version in trained.versions.items()),
    ]
    return "\n".join(lines) + "\n"


def _gives(entry: ModelEntry) -> str:
    if entry.gives_probabilities:
        return "logits; their sigmoid is the probability of the protocol's label"
    return "scores that order items, no probabilities"


def _update(entry: ModelEntry) -> str:
    if entry.update == "exact":
        return "later events are folded in exactly"
    return "encoded anew when an event arrives"


def _calibration(entry: ModelEntry) -> str:
    if entry.gives_probabilities:
        return "Probabilities mean what `pcoc` and `ece` say, for candidates drawn as the protocol draws them."
    return "Scores compare items within one request, nothing else."


def _history(trained: Trained) -> str:
    recent = trained.view.recent
    seen = "the whole history" if recent is None else f"the newest {recent:,} behaviours"
    return f"{seen}, {'with' if trained.view.match else 'without'} match features"


def _metrics(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of split x list x metric; intervals are 95 % over users, where they were drawn."""
    rows = [
        f"| {split} | {name} | {metric} | {value['value']:.4f} | {_interval(value)} |"
        for split, lists in metrics.items()
        for name, measured in lists.items()
        for metric in SHOWN
        if (value := measured.get(metric)) is not None and value.get("value") is not None
    ]
    if not rows:
        yield "Nothing was measured."
        return
    yield "| split | candidates | metric | value | 95 % |"
    yield "|---|---|---|---|---|"
    yield from rows


def _interval(value: Mapping[str, Any]) -> str:
    if value.get("low") is None or value.get("high") is None:
        return ""
    return f"{value['low']:.4f} to {value['high']:.4f}"


def _reads(features: FeatureSpec, user_fields: tuple[str, ...]) -> Iterator[str]:
    of_behaviours = [*(["value"] if features.has_value else []), *(f.name for f in features.behaviour_fields)]
    parts = {
        "category levels of an item": [f.name for f in features.categories],
        "fields of an item": [f.name for f in features.item_fields],
        "fields of a behaviour": of_behaviours,
        "fields of a candidate": [f.name for f in features.candidate_fields],
        "fields of a request": [f.name for f in features.context_fields if f.name not in user_fields],
        "fields of a user": list(user_fields),
        "match features": list(features.match),
    }
    for what, names in parts.items():
        yield f"- {what}: {', '.join(map(_one_line, names)) or 'none'}"


def _settings(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{path}{f.name}.")
        else:
            yield path + f.name, value


def _one_line(value: Any) -> str:
    """Return a value as a table cell holds it."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _day(time_ms: int) -> str:
    return f"{dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC):%Y-%m-%d}"


__all__ = ["model_card"]
