from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.test_run import config_for
from tests.training.toy_prepared import write_toy

from sostenuto.data.prepared import PreparedData
from sostenuto.features.collation import Collator
from sostenuto.features.loading import RequestLoader, sample_rows
from sostenuto.features.view import HistoryView
from sostenuto.models.table import MODELS, build, missing_extras
from sostenuto.training import memory
from sostenuto.training.losses import objective_named
from sostenuto.training.memory import LiveBytes, MemoryPlan, load_of, plan_memory, training_bytes
from sostenuto.training.optimiser import RankerOptimiser

CPU = torch.device("cpu")


def test_live_bytes_counts_storages_once_and_until_they_are_freed() -> None:
    before = torch.ones(1000)
    with LiveBytes() as live:
        live.ignore([before])
        view = before[:10].reshape(2, 5)
        first = before * 2  # 4,000 bytes
        second = first.reshape(10, 100)[0]  # a view of it
        assert (live.now, live.most) == (4000, 4000)
        third = first + 1
        assert live.now == 8000
        del first, second
        assert (live.now, live.most) == (4000, 8000)
        third.add_(1)
        assert live.most == 8000
    assert view.shape == (2, 5)


@pytest.mark.parametrize("recent", [None, 7])
def test_batches_are_weighed_as_they_will_be(toy: PreparedData, recent: int | None) -> None:
    requests = toy.requests("train")
    loader = RequestLoader(
        Collator(toy, HistoryView(recent=recent)), requests, sample_rows(requests, 50, 0), batch_requests=8, seed=3
    )
    load = load_of(loader, range(2))
    batches = [batch for epoch in range(2) for batch in loader.epoch(epoch)]
    assert load.events.tolist() == [len(b.histories.item) for b in batches]
    assert load.candidates.tolist() == [len(b.labels) for b in batches]
    assert load.pairs.tolist() == [int((b.histories.lengths * b.candidates.lengths).sum()) for b in batches]
    assert int(np.argmax(load.pairs)) in load.heaviest()


def test_a_trial_step_leaves_no_trace(toy: PreparedData) -> None:
    config = config_for("din")
    collator = Collator(toy, config.view)
    ranker = build("din", config.model_config, collator.features, seed=0)
    assert isinstance(ranker, torch.nn.Module)
    ranker.eval()
    before = {name: value.clone() for name, value in ranker.state_dict().items()}
    random = torch.get_rng_state()
    batch = collator.batch(toy.requests("train"), np.arange(12))
    used = training_bytes(ranker, batch, objective_named("bce"), config.training)
    assert used > 0
    assert not ranker.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in ranker.parameters())
    assert all(torch.equal(value, before[name]) for name, value in ranker.state_dict().items())


@pytest.mark.parametrize("optimiser", ["adam", "rowwise_adam", "adagrad", "rowwise_adagrad"])
def test_optimiser_state_is_as_planned(toy: PreparedData, optimiser: str) -> None:
    config = config_for("din", table_optimiser=optimiser)
    collator = Collator(toy, config.view)
    ranker = build("din", dataclasses.replace(config.model_config, item_dim=8), collator.features, seed=0)
    assert isinstance(ranker, torch.nn.Module)
    state = RankerOptimiser(ranker, config.training)
    batch = collator.batch(toy.requests("train"), np.arange(12))
    ranker(batch.histories, batch.candidates, batch.context).logits.sum().backward()
    state.step(1.0)
    held = sum(value.nbytes for name, value in state.tensors().items() if not name.endswith(".step"))
    assert memory.optimiser_bytes(ranker, config.training) == held


