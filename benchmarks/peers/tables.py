"""The tables of a run: a row for each cell and measure, a column for each system, then our ratio to each."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from plan import LONG, LONG_BATCH, OURS, PLAIN, Cell, systems_of

Result = dict[str, Any]  # of a driver
Rounds = list[dict[str, Result]]  # by system


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A number of a result, how it is written, and how two of them are compared."""

    title: str
    read: Callable[[Result], float]
    digits: int = 0
    compared: str = ""  # one of COMPARED, or not at all


COMPARED: dict[str, Callable[[float, float], float]] = {
    "times as many": lambda ours, theirs: ours / theirs,
    "times as fast": lambda ours, theirs: theirs / ours,
    "part of theirs": lambda ours, theirs: ours / theirs,
    "difference": lambda ours, theirs: ours - theirs,
}


def named(name: str) -> Callable[[Result], float]:
    return lambda result: float(result[name])


PREPARATION = (
    Measure(title="preparation, s", read=named("prepare_s"), digits=2),
    Measure(title="samples prepared", read=named("prepared_samples")),
    Measure(
        title="preparation of a sample, us",
        read=lambda r: float(1e6 * r["prepare_s"] / r["prepared_samples"]),
        digits=2,
    ),
    Measure(title="bytes of a sample", read=named("bytes_per_sample"), compared="part of theirs"),
)
PEAK = Measure(title="peak MB", read=named("peak_mb"), compared="part of theirs")
MEASURES = {
    "train": (
        Measure(title="samples/s", read=named("samples_per_s"), compared="times as many"),
        Measure(title="samples/s of processor time", read=named("samples_per_cpu_s"), compared="times as many"),
        PEAK,
        *PREPARATION,
    ),
    "score": (
        Measure(title="ms", read=named("median_ms"), digits=2, compared="times as fast"),
        Measure(title="ms of processor time", read=named("cpu_ms"), digits=2, compared="times as fast"),
        Measure(
            title="ms, state cached where it can be",
            read=lambda r: float(r.get("cached", r)["median_ms"]),
            digits=2,
            compared="times as fast",
        ),
    ),
    "quality": (
        Measure(title="AUC", read=named("auc"), digits=4, compared="difference"),
        Measure(title="logloss", read=named("logloss"), digits=4, compared="difference"),
        Measure(title="epoch, s", read=named("epoch_s"), digits=1, compared="times as fast"),
        PEAK,
        *PREPARATION,
    ),
}


def headline(task: str, result: Result) -> str:
    if "error" in result or "ended" in result:
        return str(result.get("error") or result["ended"])
    first = MEASURES[task][0]
    return f"{first.title} {first.read(result):,.{first.digits}f}"


def values(rounds: Rounds, system: str, read: Callable[[Result], float]) -> list[float | None]:
    """Return a number for each round; None where the system gave no result."""
    results = [found.get(system, {}) for found in rounds]
    whole = ["error" not in result and "ended" not in result and bool(result) for result in results]
    return [read(result) if good else None for result, good in zip(results, whole, strict=True)]


def spread(numbers: Sequence[float], digits: int) -> str:
    median = f"{statistics.median(numbers):.{digits}f}"
    return f"{median} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})" if len(numbers) > 1 else median


def shown(rounds: Rounds, system: str, measure: Measure) -> str:
    """Return the median of a system, or why there is none."""
    numbers = [number for number in values(rounds, system, measure.read) if number is not None]
    if numbers:
        return f"{statistics.median(numbers):,.{measure.digits}f}"
    why = [found[system].get("ended", "failed") for found in rounds if system in found]
    return str(why[-1]) if why else "-"


def ratio(rounds: Rounds, ours: str, theirs: str, measure: Measure) -> str:
    """Return how ours compares with theirs: the median of the rounds' ratios, or the difference of the medians."""
    pairs = zip(values(rounds, ours, measure.read), values(rounds, theirs, measure.read), strict=True)
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both or not measure.compared:
        return "-"
    compare = COMPARED[measure.compared]
    if measure.compared == "difference":  # seeds differ between packages anyway
        return f"{compare(*(statistics.median(side) for side in zip(*both, strict=True))):+.{measure.digits}f}"
    return spread([compare(a, b) for a, b in both], 1 if measure.compared.startswith("times") else 3)


def rows(cell: Cell, rounds: Rounds, titles: Sequence[str]) -> Iterator[dict[str, str]]:
    own = [title for title in titles if title in (OURS, PLAIN)]
    for measure in MEASURES[cell.task]:
        row = {"model": cell.model, "L": f"{cell.length:,}"}
        row |= {"candidates": f"{cell.candidates:,}"} if cell.candidates else {}
        row |= {"batches": f"{cell.shape}, {cell.batch:,}"} if cell.task == "train" else {}
        row |= {"batch": f"{cell.batch:,}"} if cell.task == "quality" else {}
        row |= {"what": measure.title}
        row |= {title: shown(rounds, title, measure) for title in titles}
        row |= {"ratio": measure.compared or "-"}
        for ours, theirs in itertools.product(own, titles):
            if theirs not in own or (ours, theirs) == (OURS, PLAIN):
                row[f"{ours} : {theirs}"] = ratio(rounds, ours, theirs, measure)
        yield row


def markdown(table: list[dict[str, str]]) -> str:
    names = list(table[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(row[name] for name in names) + " |" for row in table]
    return "\n".join(lines)


def report(given: argparse.Namespace, results: list[tuple[Cell, Rounds]]) -> str:
    """Return one table for each task, under lines that say what was measured where."""
    titles = [system.title for system in systems_of(given)]
    runs = [(title, result) for _, rounds in results for found in rounds for title, result in found.items()]
    loads = [result["load_1min"] for _, result in runs]
    native = sorted({str(result["native"]) for title, result in runs if title == OURS and "native" in result})
    parts = [
        f"{os.cpu_count()} processors, {platform.machine()}, {given.threads} thread(s), {given.rounds} round(s), "
        f"{given.users:,} users; native code: {', '.join(native)}; load before a measurement {spread(loads, 2)}. "
        f"A measurement was ended at {given.memory_gb:g} GB or {given.limit_s:,.0f} s. Medians over the rounds; ratios "
        "with the least and the largest."
    ]
    for title in titles:
        versions = {name: at for of, result in runs if of == title for name, at in result.get("versions", {}).items()}
        if versions:
            parts.append(f"{title}: " + ", ".join(f"{name} {at}" for name, at in versions.items()))
    heads = {
        "train": f"Training; SDIM with {given.signatures} signatures of 3 bits, ETA with {given.eta_bits} bits",
        "score": "Scoring candidates of one user",
        "quality": f"Quality after one epoch of {given.train:,} samples, learning rate {given.quality_rate}",
    }
    for task, head in heads.items():
        table = [row for cell, rounds in results if cell.task == task for row in rows(cell, rounds, titles)]
        if table:
            parts += [f"### {head}", markdown(table)]
        if any(cell.task == task != "score" and cell.batch == LONG_BATCH for cell, _ in results):
            parts.append(f"From L = {LONG:,} on every system has batches of {LONG_BATCH}: padded ones must be small.")
    failed = sorted({f"- {result['error']}" for _, result in runs if "error" in result})
    return "\n\n".join(parts + (["### Failed", "\n".join(failed)] if failed else [])) + "\n"
