from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.toy_prepared import write_toy

from sostenuto.data.prepared import PreparedData
from sostenuto.evaluation.predictions import Predictions, load_predictions, predict
from sostenuto.features.loading import RequestLoader, sample_rows
from sostenuto.models.saved import read_meta
from sostenuto.models.table import MODELS, default_config, missing_extras
from sostenuto.schema.errors import RunError
from sostenuto.training.checkpoint import load_state
from sostenuto.training.config import Budget, RunConfig, TrainingConfig
from sostenuto.training.loop import Progress
from sostenuto.training.reporting import SilentReporter
from sostenuto.training.run import open_run, run_training, with_seed
from sostenuto.training.run_folder import clear_run, read_run
from sostenuto.training.run_log import read_log
from sostenuto.training.validation import validation_of

TRAINING = TrainingConfig(
    learning_rate=1e-3, batch_requests=12, evaluations_per_epoch=2, log_every_steps=1, save_every_steps=3
)
BUDGET = Budget(name="toy", train=96, valid=24, test=24, epochs=2)


def config_for(model: str, **training: Any) -> RunConfig:
    config = default_config(model)
    if model == "trees":
        config = dataclasses.replace(config, leaves_grid=(7,), min_leaf_grid=(5,), max_trees=20)
    if model == "din":  # dropout and running statistics, so that a resume has something to forget
        config = dataclasses.replace(config, dropout=0.2, id_dropout=0.1)
    return RunConfig(
        name=model,
        model=model,
        model_config=config,
        training=dataclasses.replace(TRAINING, **training),
        budget=BUDGET,
    )


def losses(folder: Path) -> list[tuple[Any, ...]]:
    keys = ("kind", "step", "loss", "gauc", "logloss", "grad_norm", "learning_rate", "touched_rows")
    return [tuple(record.get(key) for key in keys) for record in read_log(folder / "log.jsonl")]


def same_files(first: Path, second: Path) -> bool:
    return first.read_bytes() == second.read_bytes()


