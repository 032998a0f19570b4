"""train, evaluate, rank and compare on a small world."""

import json
from datetime import UTC, datetime

import pytest

from sostenuto.cli.rank import moment_ms, read_candidates
from sostenuto.schema.errors import SpecError


def test_print_config_shows_the_resolved_tree_and_trains_nothing(call, tmp_path):
    words = ("train", tmp_path, "--recipe", "din_recent50", "--budget", "smoke", "--seed", 7)
    config = json.loads(call(*words, "--set", "training.learning_rate=3e-4", "--print-config").stdout)
    assert config["view"]["recent"] == 50
    assert config["budget"]["name"] == "smoke"
    assert config["training"]["seed"] == 7
    assert config["training"]["learning_rate"] == 3e-4
    assert list(tmp_path.iterdir()) == []


def test_the_seed_reaches_the_trees_too(call):
    config = json.loads(call("train", "x", "--recipe", "trees", "--seed", 7, "--print-config").stdout)
    assert config["model_config"]["seed"] == 7


def test_a_run_without_a_folder_is_refused(call, prepared):
    assert "--out" in call("train", prepared, "--recipe", "repeat", code=2).stderr


def test_train_leaves_a_run_and_its_answer_is_json(call, prepared, runs):
    answer = call("train", prepared, "--recipe", "repeat", "--budget", "smoke", "--out", runs / "repeat", "--json")
    said = json.loads(answer.stdout)  # nothing but JSON on stdout, although the run reports
    assert said["model"] == "repeat"
    assert 0.5 < said["gauc"] < 1
    assert (runs / "repeat" / "config.json").is_file()


def test_another_config_in_the_same_folder_is_refused(call, prepared, runs):
    words = ("train", prepared, "--recipe", "mean_pool", "--budget", "smoke", "--out", runs / "mean_pool")
    answer = call(*words, "--set", "training.learning_rate=0.5", code=1)
    assert "training.learning_rate" in answer.stderr


def test_evaluate_measures_once_and_gives_intervals(call, runs):
    measured = json.loads(call("evaluate", runs / "repeat", "--json").stdout)
    headline = measured["metrics"]["lists"]["shown"]["metrics"]["gauc_request"]
    assert headline["low"] <= headline["value"] <= headline["high"]
    assert (runs / "repeat" / "metrics.json").is_file()
    before = (runs / "repeat" / "predictions" / "test.npz").stat().st_mtime_ns
    assert json.loads(call("evaluate", runs / "repeat", "--json").stdout) == measured
    assert (runs / "repeat" / "predictions" / "test.npz").stat().st_mtime_ns == before


def test_evaluate_tests_a_run_against_another(call, runs):
    words = ("evaluate", runs / "repeat", "--against", runs / "mean_pool")
    compared = json.loads(call(*words, "--json").stdout)["comparison"]["lists"]["shown"]["gauc_request"]
    (one,) = compared["comparisons"]
    assert one["low"] <= one["difference"] <= one["high"]
    shown = call(*words, "--slices").stdout
    assert "Paired over users" in shown
    assert "History length" in shown


def test_a_run_is_not_tested_against_itself(call, runs):
    same = runs / "mean_pool" / ".." / "repeat"
    assert "must be another run" in call("evaluate", runs / "repeat", "--against", same, code=2).stderr


def test_evaluate_ranks_all_items_when_asked(call, runs):
    words = ("evaluate", runs / "repeat", "--full-ranking", "--full-requests", 3)
    full = json.loads(call(*words, "--json").stdout)["full_ranking"]
    assert full["requests"] == 3
    assert 0 <= full["metrics"]["recall@10"]["value"] <= 1
    assert "items ranked for 3 requests" in call(*words).stdout


def test_training_requests_are_not_measured(call, runs):
    assert "must be valid or test" in call("evaluate", runs / "repeat", "--split", "train", code=2).stderr


def test_rank_gives_k_items_in_falling_order_with_reasons(call, runs):
    ranking = json.loads(call("rank", runs / "repeat", "--user", 3, "--k", 5, "--json").stdout)
    logits = [item["logit"] for item in ranking["items"]]
    assert len(logits) == 5
    assert logits == sorted(logits, reverse=True)
    assert any(item["reasons"] for item in ranking["items"])
    shown = call("rank", runs / "repeat", "--user", 3, "--k", 5).stdout
    assert all(item["item_id"] in shown for item in ranking["items"])
    assert "because of" in shown


