"""From a prepared folder and a run config to a run folder: the same way for neural, fitted and rule models."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import shutil
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sostenuto.content.store import open_content
from sostenuto.data.prepared import Array, PreparedData, Requests
from sostenuto.evaluation.predictions import Predictions, load_predictions, training_counts, with_log_facts
from sostenuto.features.collation import Collator
from sostenuto.features.cooccurrence import item_vectors
from sostenuto.features.loading import RequestLoader, sample_rows
from sostenuto.features.negatives import NegativeSampler
from sostenuto.features.priors import priors_of
from sostenuto.features.sequences import SequenceLoader
from sostenuto.features.windows import FutureWindows
from sostenuto.layers.embedding import TimedVectors
from sostenuto.models.saved import check_content, load_ranker, save_ranker
from sostenuto.models.table import build, entry_of
from sostenuto.ops.backend import notice
from sostenuto.schema.content import ItemContent
from sostenuto.schema.errors import DataError, RunError, SpecError
from sostenuto.schema.features import FIRST_KNOWN, FeatureSpec
from sostenuto.schema.histories import RequestBatch
from sostenuto.schema.priors import FutureTargets, Priors
from sostenuto.training.checkpoint import load_state, save_state
from sostenuto.training.config import RunConfig, plain
from sostenuto.training.loop import Hooks, Progress, restore, train
from sostenuto.training.losses import Objective, objective_named
from sostenuto.training.memory import MemoryPlan, plan_memory
from sostenuto.training.optimiser import RankerOptimiser
from sostenuto.training.process_memory import forget_peak, keep_freed, peak_bytes, release_freed
from sostenuto.training.reporting import Reporter, SilentReporter
from sostenuto.training.run_folder import (
    Finished,
    clear_run,
    described,
    finished_of,
    read_run,
    refuse_other_run,
    with_finished,
    write_run,
)
from sostenuto.training.run_log import RunLog
from sostenuto.training.validation import Validation, validate, validation_of

CALIBRATION_BATCHES = 24  # about 30,000 candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A finished run."""

    folder: Path
    config: RunConfig
    finished: Finished


def device_named(name: str) -> torch.device:
    """Return the device of `training.device`; auto takes a GPU where there is one."""
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise SpecError("training.device must be one that is here, got 'cuda' without a GPU; take auto or cpu")
    return torch.device("cuda" if name != "cpu" and has_gpu else "cpu")


