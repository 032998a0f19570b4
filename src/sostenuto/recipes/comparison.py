"""Several recipes, several seeds, one table: trains what is missing, measures all on the same requests, reports.

out/runs/<recipe>/seed<k>/   run folders; a comparison that was killed goes on with them
out/comparison.json          what the report shows
out/report.html              opens without server or network
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sostenuto.recipes import recipe_named
from sostenuto.schema.errors import RunError, SpecError
from sostenuto.training.config import apply_overrides, budget_named, from_dict, to_dict

if TYPE_CHECKING:
    from sostenuto.data.prepared import PreparedData
    from sostenuto.reports.assembling import RunGroup
    from sostenuto.reports.comparison import ComparisonResult, TrainingCurve
    from sostenuto.training.config import RunConfig
    from sostenuto.training.reporting import Reporter

BASELINES = (
    "trees",
    "logistic",
    "repeat",
    "popularity",
)  # the first that is compared is what others are tested against
STARTING_COST = {"din": 60, "sdim": 40, "mean_pool": 20, "trees": 15, "logistic": 10}  # longest first, for two workers


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of a comparison."""

    recipe: str
    seed: int
    config: RunConfig
    folder: Path


def planned_runs(
    out: Path, recipes: Sequence[str], seeds: Sequence[int], budget: str, changes: Sequence[str]
) -> list[PlannedRun]:
    """List every run; recipes without anything random run once.

    Raises:
        SpecError: no recipes, a name twice, or a change that no recipe knows.
    """
    from sostenuto.models.table import entry_of
    from sostenuto.training.run import with_seed

    if not recipes or len(set(recipes)) != len(recipes):
        raise SpecError(f"recipes must be one or more distinct names, got {', '.join(recipes) or 'none'}")
    plan = []
    for name in recipes:
        config = replace(recipe_named(name), budget=budget_named(budget))
        config = apply_overrides(config, list(changes))
        is_random = entry_of(config.model).kind == "neural" or any(
            f.name == "seed" for f in fields(config.model_config)
        )
        for seed in seeds if is_random else seeds[:1]:
            folder = out / "runs" / name / f"seed{seed}"
            plan.append(PlannedRun(recipe=name, seed=seed, config=with_seed(config, seed), folder=folder))
    return plan


def _train(data: str, folder: str, config: dict[str, Any]) -> float:
    """Run in a worker process: train one run to its end and score its test requests; return the seconds."""
    from sostenuto.training.measuring import predictions_of
    from sostenuto.training.run import open_run, run_training

    start = time.monotonic()
    run_training(Path(data), Path(folder), from_dict(config))
    predictions_of(open_run(folder, data), "test")
    return time.monotonic() - start