def test_a_batch_that_would_not_fit_is_never_tried(toy: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for("din")
    collator = Collator(toy, config.view)
    tried: list[int] = []
    whole = memory.training_bytes

    def watched(*arguments: object) -> int:
        tried.append(arguments[1].histories.num_rows)  # type: ignore[attr-defined]
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(memory, "training_bytes", watched)
    monkeypatch.setattr(memory, "available_bytes", lambda: 50_000)
    train, valid = toy.requests("train"), toy.requests("valid")
    plan = plan_memory(
        build("din", config.model_config, collator.features),
        config,
        data=toy,
        train_loader=RequestLoader(collator, train, np.arange(60), batch_requests=12, seed=0),
        valid_loader=RequestLoader(collator, valid, np.arange(24), batch_requests=12),
        objective=objective_named("bce"),
        device=CPU,
    )
    assert tried == [memory.LIGHT_REQUESTS]
    assert not plan.tried
    assert plan.activations > 50_000
    assert "training.batch_requests=" in plan.advice


def test_the_peak_is_the_sum_of_what_stands_and_the_largest_of_what_passes() -> None:
    plan = MemoryPlan(process=1000, tables=100, optimiser=200, batches=10, gradients=5, activations=30, evaluation=20)
    assert plan.passing == 10 + 35
    assert plan.peak == 1000 + 100 + 200 + 45 + plan.holes
    assert dataclasses.replace(plan, fitting=500).peak == 1300 + 510 + plan.holes
    assert dataclasses.replace(plan, highest_so_far=9999).peak == 9999
    assert json.loads(json.dumps(plan.as_json()))["peak"] == plan.peak


def in_a_process(code: str, *arguments: str) -> str:
    """Run code that may import tests in a fresh interpreter of one thread; return what it prints."""
    root = Path(__file__).parents[2]
    places = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, env=environment, cwd=root, check=True, stdout=subprocess.PIPE, text=True, timeout=600
    )
    return done.stdout


MEASURED = """
import sys
from pathlib import Path
from dataclasses import replace
from tests.training.test_run import config_for
from sostenuto.training.config import Budget
from sostenuto.training.run import run_training

config = config_for(sys.argv[3], batch_requests=24, evaluation_batch_requests=24, evaluations_per_epoch=1, steps=3)
run_training(Path(sys.argv[1]), Path(sys.argv[2]), replace(config, budget=Budget(name="all", epochs=1)))
"""


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Long histories, many candidates and large tables: what a run adds is not lost beside the libraries."""
    return write_toy(
        Path(tmp_path_factory.mktemp("heavy")),
        users=30,
        events=2500,
        num_items=150_000,
        num_categories=200,
        train_requests=150,
        valid_requests=48,
        candidates=60,
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("model", [name for name in MODELS if not missing_extras(MODELS[name])])
def test_the_plan_is_within_a_fifth_of_the_measured_peak(model: str, heavy: PreparedData, tmp_path: Path) -> None:
    in_a_process(MEASURED, str(heavy.folder), str(tmp_path / "run"), model)
    finished = json.loads((tmp_path / "run" / "config.json").read_text())["finished"]
    assert 0.8 <= finished["planned_peak_mb"] / finished["peak_rss_mb"] <= 1.2, finished


LOADED = """
import sys
from pathlib import Path
from tests.training.test_run import config_for
from sostenuto.training.run import run_training

run_training(Path(sys.argv[1]), Path(sys.argv[2]), config_for(sys.argv[3]))
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


@pytest.mark.parametrize("model", ["din", "sdim"])
def test_a_run_loads_no_compiler(model: str, toy: PreparedData, tmp_path: Path) -> None:
    printed = in_a_process(LOADED, str(toy.folder), str(tmp_path / "run"), model)
    assert printed.splitlines()[-1] == "[]", "70 MB that nothing here needs"


STEPS = """
import sys
import sostenuto.training.loop, sostenuto.training.losses, sostenuto.training.optimiser, sostenuto.models.din
print([name for name in ("polars", "pydantic", "scipy", "torch._dynamo") if name in sys.modules])
"""


def test_what_a_step_needs_reads_no_tables_and_measures_nothing() -> None:
    assert in_a_process(STEPS).splitlines()[-1] == "[]", "45 MB that a step does not need"