def test_rank_takes_a_moment_and_candidates(call, runs, tmp_path):
    whole = json.loads(call("rank", runs / "repeat", "--user", 3, "--k", 4, "--json").stdout)
    wanted = [item["item_id"] for item in whole["items"]]
    (tmp_path / "items.txt").write_text("\n".join([*wanted[2:], wanted[2]]) + "\n")
    words = ("rank", runs / "repeat", "--user", 3, "--candidates", wanted[0], "--candidates", f"@{tmp_path}/items.txt")
    answer = call(*words, "--json")
    ranked = json.loads(answer.stdout)
    assert {item["item_id"] for item in ranked["items"]} == {wanted[0], *wanted[2:]}
    assert "given twice" in answer.stderr
    early = json.loads(call("rank", runs / "repeat", "--user", 3, "--at", "2023-06-01", "--json").stdout)
    assert early["history_length"] < whole["history_length"]
    assert early["time_ms"] == datetime(2023, 6, 1, tzinfo=UTC).timestamp() * 1000


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--user", "nobody"), 1, "user must be one of"),
        (("--user", "3", "--at", "yesterday"), 2, "ISO time"),
        (("--user", "3", "--candidates", "no-such-item"), 1, "candidates must be item ids"),
        (("--user", "3", "--candidates", "@no-such-file"), 2, "is no file"),
    ],
)
def test_rank_refuses_what_it_does_not_know(call, runs, words, code, text):
    assert text in call("rank", runs / "repeat", *words, code=code).stderr


def test_candidates_must_be_text(call, runs, tmp_path):
    (tmp_path / "items").write_bytes(b"\xff\xfe1\n")
    words = ("rank", runs / "repeat", "--user", 3, "--candidates", f"@{tmp_path}/items")
    assert "must be UTF-8 text" in call(*words, code=2).stderr


def test_a_damaged_run_is_named(call, prepared, tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in call("evaluate", tmp_path, code=1).stderr
    words = ("train", prepared, "--recipe", "repeat", "--out", tmp_path)
    assert "config.json is damaged" in call(*words, code=1).stderr


def test_rank_refuses_a_folder_that_is_no_run(call, tmp_path):
    assert "RUN must be the folder of a run" in call("rank", tmp_path, "--user", 3, code=1).stderr


def test_a_moment_without_an_offset_is_local_to_the_data():
    assert moment_ms("2017-07-01T12:00", "America/New_York") == moment_ms("2017-07-01T16:00+00:00", "Asia/Tokyo")
    with pytest.raises(SpecError, match="got 'soon'"):
        moment_ms("soon", "UTC")


def test_candidates_keep_their_order_and_stand_once(tmp_path):
    path = tmp_path / "items"
    path.write_text("b\n\n a \n")
    assert read_candidates(["c", f"@{path}", "c"]) == ["c", "b", "a"]


@pytest.mark.slow  # starts two worker processes
def test_compare_trains_tests_and_reports_and_goes_on_where_it_was(call, prepared, tmp_path):
    words = ("compare", prepared, "--models", "popularity,repeat", "--seeds", 2, "--budget", "smoke", "--out", tmp_path)
    first = call(*words)
    assert "Repeat count and recency" in first.stdout
    assert "(baseline)" in first.stdout
    assert (tmp_path / "report.html").is_file()
    again = call(*words, "--json")
    assert "runs are there already" in again.stderr
    assert {row["key"] for row in json.loads(again.stdout)["rows"]} == {"popularity", "repeat"}
    assert "ranked by repeat" in call("rank", tmp_path, "--user", 3, "--k", 2).stdout


def test_compare_refuses_unknown_recipes_before_it_trains(call, prepared, tmp_path):
    words = ("compare", prepared, "--models", "repeat,treess", "--budget", "smoke", "--out", tmp_path / "new")
    assert "Did you mean 'trees'?" in call(*words, code=2).stderr
    assert not (tmp_path / "new").exists()
