from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import pytest
from tests.training.test_run import config_for

from sostenuto.data.prepared import PreparedData
from sostenuto.schema.errors import MissingExtra
from sostenuto.training.memory import MemoryPlan
from sostenuto.training.reporting import RichReporter
from sostenuto.training.run import run_training
from sostenuto.training.run_log import RunLog, read_log


def test_a_person_sees_plan_metric_and_nothing_on_stdout(
    toy: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    run_training(toy, tmp_path / "run", config_for("din", steps=8), reporter=RichReporter(stream))
    told = " ".join(stream.getvalue().split())
    assert "Memory plan" in told
    assert "activations, heaviest batch" in told
    assert "step 8: validation GAUC by request" in told
    assert capsys.readouterr().out == ""


def test_a_person_is_told_when_items_have_no_fixed_vectors(
    toy: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sostenuto.features.cooccurrence import ItemVectors, item_vectors
    from sostenuto.training import run

    def without_last(data: PreparedData, dim: int) -> ItemVectors:
        made = item_vectors(data, dim)
        return dataclasses.replace(made, last=0.0 * made.last)

    monkeypatch.setattr(run, "item_vectors", without_last)
    stream = io.StringIO()
    run_training(toy, tmp_path / "run", config_for("mean_pool", steps=2), reporter=RichReporter(stream))
    assert "set model_config.item_dim=8" in " ".join(stream.getvalue().split())


def test_a_terminal_gets_a_bar_with_speed_and_time_left(
    toy: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    run_training(toy, tmp_path / "run", config_for("din", steps=8), reporter=RichReporter(stream))
    assert "events/s" in stream.getvalue()
    assert "left" in stream.getvalue()


def test_advice_is_printed_with_a_plan_that_does_not_fit() -> None:
    stream = io.StringIO()
    RichReporter(stream).plan(MemoryPlan(process=1 << 20, advice="lower something"))
    assert "lower something" in stream.getvalue()


def test_tensorboard_files_are_written_on_demand(toy: PreparedData, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run_training(toy, tmp_path / "run", config_for("din", steps=2, tensorboard=True))
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_without_tensorboard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"sostenuto\[tensorboard\]"):
        RunLog(tmp_path / "log.jsonl", tensorboard=True)


def test_a_log_goes_on_where_the_saved_state_was_and_forgets_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.write({"kind": "train", "step": 1, "loss": 0.5})
        kept = log.size
        log.write({"kind": "train", "step": 2, "loss": float("nan")})
    with path.open("a") as file:
        file.write('{"kind": "tr')
    assert [record["loss"] for record in read_log(path)] == [0.5, None]
    with RunLog(path, keep_bytes=kept) as log:
        log.write({"kind": "train", "step": 2, "loss": 0.25})
    assert [(record["step"], record["loss"]) for record in read_log(path)] == [(1, 0.5), (2, 0.25)]