def run_comparison(
    data: Path,
    out: Path,
    *,
    recipes: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    budget: str = "demo",
    baseline: str | None = None,
    changes: Sequence[str] = (),
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> ComparisonResult:
    """Train, measure and report.

    Args:
        data:     prepared folder.
        out:      folder of the comparison; finished runs of the same config and data there are taken as they are.
        recipes:  names; each becomes one row.
        seeds:    of training; all rows share requests and candidates.
        budget:   name of the budget.
        baseline: recipe that the others are tested against; default trees, else logistic, repeat, popularity.
        changes:  overrides for every recipe.
        workers:  processes that train at the same time, one thread each; default one per core, two at most.
        reporter: told what happens.
    """
    from sostenuto.data.prepared import PreparedData
    from sostenuto.reports.assembling import assemble_comparison
    from sostenuto.reports.comparison_report import write_report
    from sostenuto.reports.data_summary import summarise_data
    from sostenuto.training.reporting import SilentReporter
    from sostenuto.training.run_folder import versions

    reporter = reporter or SilentReporter()
    if baseline is not None and baseline not in recipes:
        raise SpecError(f"baseline must be one of the compared recipes {', '.join(recipes)}, got {baseline!r}")
    opened = PreparedData(data)
    plan = planned_runs(Path(out), recipes, seeds, budget, changes)
    count = workers or min(2, os.cpu_count() or 1)
    _refuse_other_runs(plan, opened)
    _train_all(opened.folder, plan, count, reporter)
    reporter.note("measuring and testing")
    groups = [_group(name, [run for run in plan if run.recipe == name], opened) for name in recipes]
    chosen = baseline or next((name for name in BASELINES if name in recipes), recipes[0])
    protocol = opened.manifest.protocol
    result = assemble_comparison(
        groups,
        title=f"{opened.manifest.name}: {len(recipes)} rankers, {budget} budget",
        lists=protocol.lists if protocol is not None else ("all",),
        baseline=chosen,
        data=summarise_data(opened),
        budget=_budget_text(budget),
        seeds=seeds,
        settings=_settings_text(plan),
        versions=versions(),
        command=_command(data, out, recipes, seeds, budget, baseline, changes),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    result.save(Path(out) / "comparison.json")
    write_report(Path(out) / "report.html", result)
    return result


def _refuse_other_runs(plan: Sequence[PlannedRun], data: PreparedData) -> None:
    """Refuse a folder whose runs have another config or other data: their numbers would stand under a wrong name."""
    from sostenuto.training.run_folder import data_identity, read_run, refuse_other_run

    for run in plan:
        if (run.folder / "config.json").is_file():
            wanted = {"config": to_dict(run.config), "data": data_identity(run.config, data)}
            refuse_other_run(run.folder, read_run(run.folder), wanted)


def _train_all(data: Path, plan: Sequence[PlannedRun], workers: int, reporter: Reporter) -> None:
    """Bring every planned run to its end, several processes at a time, longest first."""
    todo = [run for run in plan if not (run.folder / "predictions" / "test.npz").is_file()]
    if len(todo) < len(plan):
        reporter.note(f"{len(plan) - len(todo)} of {len(plan)} runs are there already")
    if not todo:
        return
    todo.sort(key=lambda run: -_starting_cost(run.config))
    start, done = time.monotonic(), 0.0
    total = sum(_starting_cost(run.config) for run in todo)
    reporter.note(f"{len(todo)} runs to go, {workers} at a time; details in {plan[0].folder.parents[1]}/*/*/log.jsonl")
    # spawned, one thread each: rankers of this size gain more from two processes than from two threads
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread
    )
    with pool:
        futures = {pool.submit(_train, str(data), str(run.folder), to_dict(run.config)): run for run in todo}
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            run = futures[future]
            try:
                seconds = future.result()
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                if isinstance(error, concurrent.futures.process.BrokenProcessPool):
                    raise RunError(
                        f"a training process ended before its time while {run.recipe} seed {run.seed} was waited for "
                        "(out of memory?); call compare again to go on, with one worker if memory is short"
                    ) from error
                raise
            done += _starting_cost(run.config)
            left = (time.monotonic() - start) * (total - done) / done
            found = _finished_gauc(run.folder)
            reporter.note(
                f"[{number}/{len(todo)}] {run.recipe} seed {run.seed}: validation GAUC by request {found}, "
                f"{seconds:,.0f} s; about {left:,.0f} s left"
            )


def _one_thread() -> None:
    """Give each worker one thread, before torch or LightGBM starts its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _starting_cost(config: RunConfig) -> float:
    """Guess how long a run takes against others, for the order and the time left; never for a result."""
    cost = float(STARTING_COST.get(config.model, 3))
    return max(3.0, cost / 4) if config.view.recent is not None and config.view.recent < 200 else cost


def _finished_gauc(folder: Path) -> str:
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["finished"]["gauc"]
    return "-" if found is None else f"{found:.4f}"


def _group(name: str, runs: Sequence[PlannedRun], data: PreparedData) -> RunGroup:
    from sostenuto.evaluation.predictions import load_predictions
    from sostenuto.models.table import entry_of
    from sostenuto.recipes.cost import measure_cost
    from sostenuto.reports.assembling import RunGroup

    config = runs[0].config
    entry = entry_of(config.model)
    view = config.view
    return RunGroup(
        key=name,
        model=config.model,
        title=entry.title,
        kind=entry.kind,
        seeds=[load_predictions(run.folder / "predictions" / "test.npz") for run in runs],
        history="full" if view.recent is None else f"newest {view.recent}",
        match=view.match,
        cost=measure_cost([run.folder for run in runs], data),
        training=tuple(curve for run in runs if (curve := _curve(run)) is not None),
    )


def _curve(run: PlannedRun) -> TrainingCurve | None:
    from sostenuto.reports.comparison import TrainingCurve
    from sostenuto.training.run_log import read_log

    lines = list(read_log(run.folder / "log.jsonl"))
    steps = [line for line in lines if line.get("kind") == "train"]
    valid = [line for line in lines if line.get("kind") == "valid" and line.get("gauc") is not None]
    if not steps:
        return None
    return TrainingCurve(
        seed=run.seed,
        loss_step=tuple(float(line["step"]) for line in steps),
        loss=tuple(float(line["loss"]) for line in steps),
        valid_step=tuple(float(line["step"]) for line in valid),
        valid_gauc=tuple(float(line["gauc"]) for line in valid),
    )


def _budget_text(name: str) -> str:
    budget = budget_named(name)
    parts = [
        f"{part} {'all' if count is None else f'{count:,}'} requests"
        for part, count in (("train", budget.train), ("valid", budget.valid), ("test", budget.test))
    ]
    return f"{name} ({', '.join(parts)}; at most {budget.epochs} epochs)"


def _settings_text(plan: Sequence[PlannedRun]) -> dict[str, str]:
    training = plan[0].config.training
    return {
        "early stopping": "on validation GAUC by request, mean over lists; the test split is never looked at",
        "evaluations": f"{training.evaluations_per_epoch} an epoch, patience {training.patience}",
        "tuning": "settings of the recipes, with any --set of the command; docs/results.md says how they were chosen",
        "requests": "all rows share training, validation and test requests and their candidates",
    }


def _command(
    data: Path,
    out: Path,
    recipes: Sequence[str],
    seeds: Sequence[int],
    budget: str,
    baseline: str | None,
    changes: Sequence[str],
) -> str:
    words = ["sostenuto", "compare", str(data), "--models", ",".join(recipes)]
    words += ["--seeds", str(len(seeds)), "--budget", budget]
    if baseline is not None:
        words += ["--baseline", baseline]
    for change in changes:
        words += ["--set", change]
    return shlex.join([*words, "--out", str(out)])


def best_run(out: Path) -> Path:
    """Return the run folder of the best row of a comparison, its first seed.

    Best is the highest validation GAUC by request, mean over lists and seeds: a choice made on the test split would
    make the test numbers of the chosen one too good.
    """
    found: dict[Path, list[float]] = {}
    for config in sorted(out.glob("runs/*/seed*/config.json")):
        finished = json.loads(config.read_text(encoding="utf-8"))["finished"]
        if finished is not None and finished["gauc"] is not None:
            found.setdefault(config.parents[1], []).append(finished["gauc"])
    if not found:
        raise RunError(f"a comparison must hold finished runs, {out} holds none; call `sostenuto compare` again")
    best = max(found, key=lambda folder: sum(found[folder]) / len(found[folder]))
    return min(best.glob("seed*/config.json"), key=lambda path: int(path.parent.name.removeprefix("seed"))).parent


__all__ = ["PlannedRun", "best_run", "planned_runs", "run_comparison"]
