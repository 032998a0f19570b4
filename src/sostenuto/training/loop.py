"""The training loop of neural rankers: plain steps, with everything that touches files or people passed in."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from sostenuto.features.batch_parts import batch_parts
from sostenuto.schema.errors import RunError
from sostenuto.training.checkpoint import random_state, restore_random_state
from sostenuto.training.config import TrainingConfig
from sostenuto.training.losses import Batch, Objective, loss_of, shares_of
from sostenuto.training.optimiser import RankerOptimiser, StepReport, learning_rate_share, table_parameters
from sostenuto.training.reporting import Reporter, SilentReporter

if TYPE_CHECKING:
    from sostenuto.training.validation import Validation  # brings what measuring needs, a step does not


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a run is. Together with weights, optimiser and random state it is all that a resume needs."""

    step: int = 0  # optimiser steps done
    epoch: int = 0  # epochs finished
    batch: int = 0  # batches of the current epoch done
    evaluations: int = 0
    last_evaluation: int = -1  # step of it
    best_value: float | None = None  # of the metric that steers the run
    best_step: int = 0
    without_better: int = 0  # evaluations in a row
    window_loss: float = 0.0  # sum over the steps since the last log line
    window_steps: int = 0
    elapsed_s: float = 0.0  # over all processes that worked on the run
    stopped: str = ""  # why the run ended: epochs, steps or patience

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


class Batches(Protocol):
    """What the loop needs of a loader."""

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def epoch(self, number: int, *, start_batch: int = 0) -> Iterator[Batch]:
        """Yield an epoch from a batch on; the same order for the same number."""
        ...


def _no_record(record: Mapping[str, Any]) -> None:
    """Drop a log record."""


def _no_best(validation: Validation) -> None:
    """Keep no weights."""


