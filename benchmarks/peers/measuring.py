"""What all drivers measure with, so that it is measured the same way. Needs numpy only: it runs in a peer's venv."""

from __future__ import annotations

import itertools
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from settings import Given

Array = Any  # numpy.typing would tie a peer's venv to one version of numpy


class Window:
    """Hands batches on to a training loop and times the steps between them, loading included.

    The clock starts when a batch is handed on after the warm-up and stops when a later one is there to be: each
    measured step has its own loading in it. The window closes after `seconds`, not before `steps`. The last batch of
    an epoch is left out when it may be short.
    """

    def __init__(self, batches: Iterable[Any], given: Given, *, batch_samples: int) -> None:
        self.batches = batches
        self.batch_samples = batch_samples
        self.warmup, self.seconds, self.steps = given.warmup, given.seconds, given.steps
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        while True:  # a short epoch is repeated
            for batch in itertools.islice(self.batches, max(len(self) - 1, 1)):
                self.wall.append(time.perf_counter())
                self.cpu.append(time.process_time())
                done = len(self.wall) - 1 - self.warmup
                if done >= self.steps and self.wall[-1] - self.wall[self.warmup] >= self.seconds:
                    return
                yield batch

    def result(self) -> dict[str, float]:
        """Samples per second of wall clock and of processor time, and what a step took."""
        wall, cpu = self.wall[self.warmup :], self.cpu[self.warmup :]
        samples = (len(wall) - 1) * self.batch_samples
        return {
            "samples_per_s": samples / (wall[-1] - wall[0]),
            "samples_per_cpu_s": samples / (cpu[-1] - cpu[0]),
            "steps": len(wall) - 1,
            "median_step_s": statistics.median(np.diff(wall).tolist()),
        }


def timed_calls(call: Callable[[], object], *, seconds: float, least: int = 5) -> dict[str, float]:
    """Call until `seconds` are over, after two unmeasured calls; milliseconds of one call."""
    call()
    call()
    taken: list[float] = []
    started, cpu = time.perf_counter(), time.process_time()
    while len(taken) < least or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - before))
    cpu_ms = 1e3 * (time.process_time() - cpu) / len(taken)
    return {"median_ms": statistics.median(taken), "min_ms": min(taken), "cpu_ms": cpu_ms, "calls": len(taken)}


def auc(label: Array, score: Array) -> float:
    """Area under the ROC curve by average ranks."""
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2.0)[inverse]
    positive = np.asarray(label) > 0
    wins = rank[positive].sum() - positive.sum() * (positive.sum() + 1) / 2.0
    return float(wins / (positive.sum() * (~positive).sum()))


def logloss(label: Array, probability: Array) -> float:
    """Mean of -log of the probability given to each label."""
    kept = np.clip(np.asarray(probability, np.float64), 1e-7, 1.0 - 1e-7)
    return float(-np.where(np.asarray(label) > 0, np.log(kept), np.log1p(-kept)).mean())


def peak_mb() -> float:
    """Peak resident memory of this process, MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def read_set(folder: Path, split: str, shape: str) -> dict[str, Array]:
    """Open the columns of a set of requests: user, prefix (R,), item, label (R, C)."""
    names = ("user", "prefix", "item", "label")
    return {name: np.load(folder / f"{split}_{shape}_{name}.npy", mmap_mode="r") for name in names}


def flat_set(folder: Path, split: str, shape: str) -> dict[str, Array]:
    """Return the same with one row per candidate, as a peer wants it."""
    columns = read_set(folder, split, shape)
    count = columns["item"].shape[1]
    repeated = {name: np.repeat(columns[name], count) for name in ("user", "prefix")}
    return repeated | {name: columns[name].ravel() for name in ("item", "label")}


def print_result(numbers: dict[str, Any], *, system: str, versions: dict[str, str], tower_in: int) -> None:
    """Print one JSON line, the last of a driver's output."""
    facts = {"system": system, "versions": versions | {"python": platform.python_version()}, "tower_in": tower_in}
    print(json.dumps(facts | numbers))
