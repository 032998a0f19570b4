"""Sostenuto against FuxiCTR in alternation: medians, ratios, a markdown table and JSON.

    python benchmarks/peers/run.py --peer-python PEERS/fuxictr-venv/bin/python --data PEERS/data --out PEERS/results

Run it with the Python that has sostenuto. Every measurement is a process of its own, and the systems take turns
(A B A B ...); who comes first changes every round. Data that are missing are made first. Ratios are taken inside a
round, and their median is printed with the least and the largest. A measurement that fails is said so and left out.

Tasks: `train` (samples/s and peak memory), `score` (candidates of one user), `quality` (AUC after one epoch on `easy`
data, one seed a round).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthetic import make, sizes_of

HERE = Path(__file__).parent
OURS, PLAIN, PEER = "Sostenuto", "Sostenuto, torch only", "FuxiCTR"
QUALITY_RATE = 5e-3  # learning rate: 160,000 samples are few steps
LIMIT_S = 3_600  # a measurement that takes longer has failed


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One row of a table."""

    task: str
    model: str
    length: int
    shape: str  # single: 1 candidate a request; shared: 20 candidates share a history

    @property
    def kind(self) -> str:
        return "easy" if self.task == "quality" else "plain"


def cells(given: argparse.Namespace) -> Iterator[Cell]:
    """Yield what was asked for; one shape is enough to score one user or to compare AUC."""
    for task, model, length, shape in itertools.product(given.tasks, given.models, given.lengths, given.shapes):
        if task == "train" or shape == given.shapes[0]:
            yield Cell(task=task, model=model, length=length, shape=shape)


def run(python: str, arguments: Sequence[str], *, threads: int) -> dict[str, Any]:
    """Run a driver and return the JSON of its last line, or what went wrong."""
    load = os.getloadavg()[0]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [python, *arguments], env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {LIMIT_S} s"}
    facts = {"load_1min": round(load, 2), "process_s": round(time.perf_counter() - started, 2)}
    if done.returncode:
        told = done.stderr.strip().splitlines() or ["no message"]
        return facts | {"error": f"exit {done.returncode}: {told[-1][:200]}"}
    return facts | json.loads(done.stdout.strip().splitlines()[-1])


