"""A tiny prepared folder with everything a bundle may hold, rankers of every kind on it, and bundles with changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from tests.contract.test_contract import config_of
from tests.training.toy_prepared import write_toy

from sostenuto.content.store import open_content
from sostenuto.data.prepared import PreparedData, write_manifest
from sostenuto.data.vocabularies import write_vocabulary
from sostenuto.features.collation import Collator
from sostenuto.features.view import HistoryView
from sostenuto.layers.embedding import Table
from sostenuto.models.table import MODELS, build
from sostenuto.schema.features import Field
from sostenuto.schema.histories import RequestBatch
from sostenuto.schema.ranker import ItemKeeper
from sostenuto.serving.bundle_manifest import MANIFEST, file_hash, manifest_hash
from sostenuto.serving.exporting import Trained, export_bundle

VIEW = HistoryView()
USERS = 40


def write_whole(folder: Path) -> PreparedData:
    """Write the toy data with vocabularies of users, kinds and places, and with fields of users."""
    data = write_toy(folder, users=USERS)
    write_vocabulary(folder, "user", pl.Series(["", "?", *(f"household-{n}" for n in range(USERS))]))
    write_vocabulary(folder, "kind", pl.Series(["", "?", *(f"kind {n}" for n in range(6))]))
    write_vocabulary(folder, "place", pl.Series(["", "?", "harbour", "hill"]))
    write_vocabulary(folder, "segment", pl.Series(["", "?", "new", "loyal"]))
    pl.DataFrame(
        {
            "user_id": data.vocabulary("user"),
            "field.age": np.linspace(20, 60, USERS + 2).astype(np.float32),
            "field.segment": (np.arange(USERS + 2) % 4).astype(np.int32),
        }
    ).write_parquet(folder / "users.parquet")
    context = (
        Field(name="age", kind="numeric", mean=40.0, std=12.0),
        Field(name="segment", kind="categorical", size=4),
    )
    manifest = data.manifest
    source = {"terms": "synthetic | no terms", "spec": {}}
    features = replace(manifest.features, context_fields=context)
    write_manifest(folder, manifest.model_copy(update={"features": features, "source": source}))
    return PreparedData(folder)


def trained_on(data: PreparedData, name: str, *, seed: int = 1, view: HistoryView = VIEW) -> Trained:
    """Return a ranker whose every part speaks: parameters far from their small start, fitted ones fitted."""
    collator, config = Collator(data, view), config_of(name)
    ranker: Any = build(name, config, collator.features, seed=seed)
    content = {}
    if kinds := MODELS[name].content:
        content = open_content(data, collator.features.content, kinds)
        ranker.take_content(content)
    requests = data.requests("train")
    batches = [collator.batch(requests, np.arange(a, a + 40)) for a in (0, 40, 80)]
    if MODELS[name].kind == "neural":
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in ranker.parameters():
                parameter.normal_(0.0, 0.2, generator=generator)
            for module in ranker.modules():
                if isinstance(module, Table):
                    module.weight[0] = 0.0
            batch = batches[0]
            ranker(batch.histories, batch.candidates, batch.context)  # training mode: fills stored statistics
        ranker.eval()
    elif hasattr(ranker, "fit"):
        ranker.fit(batches[:2], batches[2:])
    if isinstance(ranker, ItemKeeper):
        ranker.keep_items(collator.assembler.catalogue())
    return Trained(
        name=f"small {name}",
        model=name,
        config=config,
        features=collator.features,
        view=view,
        ranker=ranker,
        content=content,
        metrics={"test": {"even": {"gauc_request": {"value": 0.5, "low": None, "high": None}}}},
        versions={"torch": torch.__version__},
    )


def exported(data: PreparedData, name: str, out: Path) -> Trained:
    """Export a ranker, and return it."""
    trained = trained_on(data, name)
    export_bundle(trained, data, out)
    return trained


def asked_batch(data: PreparedData) -> RequestBatch:
    """Return requests of the test split, an empty history among them where there is one."""
    return Collator(data, VIEW).batch(data.requests("test"), np.arange(30))


def logits_of(ranker: Any, batch: RequestBatch) -> torch.Tensor:
    with torch.inference_mode():
        return ranker.score(ranker.encode(batch.histories), batch.candidates, batch.context).logits


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda said: None) -> None:
    """Change what bundle.json says, and make all its hashes right again: as a stranger would who knows the format."""
    path = folder / MANIFEST
    said = json.loads(path.read_text())
    for name, stored in said["files"].items():
        if (folder / name).is_file():
            stored |= {"bytes": (folder / name).stat().st_size, "sha256": file_hash(folder / name)}
    change(said)
    path.write_text(json.dumps(said | {"hash": manifest_hash(said)}))
