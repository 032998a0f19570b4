"""What a training step of EM3 takes on prepared data with content, beside DIN's: processor seconds and memory.

    python benchmarks/content_steps.py DIR

64 requests a step with their whole histories, one thread, the first steps of the `demo` budget. Processor time of the
process, so that other load on the machine counts as little as may be. Each form runs in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sostenuto.data.prepared import PreparedData
from sostenuto.features.collation import Collator
from sostenuto.features.loading import RequestLoader, sample_rows
from sostenuto.features.view import HistoryView
from sostenuto.models.table import build, default_config, entry_of
from sostenuto.training.config import BUDGETS, TrainingConfig
from sostenuto.training.loop import train_step
from sostenuto.training.losses import objective_named
from sostenuto.training.optimiser import RankerOptimiser
from sostenuto.training.process_memory import forget_peak, keep_freed, peak_bytes
from sostenuto.training.run import content_of

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "din": ("din", {}),
    "em3": ("em3", {}),
    "em3, last layer over states": ("em3", {"end_to_end": "states"}),
    "em3, stored vectors only": ("em3", {"end_to_end": "off"}),
    "em3, whole history map": ("em3", {"history_map": "full"}),
}


def measure(data: PreparedData, name: str, steps: int) -> dict[str, Any]:
    """Take steps with one form; return seconds of a step, of filling the cache, and the peak."""
    model, changes = FORMS[name]
    collator = Collator(data, HistoryView())
    requests = data.requests("train")
    rows = sample_rows(requests, BUDGETS["demo"].train, 0)
    loader = RequestLoader(collator, requests, rows, batch_requests=64, seed=0, prefetch=0)
    config = dataclasses.replace(default_config(model), **changes)
    ranker: Any = build(model, config, collator.features)
    if entry_of(model).content:
        ranker.take_content(content_of(model, data, collator.features))
    training = TrainingConfig(batch_requests=64)
    optimiser, objective = RankerOptimiser(ranker, training), objective_named("bce")
    keep_freed()
    forget_peak()
    taken = []
    for number, batch in enumerate(loader.epoch(0)):
        if number > steps:
            break
        start = time.process_time()
        train_step(ranker, batch, optimiser, objective, training, 1.0, number)
        taken.append(time.process_time() - start)
    return {
        "form": name,
        "step_s": statistics.median(taken[1:]),
        "first_step_s": taken[0],
        "peak_mib": peak_bytes() / 2**20,
        "parameters": sum(p.numel() for p in ranker.parameters()),
    }


def main() -> None:
    """Print one line a form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--form", choices=list(FORMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.form:
        print(json.dumps(measure(PreparedData(given.data), given.form, given.steps)))
        return
    print("| form | s a step | first step | peak MiB | parameters |\n| --- | ---: | ---: | ---: | ---: |")
    for name in FORMS:
        command = [sys.executable, __file__, str(given.data), "--steps", str(given.steps), "--form", name]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(answer)
        print(
            f"| {name} | {row['step_s']:.2f} | {row['first_step_s']:.2f} | {row['peak_mib']:.0f} | "
            f"{row['parameters']:,} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
