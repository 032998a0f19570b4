"""`sostenuto export`: a run becomes a bundle that opens without the data."""

import json
import shutil

import pytest
import torch

from sostenuto.serving.bundle import open_bundle
from sostenuto.training.run import open_run


@pytest.mark.parametrize("name", ["repeat", "mean_pool"])
def test_a_run_becomes_a_bundle_that_opens_without_its_data(call, runs, tmp_path, name):
    answer = json.loads(call("export", runs / name, "--out", tmp_path / "bundle", "--json").stdout)
    run = open_run(runs / name)
    bundle = open_bundle(tmp_path / "bundle")
    assert answer["version"] == bundle.version
    assert answer["model"] == run.config.model
    assert answer["files"] == sum(path.is_file() for path in (tmp_path / "bundle").rglob("*"))
    assert bundle.name == run.config.name
    assert bundle.manifest.metrics["valid"]["all"]["gauc"]["value"] == run.finished.gauc
    assert bundle.manifest.versions["torch"] == torch.__version__
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert "Opened again: equal logits" in call("export", runs / name, "--out", tmp_path / "again").stdout


def test_what_was_measured_travels_along(call, runs, tmp_path):
    call("evaluate", runs / "repeat")
    call("export", runs / "repeat", "--out", tmp_path / "bundle")
    measured = json.loads((runs / "repeat" / "metrics.json").read_text())["test"]["lists"]["shown"]["metrics"]
    assert open_bundle(tmp_path / "bundle").manifest.metrics["test"]["shown"] == measured
    assert f"{measured['gauc_request']['value']:.4f}" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()


def test_an_export_into_a_folder_with_files_is_refused(call, runs):
    assert "new or an empty folder" in call("export", runs / "repeat", "--out", runs, code=2).stderr


def test_an_export_that_would_score_otherwise_is_refused(call, runs, tmp_path, monkeypatch):
    from sostenuto.serving import bundle as module

    opened = module.open_bundle

    def other(folder):
        bundle = opened(folder)
        with torch.no_grad():
            next(p for p in bundle.ranker.parameters() if p.numel() > 1).add_(0.1)
        return bundle

    monkeypatch.setattr(module, "open_bundle", other)
    answer = call("export", runs / "mean_pool", "--out", tmp_path / "bundle", code=1)
    assert "a bundle must score like its run" in answer.stderr


def test_a_run_with_damaged_weights_is_not_exported(call, runs, tmp_path):
    run = shutil.copytree(runs / "mean_pool", tmp_path / "run")
    (run / "model" / "weights.safetensors").write_bytes(b"x")
    assert "is damaged" in call("export", run, "--out", tmp_path / "bundle", code=1).stderr
    assert not (tmp_path / "bundle").exists()
