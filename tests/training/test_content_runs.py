"""A ranker that reads content: handed it when trained and when opened, refused when it is other content."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.test_run import config_for
from tests.training.toy_prepared import write_toy
from torch import nn

from sostenuto.data.content_folder import write_content
from sostenuto.data.prepared import PreparedData
from sostenuto.features.view import HistoryView
from sostenuto.layers.content_vectors import ContentVectors
from sostenuto.layers.embedding import Table
from sostenuto.models.saved import read_meta
from sostenuto.models.table import MODELS, ModelEntry
from sostenuto.schema.errors import DataError, RunError, SpecError
from sostenuto.schema.histories import RankerOutput
from sostenuto.training.config import apply_overrides
from sostenuto.training.run import open_run, run_training
from sostenuto.training.run_folder import read_run


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentOnlyConfig:
    """Nothing to set."""


class ContentOnly(nn.Module):
    """Scores a candidate by a linear map of its content and by its category."""

    def __init__(self, config, features):
        super().__init__()
        if not features.content:
            raise SpecError("content_only lives by content, the data have none; build some")
        self.content = nn.ModuleDict({f.name: ContentVectors(f, features.num_items) for f in features.content})
        self.weight = nn.Linear(sum(f.vector_dim for f in features.content), 1)
        self.kind = Table(features.categories[0].size, 1)

    def take_content(self, content):
        for name, part in self.content.items():
            part.set_content(content[name])

    def encode(self, histories):
        return histories.offsets

    def score(self, state, candidates, context):
        vectors = torch.cat([part(candidates.item) for part in self.content.values()], 1)
        return RankerOutput(logits=(self.weight(vectors) + self.kind(candidates.category[:, 0])).squeeze(1))

    def forward(self, histories, candidates, context):
        return self.score(self.encode(histories), candidates, context)


ENTRY = ModelEntry(
    name="content_only",
    title="Content alone",
    paper="",
    kind="neural",
    objective="bce",
    state="bounded",
    update="exact",
    request_context=False,
    content=("vectors",),
    where=f"{__name__}:ContentOnly",
    config=f"{__name__}:ContentOnlyConfig",
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedData:
    import importlib
    import sys

    monkeypatch.setitem(MODELS, "content_only", ENTRY)
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or importlib.import_module(__name__))
    return write_toy(tmp_path / "toy")


def test_a_run_is_handed_content_and_saves_none_of_it(data: PreparedData, tmp_path: Path) -> None:
    result = run_training(data, tmp_path / "run", config_for("content_only", steps=3))
    assert result.finished.steps == 3
    hashes = {"text": data.content()["text"].arrays_hash}
    assert read_meta(tmp_path / "run" / "model")["content"] == hashes
    assert read_run(tmp_path / "run")["data"]["content"] == hashes
    size = (tmp_path / "run" / "model" / "weights.safetensors").stat().st_size
    assert size < data.content()["text"].bytes
    opened = open_run(tmp_path / "run")
    rows = opened.ranker.content["text"](torch.tensor([2, 3]))
    stored = np.load(data.folder / "content" / "text" / "vectors.npy")[2:4]
    np.testing.assert_array_equal(rows.numpy(), stored.astype(np.float32))


def test_a_run_is_not_opened_without_its_content_nor_with_other_content(data: PreparedData, tmp_path: Path) -> None:
    run_training(data, tmp_path / "run", config_for("content_only", steps=2))
    folder = data.folder / "content" / "text"
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace(data.content()["text"].arrays_hash, "f" * 64))
    with pytest.raises(RunError, match=r"content 'text' must be the .* that the ranker was trained with, got ffffffff"):
        open_run(tmp_path / "run")
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"build it with `sostenuto content build"):
        open_run(tmp_path / "run")


def test_a_run_does_not_go_on_with_other_content(data: PreparedData, tmp_path: Path) -> None:
    config = config_for("content_only", steps=2)
    run_training(data, tmp_path / "run", config)
    path = data.folder / "content" / "text" / "manifest.json"
    path.write_text(path.read_text().replace(data.content()["text"].arrays_hash, "f" * 64))
    with pytest.raises(RunError, match=r"content 'text' must be .* the data have ffffffff"):
        run_training(data, tmp_path / "run", config)


def test_the_view_chooses_the_content_and_may_leave_all_out(data: PreparedData, tmp_path: Path) -> None:
    write_content(data.folder, "more", vectors=np.ones((60, 2)), known=np.ones(60, bool), encoder="invented")
    run_training(data, tmp_path / "both", config_for("content_only", steps=1))
    assert set(read_run(tmp_path / "both")["data"]["content"]) == {"text", "more"}
    config = apply_overrides(config_for("content_only", steps=1), ["view.content=more"])
    run_training(data, tmp_path / "one", config)
    assert set(open_run(tmp_path / "one").ranker.content) == {"more"}
    with pytest.raises(SpecError, match="lives by content"):
        run_training(data, tmp_path / "none", replace(config, view=HistoryView(content=())))


def test_content_changes_nothing_for_models_that_read_none(data: PreparedData, tmp_path: Path) -> None:
    first = run_training(data, tmp_path / "with", config_for("din", steps=2)).finished
    assert "content" not in read_run(tmp_path / "with")["data"]
    shutil.rmtree(data.folder / "content")
    second = run_training(data, tmp_path / "without", config_for("din", steps=2)).finished
    assert first.gauc == second.gauc
    assert open_run(tmp_path / "with").finished == first