def _no_state(progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Save nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What happens around the steps."""

    evaluate: Callable[[], Validation]
    save_best: Callable[[Validation], None] = _no_best  # the weights are the best on validation so far
    save_state: Callable[[Progress, Mapping[str, Tensor]], None] = _no_state
    log: Callable[[Mapping[str, Any]], None] = _no_record
    reporter: Reporter = dataclasses.field(default_factory=SilentReporter)


def state_tensors(ranker: nn.Module, optimiser: RankerOptimiser) -> dict[str, Tensor]:
    """Return weights, buffers, optimiser state and random state as named tensors."""
    weights = {f"ranker.{name}": value for name, value in ranker.state_dict().items()}
    states = {f"optimiser.{name}": value for name, value in optimiser.tensors().items()}
    return weights | states | random_state()


def restore(ranker: nn.Module, optimiser: RankerOptimiser, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` gave."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    ranker.load_state_dict(under("ranker."))
    optimiser.load_tensors(under("optimiser."))
    restore_random_state(tensors)


def steps_planned(batches: int, epochs: int, config: TrainingConfig) -> int:
    """Return the steps of a run that is not stopped early."""
    steps = batches * epochs
    return steps if config.steps is None else min(steps, config.steps)


def evaluation_points(batches: int, times: int) -> frozenset[int]:
    """Return after how many batches of an epoch validation is measured: evenly spread, the last at its end.

    >>> sorted(evaluation_points(10, 4))
    [3, 5, 8, 10]
    """
    return frozenset(-(-batches * k // times) for k in range(1, times + 1))


def train_step(
    ranker: nn.Module,
    batch: Batch,
    optimiser: RankerOptimiser,
    objective: Objective,
    config: TrainingConfig,
    share: float,
    step: int,
) -> tuple[float, StepReport]:
    """Make one gradient step; refuse to go on when loss or gradients are not finite.

    Gradients of the parts of a batch add up before the step; see `training.max_events`.

    Args:
        share: multiplies the learning rates.
        step:  number of the step, for the error.
    """
    value = accumulate(ranker, batch, objective, config, step)
    report = optimiser.step(share)
    if not math.isfinite(report.grad_norm):
        bad = optimiser.non_finite()
        what = f"the gradient of {', '.join(bad[:5])}" + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise RunError(_not_finite(what, report.grad_norm, step, batch))
    return value, report


def accumulate(ranker: nn.Module, batch: Batch, objective: Objective, config: TrainingConfig, step: int = 0) -> float:
    """Add the gradient of a batch's loss to the parameters, one pass after another; return the loss."""
    share = shares_of(batch, weighting=config.weighting, listwise=config.listwise)
    rows = _RowGradients(ranker)
    value = 0.0
    for part in batch_parts(batch, config.max_events):
        with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            output = objective.output(ranker, part.batch)
        output = dataclasses.replace(output, logits=output.logits.float())
        loss = loss_of(objective, output, part.batch, share.of(part.candidates), aux_share=part.share)
        value += float(loss.total.detach())
        if not math.isfinite(value):
            bad = [name for name, term in loss.parts.items() if not bool(torch.isfinite(term).all())]
            raise RunError(_not_finite(f"the loss ({', '.join(bad) or 'total'})", value, step, part.batch))
        loss.total.backward()  # type: ignore[no-untyped-call]
        if part.share < 1.0:
            rows.set_aside()
    rows.put_back()
    return value


class _RowGradients:
    """Keeps the sparse gradients of passes apart: added one by one, every pass would copy all rows before it."""

    def __init__(self, ranker: nn.Module) -> None:
        self.tables = list(table_parameters(ranker).values())
        self.kept: list[list[Tensor]] = [[] for _ in self.tables]

    def set_aside(self) -> None:
        """Take the gradients of a pass."""
        for table, kept in zip(self.tables, self.kept, strict=True):
            if table.grad is not None and table.grad.is_sparse:
                kept.append(table.grad)
                table.grad = None

    def put_back(self) -> None:
        """Give every table one gradient that holds the rows of all passes, repeated ones side by side."""
        for table, kept in zip(self.tables, self.kept, strict=True):
            if kept:
                index = torch.cat([gradient._indices() for gradient in kept], 1)
                values = torch.cat([gradient._values() for gradient in kept])
                table.grad = torch.sparse_coo_tensor(index, values, kept[0].shape, check_invariants=False)


def _not_finite(what: str, value: float, step: int, batch: Batch) -> str:
    rows = batch.request.tolist()
    shown = ", ".join(map(str, rows[:4])) + (" ..." if len(rows) > 4 else "")
    return (
        f"{what} must be finite, it is {value} at step {step} (train requests {shown}); lower training.learning_rate "
        "or training.max_grad_norm, raise training.warmup_steps, or look at the values of these requests"
    )


class _Speed:
    """Counts what went through since the last log line, evaluation time left out."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.requests = self.candidates = self.events = 0
        self.since = time.perf_counter()
        self.paused = 0.0

    def count(self, batch: Batch) -> None:
        self.requests += len(batch.request)
        self.candidates += int(batch.labels.shape[0])
        self.events += int(batch.histories.item.shape[0])

    @contextlib.contextmanager
    def pause(self) -> Generator[None]:
        start = time.perf_counter()
        yield
        self.paused += time.perf_counter() - start

    def rates(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.since - self.paused, 1e-9)
        return {
            "requests_per_s": round(self.requests / seconds, 2),
            "candidates_per_s": round(self.candidates / seconds, 1),
            "events_per_s": round(self.events / seconds, 1),
        }


def train(
    ranker: nn.Module,
    loader: Batches,
    config: TrainingConfig,
    *,
    epochs: int,
    objective: Objective,
    hooks: Hooks,
    optimiser: RankerOptimiser | None = None,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    name: str = "training",
) -> Progress:
    """Train until the epochs or steps are over or the validation metric no longer rises.

    Validation is measured `evaluations_per_epoch` times an epoch; the best weights are handed to `save_best`. State is
    handed to `save_state` at every evaluation, every `save_every_steps` steps and every `save_every_s` seconds. With
    the same state, data and thread count the steps that follow are the same, bit for bit.

    Args:
        ranker:    trained in place; ends with the last weights, not the best.
        loader:    batches by epoch.
        config:    learning rates, weighting, patience ...
        epochs:    at most.
        objective: of the ranker: what is asked of it, and the main loss.
        hooks:     what to do at evaluations, saves and log lines.
        optimiser: of the ranker; new when None. Pass it, restored, when resuming.
        progress:  where to go on; the beginning when None.
        device:    where batches are moved; the ranker is there already.
        name:      shown to people.

    Returns:
        the final progress; `stopped` says why it ended.
    """
    optimiser = optimiser or RankerOptimiser(ranker, config)
    progress = progress or Progress()
    batches_per_epoch = len(loader)
    total = steps_planned(batches_per_epoch, epochs, config)
    points = evaluation_points(batches_per_epoch, config.evaluations_per_epoch)
    speed = _Speed()
    before, started = progress.elapsed_s, time.monotonic()
    last_save = started

    def save() -> None:
        nonlocal last_save
        last_save = time.monotonic()
        hooks.save_state(progress, state_tensors(ranker, optimiser))

    def evaluate() -> None:
        validation = hooks.evaluate()
        progress.evaluations += 1
        progress.last_evaluation = progress.step
        progress.elapsed_s = before + time.monotonic() - started
        is_best = progress.best_value is None or validation.value > progress.best_value
        if is_best:
            progress.best_value = None if math.isnan(validation.value) else validation.value
            progress.best_step, progress.without_better = progress.step, 0
        else:
            progress.without_better += 1
        position = {"step": progress.step, "epoch": progress.epoch + progress.batch / batches_per_epoch}
        elapsed = {"elapsed_s": round(progress.elapsed_s, 3)}
        hooks.log({"kind": "valid"} | position | validation.numbers() | {"best": is_best} | elapsed)
        hooks.reporter.evaluated(validation, is_best, progress)
        if is_best:
            hooks.save_best(validation)
        elif config.patience and progress.without_better >= config.patience:
            progress.stopped = "patience"

    hooks.reporter.started(name, total, progress)
    ranker.train()
    try:
        while progress.epoch < epochs and not progress.stopped and progress.step < total:
            stream = loader.epoch(progress.epoch, start_batch=progress.batch)
            with contextlib.closing(cast("Generator[Batch]", stream)):
                for batch in stream:
                    speed.count(batch)
                    share = learning_rate_share(progress.step, total, config)
                    loss, report = train_step(
                        ranker, batch.to(device), optimiser, objective, config, share, progress.step + 1
                    )
                    progress.step += 1
                    progress.batch += 1
                    progress.window_loss += loss
                    progress.window_steps += 1
                    progress.elapsed_s = before + time.monotonic() - started
                    rates = speed.rates()
                    hooks.reporter.stepped(progress, loss, rates["events_per_s"])
                    if progress.step % config.log_every_steps == 0 or progress.step == total:
                        hooks.log(
                            {
                                "kind": "train",
                                "step": progress.step,
                                "epoch": progress.epoch + progress.batch / batches_per_epoch,
                                "loss": progress.window_loss / progress.window_steps,
                                "learning_rate": config.learning_rate * share,
                                "grad_norm": report.grad_norm,
                                "touched_rows": report.touched_rows,
                                **rates,
                                "elapsed_s": round(progress.elapsed_s, 3),
                            }
                        )
                        progress.window_loss, progress.window_steps = 0.0, 0
                        speed.restart()
                    by_steps = config.save_every_steps and progress.step % config.save_every_steps == 0
                    with speed.pause():
                        if progress.batch in points or progress.step == total:
                            evaluate()
                            save()
                        elif by_steps or time.monotonic() - last_save >= config.save_every_s:
                            save()
                    if progress.stopped or progress.step == total:
                        break
            if progress.batch == batches_per_epoch and not progress.stopped:
                progress.epoch += 1
                progress.batch = 0
        if not progress.stopped:
            progress.stopped = "steps" if total < batches_per_epoch * epochs else "epochs"
    finally:
        hooks.reporter.finished()
    return progress


__all__ = [
    "Batches",
    "Hooks",
    "Progress",
    "accumulate",
    "evaluation_points",
    "restore",
    "state_tensors",
    "steps_planned",
    "train",
    "train_step",
]