class Bench:
    """Makes data, runs the drivers in turns, keeps every result."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.out: Path = given.out
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "runs.jsonl").unlink(missing_ok=True)
        self.systems = [OURS, *([PLAIN] if given.plain else []), PEER]

    def data(self, cell: Cell) -> Path:
        """Return the folder of a cell's data, made and converted when it is not there."""
        given = self.given
        folder: Path = given.data / f"{cell.kind}-{cell.length}-{given.users}-{given.train}"
        if not (folder / "manifest.json").is_file():
            print(f"making {folder.name}", file=sys.stderr)
            make(
                folder,
                sizes_of(cell.kind, cell.length, users=given.users, train=given.train, test=given.train // 4, seed=0),
            )
        if not (folder / "fuxictr" / "done").is_file():
            self.driver(PEER, ["convert", str(folder)])
        return folder

    def driver(self, system: str, arguments: list[str]) -> dict[str, Any]:
        python = self.given.peer_python if system == PEER else sys.executable
        file = "fuxictr_driver.py" if system == PEER else "sostenuto_driver.py"
        backend = ["--backend", "plain"] if system == PLAIN else []
        return run(str(python), [str(HERE / file), *arguments, *backend], threads=self.given.threads)

    def measure(self, cell: Cell) -> list[dict[str, dict[str, Any]]]:
        """Return the results of every round by system."""
        given, folder = self.given, str(self.data(cell))
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(given.rounds):
            arguments = [cell.task, folder, "--model", cell.model, "--shape", cell.shape]
            arguments += ["--signatures", str(given.signatures), "--threads", str(given.threads)]
            arguments += ["--seed", str(number), "--seconds", str(given.seconds), "--steps", str(given.steps)]
            arguments += ["--candidates", str(given.candidates)]
            if cell.task == "quality":
                arguments += ["--learning-rate", str(QUALITY_RATE)]
            found: dict[str, dict[str, Any]] = {}
            for system in self.systems if number % 2 == 0 else reversed(self.systems):
                found[system] = self.driver(system, arguments)
                with (self.out / "runs.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(cell) | {"round": number, "of": system} | found[system]) + "\n")
                shown = found[system].get("error") or headline(cell.task, found[system])
                print(f"{cell.task} {cell.model} L={cell.length} {cell.shape} {system}: {shown}", file=sys.stderr)
            rounds.append(found)
        return rounds


def headline(task: str, result: dict[str, Any]) -> str:
    name = {"train": "samples_per_s", "score": "median_ms", "quality": "auc"}[task]
    return f"{name} {result[name]:.4g}"


def numbers(rounds: list[dict[str, dict[str, Any]]], system: str, read: Callable[[Any], float]) -> list[float]:
    """Return one number of every round in which all systems gave a result."""
    whole = [found for found in rounds if not any("error" in result for result in found.values())]
    return [read(found[system]) for found in whole]


def spread(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "failed"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(first, second, strict=True)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def train_row(cell: Cell, system: str, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    def both(name: str) -> tuple[list[float], list[float]]:
        return numbers(rounds, system, lambda r: r[name]), numbers(rounds, PEER, lambda r: r[name])

    ours, peer = both("samples_per_s")
    cpu_ours, cpu_peer = both("samples_per_cpu_s")
    memory_ours, memory_peer = both("peak_mb")
    return {
        "model": cell.model,
        "L": cell.length,
        "batches": cell.shape,
        "system": system,
        "samples/s": f"{median(ours):,.0f}",
        "FuxiCTR": f"{median(peer):,.0f}",
        "ratio": spread(ratios(ours, peer)),
        "ratio of processor time": spread(ratios(cpu_ours, cpu_peer)),
        "peak MB": f"{median(memory_ours):,.0f}",
        "FuxiCTR MB": f"{median(memory_peer):,.0f}",
        "memory ratio": spread(ratios(memory_ours, memory_peer), 2),
    }


def score_row(cell: Cell, system: str, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    ours = numbers(rounds, system, lambda r: r["median_ms"])
    cached = numbers(rounds, system, lambda r: r["cached"]["median_ms"])
    peer = numbers(rounds, PEER, lambda r: r["median_ms"])
    return {
        "model": cell.model,
        "L": cell.length,
        "system": system,
        "ms": spread(ours, 2),
        "ms, cached state": spread(cached, 2),
        "FuxiCTR ms": spread(peer, 2),
        "ratio": spread(ratios(peer, ours)),
        "ratio, cached state": spread(ratios(peer, cached)),
    }


def quality_row(cell: Cell, system: str, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    ours, peer = numbers(rounds, system, lambda r: r["auc"]), numbers(rounds, PEER, lambda r: r["auc"])
    losses = [numbers(rounds, name, lambda r: r["logloss"]) for name in (system, PEER)]
    epoch = [numbers(rounds, name, lambda r: r["epoch_s"]) for name in (system, PEER)]
    return {
        "model": cell.model,
        "L": cell.length,
        "system": system,
        "AUC": spread(ours, 4),
        "FuxiCTR AUC": spread(peer, 4),
        "difference of medians": f"{median(ours) - median(peer):+.4f}",
        "logloss": spread(losses[0], 4),
        "FuxiCTR logloss": spread(losses[1], 4),
        "epoch s": f"{median(epoch[0]):,.1f}",
        "FuxiCTR epoch s": f"{median(epoch[1]):,.1f}",
    }


ROWS = {"train": train_row, "score": score_row, "quality": quality_row}


def markdown(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def report(given: argparse.Namespace, results: list[tuple[Cell, list[dict[str, dict[str, Any]]]]]) -> str:
    """Return one table per task, under a line that says what was measured where."""
    runs = [result for _, rounds in results for found in rounds for result in found.values()]
    loads = [result["load_1min"] for result in runs if "load_1min" in result]
    versions = {name: value for result in runs for name, value in result.get("versions", {}).items()}
    native = sorted({str(result["native"]) for result in runs if "native" in result})
    parts = [
        f"{os.cpu_count()} processors, {platform.machine()}, {given.threads} thread(s), {given.rounds} rounds, "
        f"{given.users:,} users; native code: {', '.join(native)}; load before a measurement {spread(loads, 2)}; "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        + ". Medians, (least-largest) over rounds."
    ]
    titles = {
        "train": f"Training; SDIM with {given.signatures} signatures of 3 bits",
        "score": f"Scoring {given.candidates} candidates of one user",
        "quality": f"Quality after one epoch of {given.train:,} samples, learning rate {QUALITY_RATE}",
    }
    for task, title in titles.items():
        rows = [
            ROWS[task](cell, system, rounds)
            for cell, rounds in results
            if cell.task == task
            for system in ((OURS, PLAIN) if given.plain else (OURS,))
        ]
        if rows:
            parts += [f"### {title}", markdown(rows)]
    failed = [f"- {result['error']}" for result in runs if "error" in result]
    return "\n\n".join(parts + (["### Failed", *sorted(set(failed))] if failed else [])) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, help="python of the venv that has fuxictr")
    parser.add_argument("--data", type=Path, required=True, help="folder of generated data, kept")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs.jsonl, results.json and table.md")
    parser.add_argument("--tasks", nargs="+", choices=sorted(ROWS), default=["train"])
    parser.add_argument("--models", nargs="+", choices=["din", "sdim"], default=["din", "sdim"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 200, 1_000])
    parser.add_argument("--shapes", nargs="+", choices=["single", "shared"], default=["single", "shared"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--signatures", type=int, default=48, help="of SDIM, 3 bits each")
    parser.add_argument("--candidates", type=int, default=100, help="of the one user that is scored")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds of a run at least")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a run at least")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--train", type=int, default=160_000, help="training samples")
    parser.add_argument("--plain", action="store_true", help="also measure Sostenuto without native code")
    given = parser.parse_args()
    bench = Bench(given)
    results = []
    for cell in cells(given):
        results.append((cell, bench.measure(cell)))
        text = report(given, results)  # written after every cell: a run that is stopped leaves what it has
        (bench.out / "table.md").write_text(text, encoding="utf-8")
        as_json = [asdict(one) | {"rounds": rounds} for one, rounds in results]
        settings = {name: str(value) for name, value in vars(given).items()}
        (bench.out / "results.json").write_text(
            json.dumps({"settings": settings, "results": as_json}, indent=2) + "\n", encoding="utf-8"
        )
    print(report(given, results))


if __name__ == "__main__":
    main()
