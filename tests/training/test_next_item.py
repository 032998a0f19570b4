"""Runs of models that search the catalogue: what steers them, what they leave, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.test_run import BUDGET, Interrupt
from tests.training.toy_prepared import write_toy

from sostenuto.data.prepared import PreparedData
from sostenuto.evaluation.catalogue import rank_catalogue
from sostenuto.evaluation.full_ranking import ranked_items
from sostenuto.features.collation import Collator
from sostenuto.features.loading import RequestLoader, sample_rows
from sostenuto.features.view import HistoryView
from sostenuto.models.table import build, default_config
from sostenuto.schema.errors import DataError, SpecError
from sostenuto.training import memory
from sostenuto.training.config import RunConfig, TrainingConfig
from sostenuto.training.run import open_run, run_training
from sostenuto.training.run_log import read_log

TRAINING = TrainingConfig(
    learning_rate=5e-3,
    table_learning_rate=5e-3,
    batch_requests=12,
    negatives=20,
    evaluations_per_epoch=2,
    log_every_steps=1,
    metric="ndcg@10",
    weighting="candidate",
)


def config_for(model: str, **training: Any) -> RunConfig:
    return RunConfig(
        name=model,
        model=model,
        model_config=default_config(model),
        view=HistoryView(recent=20, match=False),
        training=dataclasses.replace(TRAINING, **training),
        budget=BUDGET,
    )


def records(folder: Path) -> list[tuple[Any, ...]]:
    keys = ("kind", "step", "loss", "ndcg@10", "recall@10", "gauc", "grad_norm", "best")
    return [tuple(record.get(key) for key in keys) for record in read_log(folder / "log.jsonl")]


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("model", ["sasrec", "hstu"])
def test_the_saved_model_is_the_best_by_its_rank_in_the_catalogue(
    toy: PreparedData, tmp_path: Path, model: str, exclude_seen: bool
) -> None:
    folder = tmp_path / "run"
    finished = run_training(toy, folder, config_for(model, exclude_seen=exclude_seen)).finished
    measured = {r["step"]: r["ndcg@10"] for r in read_log(folder / "log.jsonl") if r["kind"] == "valid"}
    assert finished.best_value == max(measured.values()) == measured[finished.best_step]
    assert finished.metric == "ndcg@10"
    run = open_run(folder, toy.folder)
    rows = sample_rows(toy.requests("valid"), BUDGET.valid, BUDGET.seed)
    standing = rank_catalogue(run.ranker, run.collator, "valid", rows=rows, exclude_seen=exclude_seen)
    assert standing.terms("ndcg", 10).terms.value == pytest.approx(finished.best_value, abs=1e-6)


def test_a_killed_run_goes_on_to_the_same_numbers(toy: PreparedData, tmp_path: Path) -> None:
    config = config_for("sasrec")
    run_training(toy, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run_training(toy, tmp_path / "killed", config, reporter=Interrupt(7))
    run_training(toy, tmp_path / "killed", config)
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    first, second = (tmp_path / name / "model" / "weights.safetensors" for name in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes()


def test_only_models_that_search_are_steered_by_the_catalogue(toy: PreparedData, tmp_path: Path) -> None:
    config = dataclasses.replace(config_for("din"), training=TrainingConfig(metric="ndcg@10"))
    with pytest.raises(SpecError, match=r"training\.metric must be gauc"):
        run_training(toy, tmp_path / "run", config)


def test_gauc_still_steers_a_search_when_asked(toy: PreparedData, tmp_path: Path) -> None:
    finished = run_training(toy, tmp_path / "run", config_for("sasrec", metric="gauc")).finished
    assert finished.metric == "gauc"
    assert np.isclose(finished.best_value or 0.0, finished.gauc or 1.0)
    assert all("ndcg@10" not in record for record in read_log(tmp_path / "run" / "log.jsonl"))


@pytest.mark.parametrize("first_moments", [False, True])
def test_a_first_moment_is_a_target_when_asked(tmp_path: Path, first_moments: bool) -> None:
    """What an empty history asks for is learnt from first moments, and from nothing else."""
    folder = write_toy(tmp_path / "toy").folder
    prefix = np.load(folder / "requests" / "train" / "prefix.npy")
    prefix[::3] = 0
    np.save(folder / "requests" / "train" / "prefix.npy", prefix)
    config = config_for("sasrec", first_moments=first_moments)
    run_training(folder, tmp_path / "run", config)
    run = open_run(tmp_path / "run")
    fresh: Any = build("sasrec", config.model_config, run.collator.features, seed=config.training.seed)
    assert torch.equal(fresh.start, run.ranker.start) != first_moments


def test_the_memory_plan_counts_the_ranking_of_the_catalogue(
    toy: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    collator = Collator(toy, HistoryView(recent=20, match=False))
    # few candidates and a catalogue ranked at once: the scores of all items outweigh those of the candidates
    loader = RequestLoader(collator, toy.requests("valid"), np.arange(40), batch_requests=40)
    ranker: Any = build("sasrec", default_config("sasrec"), collator.features)
    cpu = torch.device("cpu")
    assert memory.searching_bytes(ranker, loader, cpu) >= 4 * len(loader.rows) * len(ranked_items(toy))
    monkeypatch.setattr(memory, "searching_bytes", lambda *_: 1 << 40)

    def planned(metric: str) -> int:
        config = config_for("sasrec", metric=metric)
        plan = memory.plan_memory(
            ranker, config, data=toy, train_loader=loader, valid_loader=loader, objective=None, device=cpu
        )
        return plan.evaluation

    assert planned("ndcg@10") == 1 << 40 > planned("gauc")


def test_a_catalogue_without_items_is_refused_before_the_first_step(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "toy", num_items=4, num_categories=1, candidates=1)
    with pytest.raises(DataError, match="catalogue must hold an item"):
        run_training(data, tmp_path / "run", config_for("sasrec"))
    log = tmp_path / "run" / "log.jsonl"
    assert not log.is_file() or not read_log(log)
