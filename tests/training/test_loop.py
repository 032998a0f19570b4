from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from tests.training.test_losses import batch_of
from torch import Tensor, nn

from sostenuto.schema.errors import RunError
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, RequestBatch
from sostenuto.training.config import TrainingConfig
from sostenuto.training.loop import Hooks, Progress, evaluation_points, train
from sostenuto.training.losses import objective_named
from sostenuto.training.validation import Validation


class OneNumber(nn.Module):
    """Says the same logit of every candidate."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(1))

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        return RankerOutput(logits=self.logit.expand(len(candidates.item)))


class Repeated:
    """An epoch of equal batches; remembers from which batch each epoch was asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.count

    def epoch(self, number: int, *, start_batch: int = 0) -> Iterator[RequestBatch]:
        self.asked.append((number, start_batch))
        for _ in range(start_batch, self.count):
            yield batch_of([3], [0, 0, 0], [1, 0, 1])


class Scripted:
    """Validation that follows a script, and a record of what the loop asked for."""

    def __init__(self, gaucs: list[float]) -> None:
        self.gaucs = gaucs
        self.best: list[float] = []
        self.log: list[dict[str, Any]] = []
        self.saved: list[int] = []

    def hooks(self) -> Hooks:
        script = iter(self.gaucs)

        def save(progress: Progress, tensors: Mapping[str, Tensor]) -> None:
            self.saved.append(progress.step)

        return Hooks(
            evaluate=lambda: Validation(gauc=next(script)),
            save_best=lambda validation: self.best.append(validation.gauc),
            save_state=save,
            log=lambda record: self.log.append(dict(record)),
        )

    def steps(self, kind: str) -> list[int]:
        return [record["step"] for record in self.log if record["kind"] == kind]


def run(script: Scripted, config: TrainingConfig, *, batches: int = 8, epochs: int = 3) -> Progress:
    return train(
        OneNumber(), Repeated(batches), config, epochs=epochs, objective=objective_named("bce"), hooks=script.hooks()
    )


def test_validation_is_measured_several_times_an_epoch_and_the_best_is_kept() -> None:
    script = Scripted([0.5, 0.7, 0.6, 0.8, 0.75, 0.72])
    progress = run(script, TrainingConfig(evaluations_per_epoch=2, patience=0))
    assert script.steps("valid") == [4, 8, 12, 16, 20, 24]
    assert script.best == [0.5, 0.7, 0.8]
    assert (progress.best_value, progress.best_step, progress.stopped) == (0.8, 16, "epochs")
    assert script.saved == [4, 8, 12, 16, 20, 24]


def test_the_run_stops_when_validation_no_longer_rises() -> None:
    script = Scripted([0.7, 0.6, 0.7, 0.9])
    progress = run(script, TrainingConfig(evaluations_per_epoch=2, patience=2))
    assert progress.stopped == "patience"
    assert progress.step == 12
    assert script.best == [0.7]  # an equal value is not better


def test_a_limit_of_steps_ends_the_run_with_an_evaluation() -> None:
    script = Scripted([0.5, 0.6])
    progress = run(script, TrainingConfig(evaluations_per_epoch=1, steps=11, save_every_steps=5))
    assert progress.stopped == "steps"
    assert script.steps("valid") == [8, 11]
    assert script.saved == [5, 8, 10, 11]


def test_validation_without_a_metric_saves_weights_all_the_same() -> None:
    script = Scripted([math.nan, 0.4, math.nan])
    progress = run(script, TrainingConfig(evaluations_per_epoch=1, patience=0))
    assert script.best[1:] == [0.4]
    assert progress.best_value == 0.4


def test_a_run_is_taken_up_at_its_batch() -> None:
    loader = Repeated(8)
    script = Scripted([0.5])
    progress = Progress(step=13, epoch=1, batch=5, evaluations=1, best_value=0.6, best_step=8)
    progress = train(
        OneNumber(),
        loader,
        TrainingConfig(evaluations_per_epoch=1),
        epochs=2,
        objective=objective_named("bce"),
        hooks=script.hooks(),
        progress=progress,
    )
    assert loader.asked == [(1, 5)]
    assert progress.step == 16
    assert script.best == []  # 0.5 does not beat the best of before


def test_the_logged_loss_is_the_mean_of_its_window() -> None:
    script = Scripted([0.5])
    run(script, TrainingConfig(evaluations_per_epoch=1, log_every_steps=3, learning_rate=0.0), epochs=1)
    assert script.steps("train") == [3, 6, 8]
    assert [r["loss"] for r in script.log if r["kind"] == "train"] == pytest.approx([math.log(2)] * 3)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where() -> None:
    ranker = OneNumber()
    with torch.no_grad():
        ranker.logit.fill_(math.nan)
    with pytest.raises(RunError, match=r"the loss \(main\) must be finite, it is nan at step 1 \(train requests 0\)"):
        train(
            ranker,
            Repeated(2),
            TrainingConfig(),
            epochs=1,
            objective=objective_named("bce"),
            hooks=Scripted([0.5]).hooks(),
        )


@pytest.mark.parametrize(("batches", "times"), [(1, 4), (3, 4), (10, 4), (7, 1)])
def test_the_last_evaluation_of_an_epoch_is_at_its_end(batches: int, times: int) -> None:
    points = evaluation_points(batches, times)
    assert max(points) == batches
    assert len(points) == min(batches, times)
