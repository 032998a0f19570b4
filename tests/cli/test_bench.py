"""sostenuto bench: tables for people, JSON for scripts, a picture."""

import json
import statistics

import pytest

from sostenuto.bench.measurements import MEASUREMENTS

QUICK = ("bench", "match_index", "attention_50", "--quick")


def test_json_has_limits_work_times_and_shares(call):
    said = json.loads(call(*QUICK, "--rounds", 3, "--json").stdout)
    assert said["settings"] == {"rounds": 3, "threads": 1, "seed": 0, "quick": True}
    assert said["machine"]["processor"]
    assert said["limits"]["compute"] > 0
    assert [row["row_bytes"] for row in said["limits"]["memory"]["rows"]] == [64, 128, 256]
    assert [one["name"] for one in said["measurements"]] == ["match_index", "attention_50"]
    for one in said["measurements"]:
        ours, plain = one["ours_s"], one["plain_s"]
        assert len(ours) == len(plain) == 3
        assert one["seconds"] == statistics.median(ours)
        assert one["ratio"] == pytest.approx(statistics.median(p / o for o, p in zip(ours, plain, strict=True)))
        assert one["share"] == pytest.approx(one["bound"]["seconds"] / one["seconds"])
        assert one["operations_per_s"] == pytest.approx(one["work"]["operations"] / one["seconds"])
        assert one["bound"]["limit"] in {"compute", "bandwidth", "gather"}
    assert said["measurements"][0]["naive_ratio"] is None
    assert said["measurements"][1]["naive_ratio"] > 0


def test_the_tables_fit_120_columns_and_show_the_limits_first(call):
    answer = call(*QUICK)
    lines = answer.stdout.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 120
    limits = next(i for i, line in enumerate(lines) if line.startswith("Limits of the machine, 1 thread"))
    assert limits < next(i for i, line in enumerate(lines) if line.startswith("match_index"))
    assert "measuring attention_50 (2 of 2)" in answer.stderr


def test_the_list_names_all_and_measures_nothing(call):
    answer = call("bench", "--list")
    assert answer.stderr == ""
    assert all(name in answer.stdout for name in MEASUREMENTS)
    assert max(len(line.rstrip()) for line in answer.stdout.splitlines()) <= 120
    assert [one["name"] for one in json.loads(call("bench", "--list", "--json").stdout)] == list(MEASUREMENTS)


def test_a_picture_is_written(call, tmp_path):
    path = tmp_path / "new" / "roofline.svg"
    call(*QUICK, "--picture", path)
    assert path.read_text(encoding="utf-8").startswith("<svg ")


def test_an_unknown_name_is_refused_before_anything_is_measured(call):
    answer = call("bench", "gauc", "match_indx", code=2)
    assert "Did you mean 'match_index'?" in answer.stderr
    assert "measuring" not in answer.stderr


def test_a_wrong_backend_ends_in_one_line(call, monkeypatch):
    from sostenuto.native import library

    monkeypatch.setenv("SOSTENUTO_BACKEND", "fast")
    library._resolved.cache_clear()
    try:
        answer = call("bench", "bucket_lookup", "--quick", code=1)
    finally:
        monkeypatch.undo()
        library._resolved.cache_clear()
    assert "SOSTENUTO_BACKEND must be auto, plain or native, got 'fast'" in answer.stderr
