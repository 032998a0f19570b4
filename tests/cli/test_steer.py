"""steer: a run with heads, from training to the pictures of its curve."""

import json

import pytest


@pytest.fixture(scope="module")
def run(call, prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steer") / "run"
    call(
        *("train", prepared, "--recipe", "prior_heads", "--budget", "smoke", "--out", folder),
        *("--set", "model_config.prior.source=category", "--set", "training.negatives=32"),
        *("--set", "model_config.sasrec.width=16", "--set", "training.batch_requests=40"),
    )
    return folder


def test_a_run_with_heads_is_steered_and_drawn(call, run):
    said = json.loads(call("steer", run, "--knob", "habit", "--values=-1,0,1", "--requests", 40, "--json").stdout)
    assert [point["value"] for point in said["points"]] == [-1, 0, 1]
    assert said["points"][0]["entropy"] > said["points"][2]["entropy"]
    written = json.loads((run / "steering" / "steering-habit.json").read_text())
    assert written == said
    for name in ("entropy", "diversity", "knob"):
        assert (run / "steering" / f"steering-habit-{name}.svg").read_text().startswith("<svg")


def test_the_table_names_every_measure(call, run, tmp_path):
    shown = call("steer", run, "--knob", "long_term", "--values", "0,1", "--requests", 20, "--out", tmp_path).stdout
    assert all(name in shown for name in ("ndcg", "recall", "near", "far", "exploring", "entropy", "diversity"))


def test_nonsense_is_refused(call, run, runs):
    assert "knob must be one of" in call("steer", run, "--knob", "speed", code=2).stderr
    assert "--values must name" in call("steer", run, "--values", "", code=2).stderr
    assert "must have heads" in call("steer", runs / "repeat", code=2).stderr
    assert "--split must be" in call("steer", run, "--split", "train", code=2).stderr


def test_heads_search_the_whole_catalogue_when_they_are_evaluated(call, run):
    said = json.loads(call("evaluate", run, "--split", "valid", "--full-ranking", "--exclude-seen", "--json").stdout)
    assert said["full_ranking"]["exclude_seen"] is True
    assert {"mrr", "ndcg@10", "coverage@10"} <= set(said["full_ranking"]["metrics"])


def test_what_a_search_says_of_an_item_is_a_score_and_no_probability(call, run, runs):
    shown = call("rank", run, "--user", 3, "--k", 3, "--no-explain").stdout
    assert "score" in shown
    assert "probability" not in shown
    said = json.loads(call("rank", run, "--user", 3, "--k", 3, "--no-explain", "--json").stdout)
    assert all(item["probability"] is None for item in said["items"])
    assert "probability" in call("rank", runs / "mean_pool", "--user", 3, "--k", 3, "--no-explain").stdout
