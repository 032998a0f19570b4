"""A prepared folder is whole or not there, whenever the power fails."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from sostenuto.data import finishing
from sostenuto.data.finishing import partial_folder
from sostenuto.data.preparation import prepare
from sostenuto.data.prepared import PreparedData
from sostenuto.data.spec import load_spec
from sostenuto.schema.errors import DataError

SPEC = """
name = "killed"
[events]
files = "log.csv"
user = "user"
item = "item"
time = { column = "time", unit = "s" }
"""

CHILD = """
import os, signal, sys
from sostenuto.data import finishing, preparation
from sostenuto.data.spec import load_spec

stage, spec, out = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def progress(name, done, total):
    if name == stage and done:
        die()

if stage == "sync":
    finishing.sync_tree = die
if stage == "manifest":
    preparation.write_manifest = die
preparation.prepare(load_spec(spec), out, memory_mb=64, overwrite=True, progress=progress)
"""


@pytest.fixture
def spec_path(tmp_path):
    rng = np.random.default_rng(0)
    pl.DataFrame(
        {
            "user": rng.integers(0, 30, 500),
            "item": rng.integers(0, 60, 500),
            "time": 1_600_000_000 + rng.integers(0, 10_000_000, 500),
        }
    ).write_csv(tmp_path / "log.csv")
    (tmp_path / "spec.toml").write_text(SPEC, encoding="utf-8")
    return tmp_path / "spec.toml"


@pytest.mark.parametrize(
    "stage",
    [
        "read",
        pytest.param("sort", marks=pytest.mark.slow),
        "write",
        pytest.param("requests", marks=pytest.mark.slow),
        pytest.param("manifest", marks=pytest.mark.slow),
        "sync",
    ],
)
def test_a_killed_run_leaves_nothing_that_looks_whole(spec_path, tmp_path, stage):
    out = tmp_path / "out"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, stage, str(spec_path), str(out)], capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not out.exists()
    (leftover,) = tmp_path.glob("out.partial-*")
    if stage != "sync":  # by then everything is written, under a name that nobody reads
        with pytest.raises(DataError, match=r"manifest\.json"):
            PreparedData(leftover)
    data = prepare(load_spec(spec_path), out)
    assert data.manifest.counts["events"] == 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out", "spec.toml"]
    assert sorted(path.name for path in out.iterdir()) == [
        "behaviours",
        "items.parquet",
        "manifest.json",
        "rejects.parquet",
        "requests",
        "vocab",
    ]


def test_a_kill_between_the_two_moves_of_an_overwrite_keeps_the_old_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    for text in ("old", "new"):
        if text == "new":
            monkeypatch.setattr(finishing, "_sync_folder", lambda folder: None)
            out.rename(tmp_path / "out.replaced-0123abcd")  # what the kill left
        with partial_folder(out, overwrite=True) as folder:
            if text == "new":
                assert (out / "manifest.json").read_text(encoding="utf-8") == "old"
            (folder / "manifest.json").write_text(text, encoding="utf-8")
    assert (out / "manifest.json").read_text(encoding="utf-8") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_do_not_build_one_folder_at_once(tmp_path):
    out = tmp_path / "out"
    with (
        partial_folder(out, overwrite=False) as folder,
        pytest.raises(DataError, match="one run at a time"),
        partial_folder(out, overwrite=False),
    ):
        pass
    assert not out.exists() or not folder.exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="is a file"), partial_folder(tmp_path / "out", overwrite=True):
        pass
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_an_interrupt_removes_the_partial_folder(tmp_path):
    def interrupted():
        with partial_folder(tmp_path / "out", overwrite=False) as folder:
            (folder / "x").write_text("y", encoding="utf-8")
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored when the tests run in a background job
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []
