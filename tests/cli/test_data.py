"""From a synthetic log to prepared data by the verbs alone."""

import json

import polars as pl
import pytest

from sostenuto.data.sources import SOURCES
from sostenuto.data.worlds import WORLDS


@pytest.fixture(scope="module")
def log(call, tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    call("data", "synth", "drift", "--out", folder, "--events", 2_000, "--seed", 3)
    return folder


def test_list_names_every_data_set_and_world(call):
    listed = json.loads(call("data", "list", "--json").stdout)
    assert [row["name"] for row in listed["data_sets"]] == list(SOURCES)
    assert [row["name"] for row in listed["worlds"]] == list(WORLDS)
    assert all(row["how_to_get"] and row["terms"] for row in listed["data_sets"])
    shown = call("data", "list").stdout
    assert all(name in shown for name in [*SOURCES, *WORLDS])


def test_an_unknown_data_set_is_refused_with_the_nearest(call):
    assert "Did you mean 'complete-journey'?" in call("data", "get", "complete-jurney", code=2).stderr


def test_a_folder_without_the_files_says_what_is_missing(call, tmp_path):
    answer = call("data", "prepare", "foursquare-nyc", "--from", tmp_path, "--out", tmp_path / "out", code=1)
    assert "foursquare-nyc needs" in answer.stderr


def test_a_spec_takes_no_from(call, log, tmp_path):
    answer = call("data", "prepare", log / "spec.toml", "--from", tmp_path, "--out", tmp_path / "out", code=2)
    assert "--from must go with a built-in data set" in answer.stderr


def test_a_synthetic_log_is_prepared_and_shown(call, log, tmp_path):
    out = tmp_path / "prepared"
    made = json.loads(call("data", "prepare", log / "spec.toml", "--out", out, "--json").stdout)
    assert made["counts"]["events"] == 2_000
    shown = call("data", "show", out)
    assert made["arrays_hash"] in shown.stdout
    assert json.loads(call("data", "show", out, "--json").stdout)["arrays_hash"] == made["arrays_hash"]
    again = json.loads(call("data", "prepare", log / "spec.toml", "--out", out, "--overwrite", "--json").stdout)
    assert again["arrays_hash"] == made["arrays_hash"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 1}'])
def test_a_damaged_manifest_is_named(call, tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    assert "manifest" in call("data", "show", tmp_path, code=1).stderr


def test_a_seed_is_not_negative(call, log, tmp_path):
    words = ("data", "prepare", log / "spec.toml", "--out", tmp_path / "out", "--seed", -1)
    assert "--seed" in call(*words, code=2).stderr


def test_an_existing_folder_is_not_overwritten_unasked(call, log, tmp_path):
    (tmp_path / "kept").write_text("mine")
    call("data", "prepare", log / "spec.toml", "--out", tmp_path, code=1)
    assert (tmp_path / "kept").read_text() == "mine"


def test_validate_counts_what_it_read_and_what_it_refuses(call, log, tmp_path):
    events = pl.read_parquet(log / "events.parquet")
    bad = events.with_columns(pl.when(pl.int_range(pl.len()) < 3).then(None).otherwise(pl.col("user")).alias("user"))
    for name in ("items.parquet", "exposures.parquet", "spec.toml"):
        (tmp_path / name).write_bytes((log / name).read_bytes())
    bad.write_parquet(tmp_path / "events.parquet")
    report = json.loads(call("data", "validate", tmp_path / "spec.toml", "--out", tmp_path / "out", "--json").stdout)
    assert report["tables"]["events"] == {"read": 2_000, "kept": 1_997, "rejected": 3}
    assert report["read"] == report["kept"] + report["rejected"]
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert rejects["row"].to_list() == [1, 2, 3]
    shown = call("data", "validate", tmp_path / "spec.toml").stdout
    assert "2,000" in shown
    assert "1,997" in shown


def test_validate_ends_with_1_on_a_problem_when_asked_to(call, log):
    spec = (
        (log / "spec.toml")
        .read_text()
        .replace('label = "label"', 'label = "label"\n[exposures.candidate_fields]\ntruth = "numeric"')
    )
    table = pl.read_parquet(log / "exposures.parquet")
    table.with_columns((pl.col("label") * 2.0 + 0.5).alias("truth")).write_parquet(log / "leaking.parquet")
    (log / "leaking.toml").write_text(spec.replace("exposures.parquet", "leaking.parquet"))
    assert "truth" in call("data", "validate", log / "leaking.toml", "--strict", code=1).stdout
    call("data", "validate", log / "leaking.toml")
    call("data", "validate", log / "spec.toml", "--strict")


def test_prepared_data_are_exported_in_a_published_format(call, tmp_path):
    from sostenuto.data.worlds import world_prepared

    data = world_prepared("mixed_content", tmp_path / "world", events=1_500, requests=40)
    shown = call("data", "export", data.folder, "--out", tmp_path / "out", "--content", "text", "--length", 20).stdout
    assert "vectors" in shown
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("train-shard-00000.parquet", "train-shard-00001.parquet", "test-shard-00000.parquet"),
        "scl_embedding_int8_p90.parquet",
    }
    assert "must be empty" in call("data", "export", data.folder, "--out", tmp_path / "out", code=1).stderr