class Interrupt(SilentReporter):
    """Pulls the plug at some steps, once each."""

    def __init__(self, *steps: int) -> None:
        self.steps = set(steps)

    def stepped(self, progress: Progress, loss: float, events_per_s: float) -> None:
        if progress.step in self.steps:
            self.steps.remove(progress.step)
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(toy: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of DIN."""
    folder = Path(tmp_path_factory.mktemp("whole")) / "run"
    run_training(toy, folder, config_for("din"))
    return folder


def test_an_interrupted_run_goes_on_to_the_same_bits(toy: PreparedData, whole: Path, tmp_path: Path) -> None:
    # step 2: nothing saved yet; 5: between saves; 9: right after the end of an epoch and a save; 14: near the end
    reporter = Interrupt(2, 5, 9, 14)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            run_training(toy, tmp_path / "run", config_for("din"), reporter=reporter)
    result = run_training(toy, tmp_path / "run", config_for("din"), reporter=reporter)
    assert result.finished.steps == 16
    assert losses(tmp_path / "run") == losses(whole)
    assert same_files(tmp_path / "run/model/weights.safetensors", whole / "model/weights.safetensors")
    ours, theirs = (load_predictions(f / "predictions/valid.npz").logit for f in (tmp_path / "run", whole))
    assert np.array_equal(ours, theirs)
    assert not (tmp_path / "run" / "resume").exists()


@pytest.mark.slow
def test_an_interrupted_run_of_two_threads_goes_on_to_the_same_bits(toy: PreparedData, tmp_path: Path) -> None:
    config = config_for("din", threads=2, steps=8)
    run_training(toy, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run_training(toy, tmp_path / "run", config, reporter=Interrupt(5))
    run_training(toy, tmp_path / "run", config)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert same_files(tmp_path / "run/model/weights.safetensors", tmp_path / "whole/model/weights.safetensors")


def test_the_same_run_twice_gives_the_same_bits_and_another_seed_does_not(
    toy: PreparedData, whole: Path, tmp_path: Path
) -> None:
    run_training(toy, tmp_path / "again", config_for("din"))
    run_training(toy, tmp_path / "other", with_seed(config_for("din"), 1))
    assert losses(tmp_path / "again") == losses(whole)
    assert losses(tmp_path / "other") != losses(whole)


def test_a_run_leaves_the_process_as_it_was(toy: PreparedData, tmp_path: Path) -> None:
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run_training(toy, tmp_path / "run", config_for("logistic", threads=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_of_another_config_or_other_data_is_refused_by_field(
    toy: PreparedData, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"training\.learning_rate must be 0\.001 .* got 0\.1"):
        run_training(toy, whole, config_for("din", learning_rate=0.1))
    other = write_toy(tmp_path / "other", seed=1)
    with pytest.raises(RunError, match=r"data\.arrays_hash"):
        run_training(other, whole, config_for("din"))


def test_a_field_that_came_after_a_run_has_its_default_there(toy: PreparedData, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    stored = json.loads(path.read_text())
    del stored["config"]["training"]["max_events"]
    path.write_text(json.dumps(stored))
    assert run_training(toy, tmp_path / "old", config_for("din")).finished.steps == 16
    with pytest.raises(RunError, match=r"training\.max_events must be 524288 .* got 9"):
        run_training(toy, tmp_path / "old", config_for("din", max_events=9))


def test_a_folder_of_other_files_is_left_alone(toy: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(RunError, match="holds other files"):
        run_training(toy, tmp_path, config_for("popularity"))
    clear_run(tmp_path)
    assert (tmp_path / "letter.txt").is_file()


def test_a_finished_run_is_returned_without_work_and_started_anew_on_demand(
    toy: PreparedData, whole: Path, tmp_path: Path
) -> None:
    stamp = (whole / "log.jsonl").stat().st_mtime_ns
    result = run_training(toy, whole, config_for("din"))
    assert result.finished.steps == 16
    assert (whole / "log.jsonl").stat().st_mtime_ns == stamp
    first = run_training(toy, tmp_path / "run", config_for("popularity")).finished
    (tmp_path / "run" / "metrics.json").write_text("{}")
    second = run_training(toy, tmp_path / "run", config_for("repeat"), resume=False).finished
    assert first.gauc != second.gauc
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("model", [name for name in MODELS if not missing_extras(MODELS[name])])
def test_every_model_leaves_the_same_kind_of_folder(model: str, toy: PreparedData, tmp_path: Path) -> None:
    result = run_training(toy, tmp_path / "run", config_for(model, steps=4))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "log.jsonl",
        "model",
        "predictions",
    ]
    told = json.loads((tmp_path / "run" / "config.json").read_text(), parse_constant=pytest.fail)
    assert told["finished"]["gauc"] == result.finished.gauc
    assert told["data"]["arrays_hash"] == toy.manifest.arrays_hash
    assert told["memory_plan"]["peak"] > 0
    assert {"torch", "numpy"} <= set(told["versions"])
    assert read_meta(tmp_path / "run" / "model")["extra"]["view"] == {"recent": None, "match": True, "content": None}
    kinds = [record["kind"] for record in read_log(tmp_path / "run" / "log.jsonl")]
    assert "valid" in kinds
    assert ("fit" in kinds) == (MODELS[model].kind == "fitted")

    run = open_run(tmp_path / "run")
    requests = toy.requests("valid")
    rows = sample_rows(requests, BUDGET.valid, BUDGET.seed)
    again = predict(run.ranker, RequestLoader(run.collator, requests, rows, batch_requests=5))
    kept = load_predictions(tmp_path / "run" / "predictions" / "valid.npz")
    np.testing.assert_allclose(again.logit, kept.logit, atol=1e-5, rtol=1e-5)
    validation = validation_of(kept, ("even", "odd"))
    assert result.finished.gauc == pytest.approx(validation.gauc)
    assert result.finished.by_list == pytest.approx(validation.by_list)


def test_validation_is_the_mean_over_lists_of_gauc_by_request() -> None:
    zeros = np.zeros(8)
    predictions = Predictions(
        request=np.array([0, 0, 0, 0, 1, 1, 1, 1]),
        user=zeros,
        list_id=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        item=zeros,
        label=np.array([1, 0, 1, 0, 1, 0, 0, 0]),
        logit=np.array([2.0, 1, 0, 5, 1, 0, 3, 4]),
        time_ms=zeros,
        seen_length=zeros,
        history_length=zeros,
        prior_count=zeros,
        item_count=zeros,
        is_new_item=zeros,
    )
    validation = validation_of(predictions, ("promoted", "window"))
    # promoted: both requests are right; window: request 0 is wrong, request 1 has one class and is dropped
    assert validation.by_list == {"promoted": 1.0, "window": 0.0}
    assert validation.gauc == 0.5


def test_opening_a_run_on_other_data_is_refused(whole: Path, tmp_path: Path) -> None:
    write_toy(tmp_path / "other", seed=1)
    with pytest.raises(RunError, match="open the run with the data it was made on"):
        open_run(whole, tmp_path / "other")


KILLED = """
import sys
from pathlib import Path
from tests.training.test_run import config_for
from sostenuto.training.reporting import SilentReporter
from sostenuto.training.run import run_training

class Slow(SilentReporter):
    def stepped(self, progress, loss, events_per_s):
        import time
        time.sleep(float(sys.argv[3]))

run_training(Path(sys.argv[1]), Path(sys.argv[2]), config_for("din"), reporter=Slow())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_process_goes_on_to_the_same_bits(toy: PreparedData, whole: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    out = tmp_path / "run"

    def start(pause: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", KILLED, str(toy.folder), str(out), str(pause)]
        return subprocess.Popen(command, env=environment, cwd=root)

    for wanted in (3, 6, 12):  # kill as soon as a state of that step is on disk
        process = start(0.3)
        deadline = time.monotonic() + 120
        while (state := load_state(out / "resume")) is None or state[1]["step"] < wanted:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert read_run(out)["finished"] is None
    assert start(0.0).wait(timeout=120) == 0
    reference = tmp_path / "reference"
    run_training(toy, reference, config_for("din", threads=None))
    assert losses(out) == losses(reference) == losses(whole)
    assert same_files(out / "model/weights.safetensors", whole / "model/weights.safetensors")
