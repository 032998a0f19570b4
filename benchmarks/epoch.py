"""One epoch of a recipe's training, timed: steps, loading, the profile of what is left.

    python benchmarks/epoch.py data/cj --recipes din sdim --budget standard --out results

Only what a step needs is run: no validation, no files. Loading is timed in the loader's own thread, in processor time,
because it goes on beside the steps. `SOSTENUTO_BACKEND=plain` and another checkout on PYTHONPATH give what to compare
with; the order of batches is the same everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sostenuto.data.prepared import PreparedData
from sostenuto.features.collation import Collator
from sostenuto.features.cooccurrence import item_vectors
from sostenuto.features.loading import RequestLoader, sample_rows
from sostenuto.layers.embedding import TimedVectors
from sostenuto.models.table import build, entry_of
from sostenuto.ops.backend import notice
from sostenuto.recipes import recipe_named
from sostenuto.training.config import budget_named
from sostenuto.training.loop import train_step
from sostenuto.training.losses import objective_named
from sostenuto.training.optimiser import RankerOptimiser
from sostenuto.training.process_memory import keep_freed

PROFILED = 30  # steps
SHOWN = 14  # lines of the profile


class TimedCollator(Collator):
    """Counts the processor time of its thread."""

    seconds = 0.0

    def batch(self, requests: Any, rows: Any) -> Any:
        before = time.thread_time()
        found = super().batch(requests, rows)
        self.seconds += time.thread_time() - before
        return found


def profile(step: Any, batches: list[Any]) -> list[dict[str, Any]]:
    """Return the operations with most time of their own over some steps."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for batch in batches:
            step(batch)
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    return [
        {
            "operation": e.key,
            "ms_a_step": e.self_cpu_time_total / 1e3 / len(batches),
            "share": e.self_cpu_time_total / total,
        }
        for e in events[:SHOWN]
    ]


def measure(data: PreparedData, name: str, *, budget: str, steps: int | None) -> dict[str, Any]:
    config = replace(recipe_named(name), budget=budget_named(budget))
    training = config.training
    requests = data.requests("train")
    collator = TimedCollator(data, config.view)
    rows = sample_rows(requests, config.budget.train, config.budget.seed)
    loader = RequestLoader(
        collator, requests, rows, batch_requests=training.batch_requests, seed=training.seed, prefetch=training.prefetch
    )
    torch.manual_seed(training.seed)
    ranker: Any = build(config.model, config.model_config, collator.features, seed=training.seed)

    def vectors(dim: int) -> TimedVectors:
        made = item_vectors(data, dim)
        return TimedVectors(
            last=torch.from_numpy(made.last),
            past=torch.from_numpy(made.past),
            starts_ms=torch.from_numpy(made.starts_ms),
        )

    ranker.calibrate(itertools.islice(loader.epoch(0), 16), vectors)
    keep_freed()
    optimiser, objective = RankerOptimiser(ranker, training), objective_named(entry_of(config.model).objective)
    ranker.train()

    def step(batch: Any) -> None:
        train_step(ranker, batch, optimiser, objective, training, 0.5, 1)

    held = list(itertools.islice(loader.epoch(1), PROFILED))
    for batch in held[:5]:
        step(batch)
    collator.seconds = 0.0
    taken: list[float] = []
    events = count = 0
    started, cpu = time.perf_counter(), time.process_time()
    for batch in itertools.islice(loader.epoch(0), steps):
        before = time.perf_counter()
        step(batch)
        taken.append(time.perf_counter() - before)
        events += len(batch.histories.item)
        count += batch.histories.num_rows
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "recipe": name,
        "steps": len(taken),
        "requests": count,
        "events": events,
        "seconds": seconds,
        "cpu_s": cpu,
        "step_ms": 1e3 * statistics.median(taken),
        "steps_share": sum(taken) / seconds,
        "loading_ms": 1e3 * collator.seconds / len(taken),
        "loading_share": collator.seconds / sum(taken),
        "requests_per_s": count / seconds,
        "events_per_s": events / seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "profile": profile(step, held),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument("--recipes", nargs="+", default=["din", "sdim"])
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--steps", type=int, help="stop an epoch after so many")
    parser.add_argument("--out", type=Path, help="file of the JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = PreparedData(given.data)
    results = {
        "backend": notice(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "load_1min": os.getloadavg()[0],
        "epochs": [measure(data, name, budget=given.budget, steps=given.steps) for name in given.recipes],
    }
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for epoch in results["epochs"]:
        print(
            f"{epoch['recipe']}: {epoch['steps']} steps, {epoch['seconds']:.1f} s ({epoch['cpu_s']:.1f} s of CPU),"
            f" {epoch['requests_per_s']:.1f} requests/s, {epoch['events_per_s']:,.0f} events/s, step"
            f" {epoch['step_ms']:.1f} ms, loading {epoch['loading_ms']:.1f} ms ({epoch['loading_share']:.1%}),"
            f" peak {epoch['peak_mb']:,.0f} MB"
        )
        for line in epoch["profile"]:
            print(f"    {line['ms_a_step']:8.2f} ms {line['share']:6.1%}  {line['operation']}")
    print(results["backend"], f"load {results['load_1min']:.2f}")


if __name__ == "__main__":
    main()
