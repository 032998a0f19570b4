"""analyse: a run of DARE from training to the pictures of its analysis."""

import json

import pytest


@pytest.fixture(scope="module")
def run(call, prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyse") / "run"
    call("train", prepared, "--recipe", "dare_shared", "--budget", "smoke", "--out", folder)
    return folder


def test_gradients_are_measured_and_drawn(call, run):
    said = json.loads(call("analyse", "gradients", run, "--steps", 4, "--json").stdout)
    assert len(said["points"]) == said["steps"] == 4
    assert {"levels.0", "levels.1", "time"} <= set(said["tables"])
    assert json.loads((run / "analysis" / "gradients.json").read_text()) == said
    for name in ("norms", "opposed"):
        assert (run / "analysis" / f"gradients-{name}.svg").read_text().startswith("<svg")
    shown = call("analyse", "gradients", run, "--steps", 2, "--rescale").stdout
    assert "negative_percent" in shown


def test_retrieval_is_measured_and_drawn(call, run, tmp_path):
    words = ("analyse", "retrieval", run, "--requests", 20, "--positions", 8, "--k", 3, "--out", tmp_path)
    said = json.loads(call(*words, "--json").stdout)
    assert set(said["ndcg"]) == {"model", "recency", "any order"}
    assert all(0 <= value <= 1 for value in said["ndcg"].values())
    assert len(said["points"]) == 8
    for name in ("information", "attention"):
        assert (tmp_path / f"retrieval-{name}.svg").read_text().startswith("<svg")
    assert "any order" in call(*words).stdout


def test_discriminability_is_measured_and_drawn(call, run, tmp_path):
    words = ("analyse", "discriminability", run, "--requests", 20, "--clusters", 2, "--clusters", 4, "--out", tmp_path)
    said = json.loads(call(*words, "--json").stdout)
    assert [point["clusters"] for point in said["points"]] == [2, 4]
    for point in said["points"]:
        for name in ("interest", "product"):
            assert 0 <= point[f"{name}_bits"] <= said["entropy"] + 1e-9
            assert point[f"{name}_corrected"] == point[f"{name}_bits"] - point[f"{name}_chance"]
    assert json.loads((tmp_path / "discriminability.json").read_text()) == said
    assert (tmp_path / "discriminability-information.svg").read_text().startswith("<svg")
    assert "product_corrected" in call(*words).stdout
    whole = json.loads(call("analyse", "discriminability", run, "--json", "--out", tmp_path).stdout)
    assert whole["points"][-1]["clusters"] * 2 <= whole["candidates"]


def test_what_cannot_be_analysed_is_refused(call, run, runs):
    assert "must be able to share its tables" in call("analyse", "gradients", runs / "mean_pool", code=2).stderr
    assert "must say how it scores behaviours" in call("analyse", "retrieval", runs / "mean_pool", code=2).stderr
    assert "must say how it represents" in call("analyse", "discriminability", runs / "mean_pool", code=2).stderr
    few = call("analyse", "discriminability", run, "--requests", 1, "--clusters", 999, code=2).stderr
    assert "clusters must be 2 to half the candidates" in few
    assert "--split must be" in call("analyse", "discriminability", run, "--split", "train", code=2).stderr
    assert "--split must be" in call("analyse", "retrieval", run, "--split", "train", code=2).stderr