@contextlib.contextmanager
def process_settings(config: RunConfig, device: torch.device) -> Generator[int]:
    """Seed, thread count and determinism of a run; the process gets its own back afterwards. Yields the threads.

    On a CPU, sums that several threads make with atomics are made in order instead: without it a resumed run of two
    threads would not repeat itself.
    """
    threads = torch.get_num_threads()
    determinism = torch.get_deterministic_debug_mode()
    filling: Any = torch.utils.deterministic
    fill = filling.fill_uninitialized_memory
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    try:
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        if device.type == "cpu":
            # what `use_deterministic_algorithms` sets, without its loading a compiler of 70 MB
            torch.set_deterministic_debug_mode("error")
            filling.fill_uninitialized_memory = False  # costs time and guards nothing here
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(config.training.seed)
            yield torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(determinism)
        filling.fill_uninitialized_memory = fill


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """Return the config with another seed of training, and of the model where it has one of its own (trees)."""
    model_config = config.model_config
    if any(f.name == "seed" for f in dataclasses.fields(model_config)):
        model_config = dataclasses.replace(model_config, seed=seed)
    return dataclasses.replace(
        config, model_config=model_config, training=dataclasses.replace(config.training, seed=seed)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What the three kinds of run share."""

    data: PreparedData
    out: Path
    config: RunConfig
    collator: Collator
    train: RequestLoader | SequenceLoader
    valid: RequestLoader
    lists: tuple[str, ...]
    device: torch.device
    reporter: Reporter
    content: Mapping[str, ItemContent]  # {} unless the model reads some
    priors: Priors | None  # of a model that asks for some

    def save(self, ranker: Any, predictions: Predictions, numbers: Mapping[str, Any]) -> None:
        """Put weights and validation predictions in place of what was there."""
        extra = {
            "view": plain(self.config.view),
            "recipe": self.config.name,
            "data": {"name": self.data.manifest.name, "arrays_hash": self.data.manifest.arrays_hash},
            "valid": {name: _finite(value) for name, value in numbers.items()},
        }
        partial, model = self.out / "model.partial", self.out / "model"
        shutil.rmtree(partial, ignore_errors=True)
        hashes = {name: part.arrays_hash for name, part in self.content.items()}
        config = self.config
        save_ranker(partial, config.model, config.model_config, self.collator.features, ranker, extra, hashes)
        shutil.rmtree(model, ignore_errors=True)
        partial.rename(model)
        predictions.save(self.out / "predictions" / "valid.npz")

    def validate(self, ranker: Any) -> tuple[Validation, Predictions]:
        """Score the validation requests."""
        return validate(
            ranker,
            self.valid,
            self.lists,
            self.device,
            metric=self.config.training.metric,
            exclude_seen=self.config.training.exclude_seen,
        )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open(data: Path | PreparedData, out: Path, config: RunConfig, device: torch.device, reporter: Reporter) -> _Run:
    opened = data if isinstance(data, PreparedData) else PreparedData(data)
    protocol = opened.manifest.protocol
    if protocol is None:
        raise DataError(f"{opened.folder} must hold requests, it has no protocol; prepare it with one")
    collator = Collator(opened, config.view)
    train, valid = opened.requests("train"), opened.requests("valid")
    for split, requests in (("train", train), ("valid", valid)):
        if not len(requests):
            raise DataError(f"{split} must hold requests, {opened.folder} has none; prepare it with other split times")
    budget, training = config.budget, config.training
    entry = entry_of(config.model)
    if training.metric != "gauc" and entry.objective not in {"next_item", "loss_along"}:
        raise SpecError(
            f"training.metric must be gauc for a model that does not search the catalogue, got {training.metric!r} for "
            f"{config.model}; leave it out"
        )
    rows = sample_rows(train, budget.train, budget.seed)
    priors = None
    if entry.kind == "neural" and objective_named(entry.objective).needs_window:
        priors = priors_of(opened, config.model_config.targets.prior)
    return _Run(
        data=opened,
        out=out,
        config=config,
        collator=collator,
        train=(
            _sequences(collator, train, rows, config, objective_named(entry.objective), priors)
            if entry.kind == "neural" and objective_named(entry.objective).batches == "sequences"
            else RequestLoader(
                collator,
                train,
                rows,
                batch_requests=training.batch_requests,
                seed=training.seed if entry.kind == "neural" else None,
                prefetch=training.prefetch,
            )
        ),
        valid=RequestLoader(
            collator,
            valid,
            sample_rows(valid, budget.valid, budget.seed),
            batch_requests=training.evaluation_batch_requests,
            prefetch=training.prefetch,
        ),
        lists=protocol.lists,
        device=device,
        reporter=reporter,
        content=content_of(config.model, opened, collator.features, device),
        priors=priors,
    )


def content_of(
    model: str, data: PreparedData, features: FeatureSpec, device: torch.device | str = "cpu"
) -> dict[str, ItemContent]:
    """Open the content of items that a model reads, by name; {} for one that reads none."""
    kinds = entry_of(model).content
    if not kinds:
        return {}
    return {name: part.to(device) for name, part in open_content(data, features.content, kinds).items()}


def _sequences(
    collator: Collator, requests: Requests, rows: Array, config: RunConfig, objective: Objective, priors: Priors | None
) -> SequenceLoader:
    training = config.training
    negatives = windows = None
    targets: FutureTargets | None = config.model_config.targets if objective.needs_window else None
    if targets is not None:
        windows = FutureWindows(collator.data, moments=targets.moments, per_moment=targets.per_moment)
    if objective.needs_negatives:
        by_group = targets is not None and targets.draws_by_group
        negatives = NegativeSampler(
            training_counts(collator.data),
            count=training.negatives,
            power=training.negative_power,
            log_q=training.log_q,
            draws=training.negative_draws,
            groups=priors.items.numpy() if priors is not None and by_group else None,
        )
        if not training.first_moments:
            rows = rows[np.asarray(requests.prefix)[rows] > 0]
    if training.listwise and not objective.is_listwise:
        raise SpecError(
            f"training.listwise must be 0 for a model that trains on targets alone, got {training.listwise}; leave it"
        )
    return SequenceLoader(
        collator,
        requests,
        rows,
        batch_requests=training.batch_requests,
        seed=training.seed,
        prefetch=training.prefetch,
        requests_per_pass=training.requests_per_pass,
        negatives=negatives,
        windows=windows,
    )


def _take_folder(out: Path, wanted: dict[str, Any], *, resume: bool, reporter: Reporter) -> dict[str, Any]:
    """Return config.json's contents: those of the run that is there and may go on, or `wanted`, written."""
    if (out / "config.json").is_file() and resume:
        there = read_run(out)
        refuse_other_run(out, there, wanted)
        for name in ("threads", "device", "versions"):
            if there[name] != wanted[name] and there["finished"] is None:
                reporter.note(f"{name} were {there[name]} and are {wanted[name]}: numbers may differ in the last bits")
        return there
    if (out / "config.json").is_file():
        clear_run(out)
    elif out.is_dir() and any(out.iterdir()):
        raise RunError(f"the run folder must be empty or hold a run, {out} holds other files; take another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_run(out, wanted)
    return wanted


def run_training(
    data: Path | PreparedData,
    out: Path,
    config: RunConfig,
    *,
    reporter: Reporter | None = None,
    resume: bool = True,
) -> RunResult:
    """Train (or fit, or only measure) one model on prepared data and leave a whole run folder.

    A run that was killed goes on where its last saved state was, to the same numbers; a finished one is returned as
    it is.

    Args:
        data:     prepared folder.
        out:      run folder, made when missing.
        config:   the whole run.
        reporter: told what happens; silent when None.
        resume:   False starts anew and deletes the run that is in `out`.

    Raises:
        RunError: the folder holds a run of another config or of other data, or numbers stopped being finite.
    """
    reporter = reporter or SilentReporter()
    entry = entry_of(config.model)
    device = device_named(config.training.device) if entry.kind == "neural" else torch.device("cpu")
    with process_settings(config, device) as threads:
        opened = data if isinstance(data, PreparedData) else PreparedData(data)
        wanted = described(config, opened, threads=threads, device=device.type)
        there = _take_folder(Path(out), wanted, resume=resume, reporter=reporter)
        if (finished := finished_of(there)) is not None:
            return RunResult(folder=Path(out), config=config, finished=finished)
        forget_peak()
        run = _open(opened, Path(out), config, device, reporter)
        ranker: Any = build(config.model, config.model_config, run.collator.features, seed=config.training.seed)
        if entry.kind == "neural":
            ranker = ranker.to(device)
        if entry.content:
            ranker.take_content(run.content)
        if entry.kind == "neural":
            finished = _run_neural(run, ranker, entry.objective, there)
        else:
            finished = _run_fitted(run, ranker, entry.kind, there)
        write_run(run.out, with_finished(there, finished))
        shutil.rmtree(run.out / "resume", ignore_errors=True)
    return RunResult(folder=run.out, config=config, finished=finished)


def ready_to_train(
    data: PreparedData, config: RunConfig, device: torch.device, reporter: Reporter | None = None
) -> tuple[Any, RequestLoader | SequenceLoader]:
    """Return a fresh calibrated ranker and the loader of its training batches, for a closer look at training.

    Call it inside `process_settings`; nothing is written.
    """
    run = _open(data, Path(), config, device, reporter or SilentReporter())
    ranker: Any = build(config.model, config.model_config, run.collator.features, seed=config.training.seed)
    ranker = ranker.to(device)
    if run.content:
        ranker.take_content(run.content)
    _calibrate(run, ranker)
    return ranker, run.train


def _record_plan(run: _Run, there: dict[str, Any], plan: MemoryPlan) -> None:
    run.reporter.plan(plan)
    there["memory_plan"] = plan.as_json()
    write_run(run.out, there)


def _calibrate(run: _Run, ranker: Any) -> None:
    """Let a ranker set what depends on the data: priors, fixed item vectors, knots of numbers."""
    if run.priors is not None:
        ranker.take_priors(
            run.priors, run.collator.assembler.items(run.priors.anchors.flatten().numpy()).to(run.device)
        )
    if hasattr(ranker, "calibrate"):
        training = run.config.training
        loader = RequestLoader(
            run.collator,
            run.train.requests,
            run.train.rows,
            batch_requests=training.batch_requests,
            seed=training.seed,
            prefetch=training.prefetch,
        )
        stream = loader.epoch(0)
        with contextlib.closing(cast("Generator[RequestBatch]", stream)):
            batches = (batch.to(run.device) for batch in itertools.islice(stream, CALIBRATION_BATCHES))
            ranker.calibrate(batches, lambda dim: _item_vectors(run, dim))


def _item_vectors(run: _Run, dim: int) -> TimedVectors:
    """Return the fixed item vectors; say so when most items have none, because the networks lean on them."""
    vectors = item_vectors(run.data, dim)
    owners = vectors.last[FIRST_KNOWN : run.data.features.num_item_rows, :dim]
    known = int(owners.any(1).sum())
    if 2 * known < len(owners):
        run.reporter.note(
            f"only {known:,} of {len(owners):,} items have a fixed vector, because few events are shared by users; "
            "set model_config.item_dim=8 or more to give items trained rows"
        )
    return TimedVectors(
        last=torch.from_numpy(vectors.last),
        past=torch.from_numpy(vectors.past),
        starts_ms=torch.from_numpy(vectors.starts_ms),
    )


def _run_neural(run: _Run, ranker: nn.Module, objective_name: str, there: dict[str, Any]) -> Finished:
    training = run.config.training
    objective = objective_named(objective_name)
    if run.device.type == "cpu":
        keep_freed()
        run.reporter.note(notice())
    saved = load_state(run.out / "resume")
    _calibrate(run, ranker)  # also before going on: past versions of the item vectors are not part of the state
    plan = plan_memory(
        ranker,
        run.config,
        data=run.data,
        train_loader=run.train,
        valid_loader=run.valid,
        objective=objective,
        device=run.device,
        restoring=sum(t.nbytes for t in saved[0].values()) if saved else 0,
    )
    _record_plan(run, there, plan)
    optimiser = RankerOptimiser(ranker, training)
    progress, log_bytes = Progress(), 0
    if saved is not None:
        tensors, fields = saved
        log_bytes = fields.pop("log_bytes")
        progress = Progress(**fields)
        restore(ranker, optimiser, tensors)
        run.reporter.note(f"going on after step {progress.step}")
    del saved
    latest: list[Predictions] = []
    with RunLog(run.out / "log.jsonl", keep_bytes=log_bytes, tensorboard=training.tensorboard) as log:

        def evaluate() -> Validation:
            release_freed()  # what a step leaves in the heap would otherwise add to what scoring takes
            validation, predictions = run.validate(ranker)
            release_freed()
            latest[:] = [predictions]
            return validation

        def save_best(validation: Validation) -> None:
            run.save(ranker, latest[0], validation.numbers())

        def save(now: Progress, tensors: Mapping[str, Tensor]) -> None:
            save_state(run.out / "resume", tensors, now.as_json() | {"log_bytes": log.size})

        progress = train(
            ranker,
            run.train,
            training,
            epochs=run.config.budget.epochs,
            objective=objective,
            hooks=Hooks(evaluate=evaluate, save_best=save_best, save_state=save, log=log.write, reporter=run.reporter),
            optimiser=optimiser,
            progress=progress,
            device=run.device,
            name=run.config.name,
        )
    parameters = sum(p.numel() for p in ranker.parameters() if p.requires_grad)
    return _finish(run, plan, progress, parameters=parameters)


def _run_fitted(run: _Run, ranker: Any, kind: str, there: dict[str, Any]) -> Finished:
    plan = plan_memory(
        ranker,
        run.config,
        data=run.data,
        train_loader=run.train,
        valid_loader=run.valid,
        objective=None,
        device=run.device,
    )
    _record_plan(run, there, plan)
    start = time.monotonic()
    with RunLog(run.out / "log.jsonl", tensorboard=run.config.training.tensorboard) as log:
        if kind == "fitted":
            run.reporter.note(f"fitting {run.config.name} on {len(run.train.rows):,} requests")
            numbers = ranker.fit(run.train, run.valid)
            log.write({"kind": "fit", **numbers, "elapsed_s": round(time.monotonic() - start, 3)})
        validation, predictions = run.validate(ranker)
        elapsed = time.monotonic() - start
        place = {"step": 0, "epoch": 1.0 if kind == "fitted" else 0.0}
        numbers = validation.numbers()
        log.write({"kind": "valid", **place, **numbers, "best": True, "elapsed_s": round(elapsed, 3)})
        run.reporter.evaluated(validation, True, None)
        run.save(ranker, predictions, numbers)
    return _finish(run, plan, Progress(stopped=kind, elapsed_s=elapsed), parameters=0)


def _finish(run: _Run, plan: MemoryPlan, progress: Progress, *, parameters: int) -> Finished:
    """Give the validation predictions the facts of the whole log, and sum the run up."""
    path = run.out / "predictions" / "valid.npz"
    predictions = with_log_facts(load_predictions(path), run.data, "valid")
    predictions.save(path)
    validation = validation_of(predictions, run.lists)
    peak = peak_bytes()
    return Finished(
        steps=progress.step,
        stopped=progress.stopped,
        best_step=progress.best_step,
        gauc=_finite(validation.gauc),
        by_list={name: _finite(value) for name, value in validation.by_list.items()},
        logloss=_finite(validation.logloss),
        seconds=round(progress.elapsed_s, 3),
        parameters=parameters,
        peak_rss_mb=round(peak / 2**20, 1) if peak else None,
        planned_peak_mb=round(plan.peak / 2**20, 1),
        metric=run.config.training.metric,
        best_value=_finite(progress.best_value),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run opened for use."""

    folder: Path
    config: RunConfig
    ranker: Any  # the saved one; a neural ranker is in evaluation mode
    data: PreparedData
    collator: Collator
    finished: Finished | None  # None: the run is not over, the ranker is the best so far


def open_run(folder: Path | str, data: Path | str | None = None) -> Run:
    """Open a run with its model and data.

    Args:
        folder: run folder.
        data:   where the prepared folder is now; as recorded when None. It must hold the data of the run.
    """
    from sostenuto.training.run_folder import config_of

    folder = Path(folder)
    there = read_run(folder)
    config = config_of(folder)
    opened = PreparedData(data if data is not None else there["data"]["folder"])
    if opened.manifest.arrays_hash != there["data"]["arrays_hash"]:
        raise RunError(
            f"data.arrays_hash must be {there['data']['arrays_hash'][:12]}... as in the run {folder}, "
            f"{opened.folder} has {opened.manifest.arrays_hash[:12]}...; open the run with the data it was made on"
        )
    saved, meta = load_ranker(folder / "model")
    ranker: Any = saved
    if entry_of(config.model).content:
        content = content_of(config.model, opened, meta["features"])
        check_content(meta, content)
        ranker.take_content(content)
    return Run(
        folder=folder,
        config=config,
        ranker=ranker,
        data=opened,
        collator=Collator(opened, config.view),
        finished=finished_of(there),
    )


__all__ = [
    "Run",
    "RunResult",
    "content_of",
    "device_named",
    "open_run",
    "process_settings",
    "ready_to_train",
    "run_training",
    "with_seed",
]
