"""Sostenuto against other packages in alternation: medians, ratios, a markdown table for each task, and JSON.

    python benchmarks/peers/run.py --peer fuxictr=PEERS/fuxictr-venv/bin/python \\
        --peer deepctr=PEERS/deepctr-venv/bin/python --data PEERS/data --out PEERS/results

Run it with the Python that has sostenuto. Every measurement is a process of its own, and the systems take turns
(A B C A B C ...); the order is turned round every round. Data that are missing are made first. Ratios are taken inside
a round, and their median is printed with the least and the largest. A measurement that takes more time or memory than
allowed is ended, said so in its table, and not tried again in later rounds; one that fails is said so and left out.

Tasks: `train` (samples/s, peak memory, preparation), `score` (candidates of one user), `quality` (AUC and logloss after
one epoch on `easy` data, one seed a round).

A run that was stopped goes on where it was: results of the same settings in `runs.jsonl` are not measured again, those
of measurements that failed are. To measure anew, say after a change of the code, name another folder with --out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plan import PEERS, QUALITY_RATE, Cell, System, cells, systems_of
from settings import MODELS
from synthetic import make, sizes_of
from tables import MEASURES, Result, Rounds, headline, report

HERE = Path(__file__).parent
LOOK_S = 0.2  # between two looks at a measurement's memory


def peak_bytes(process: int) -> int:
    """Return the peak resident memory of a process so far; 0 where the system has no /proc."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # no /proc, or the process has just ended
        return 0
    peak = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak[0]) * 1024 if peak else 0


def watch(process: subprocess.Popen[str], *, limit_s: float, memory_gb: float) -> str:
    """Wait for the end of a process, or end it; return why it was ended, nothing if it was not."""
    started = time.monotonic()
    try:
        while True:
            try:
                process.wait(LOOK_S)
                return ""
            except subprocess.TimeoutExpired:
                if time.monotonic() - started > limit_s:
                    return f"over {limit_s:,.0f} s"
                if peak_bytes(process.pid) > memory_gb * 1e9:
                    return f"over {memory_gb:g} GB"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def run(system: System, arguments: Sequence[str], *, given: argparse.Namespace) -> Result:
    """Run a driver and return the JSON of its last line, or what went wrong: `ended` by a limit, or `error`."""
    load = os.getloadavg()[0]
    environment = os.environ | {name: str(given.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        command = [system.python, str(HERE / system.driver), *arguments, *system.more]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err, text=True)
        ended = watch(process, limit_s=given.limit_s, memory_gb=given.memory_gb)
        facts: Result = {"load_1min": round(load, 2), "process_s": round(time.perf_counter() - started, 2)}
        if ended:
            return facts | {"ended": ended}
        out.seek(0)
        err.seek(0)
        if process.returncode:
            told = err.read().strip().splitlines() or ["no message"]
            return facts | {"error": f"{system.title}: exit {process.returncode}: {told[-1][:200]}"}
        found: Result = json.loads(out.read().strip().splitlines()[-1])
        return facts | found


class Bench:
    """Makes data, runs the drivers in turns, keeps every result."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.systems = systems_of(given)
        self.out: Path = given.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.lines = self.out / "runs.jsonl"
        self.known = dict(self.read())

    def read(self) -> Iterator[tuple[str, Result]]:
        """Yield what an earlier run has measured; the last line may be torn."""
        if not self.lines.is_file():
            return
        for line in self.lines.read_text(encoding="utf-8").splitlines():
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "error" not in found["result"]:
                yield json.dumps(found["of"], sort_keys=True), found["result"]

    def settings(self, cell: Cell) -> dict[str, Any]:
        """Return what a result depends on beside cell, round and system."""
        given = self.given
        names = ["threads", "users", "train", "limit_s", "memory_gb"]
        names += [] if cell.task == "quality" else ["seconds"]
        names += ["steps"] if cell.task == "train" else []
        names += {"sdim": ["signatures"], "eta": ["eta_bits"]}.get(cell.model, [])
        return {name: getattr(given, name) for name in names}

    def data(self, cell: Cell) -> Path:
        """Return the folder of a cell's data, made and converted when it is not there."""
        given = self.given
        folder: Path = given.data / f"{cell.kind}-{cell.length}-{given.users}-{given.train}"
        if not (folder / "manifest.json").is_file():
            print(f"making {folder.name}", file=sys.stderr)
            sizes = {"users": given.users, "train": given.train, "test": given.train // 4, "seed": 0}
            make(folder, sizes_of(cell.kind, cell.length, **sizes))
        for system in self.systems:
            if system.driver == "fuxictr_driver.py" and not (folder / "fuxictr" / "converted.json").is_file():
                run(system, ["convert", str(folder)], given=given)
        return folder

    def driver(self, cell: Cell, system: System, number: int) -> Result:
        """Run one driver for one round."""
        given = self.given
        arguments = [cell.task, str(self.data(cell)), "--model", cell.model, "--shape", cell.shape]
        arguments += ["--threads", str(given.threads), "--seed", str(number), "--batch", str(cell.batch)]
        arguments += ["--seconds", str(given.seconds), "--steps", str(given.steps)]
        arguments += ["--signatures", str(given.signatures), "--eta-bits", str(given.eta_bits)]
        arguments += ["--candidates", str(cell.candidates)] if cell.candidates else []
        arguments += ["--learning-rate", str(given.quality_rate)] if cell.task == "quality" else []
        return run(system, arguments, given=given)

    def measure(self, cell: Cell) -> Rounds:
        """Return the results of every round by system; what is known already is not run again."""
        rounds: Rounds = []
        able = [system for system in self.systems if cell.model in system.models]
        for number in range(self.given.rounds):
            found: dict[str, Result] = {}
            for system in able if number % 2 == 0 else reversed(able):
                before = rounds[-1][system.title] if rounds else {}
                of = {"cell": asdict(cell), "batch": cell.batch, "round": number, "system": system.title}
                of |= {"settings": self.settings(cell)}
                key = json.dumps(of, sort_keys=True)
                if key in self.known:
                    result, how = self.known[key], "known: "
                elif "ended" in before:
                    result, how = before, "not tried again: "
                else:
                    result, how = self.driver(cell, system, number), ""
                    self.keep(of, result)
                found[system.title] = result
                print(f"{cell}, round {number}, {system.title}: {how}{headline(cell.task, result)}", file=sys.stderr)
            rounds.append(found)
        return rounds

    def keep(self, of: dict[str, Any], result: Result) -> None:
        """Add a line; after a torn one it starts anew."""
        torn = self.lines.is_file() and not self.lines.read_bytes().endswith(b"\n")
        with self.lines.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps({"of": of, "result": result}) + "\n")


def peer(text: str) -> tuple[str, str]:
    """Read NAME=PYTHON."""
    name, _, python = text.partition("=")
    if name not in PEERS or not python:
        raise argparse.ArgumentTypeError(f"must be NAME=PYTHON with NAME one of {', '.join(PEERS)}, got {text!r}")
    return name, python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer",
        type=peer,
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help=f"one of {', '.join(PEERS)} and the python of the venv that has it; repeat for more",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of generated data, kept")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs.jsonl, results.json and table.md")
    parser.add_argument("--tasks", nargs="+", choices=list(MEASURES), default=["train"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["din", "sdim"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 200, 1_000, 5_000])
    parser.add_argument("--shapes", nargs="+", choices=["single", "shared"], default=["single", "shared"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quality-rate", type=float, default=QUALITY_RATE, help="learning rate of `quality`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--signatures", type=int, default=48, help="of SDIM, 3 bits each")
    parser.add_argument("--eta-bits", type=int, default=64, help="of ETA's signature; FuxiCTR's default is 32")
    parser.add_argument("--candidates", nargs="+", type=int, default=[500], help="of the one user that is scored")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds of a run at least")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a run at least")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--train", type=int, default=160_000, help="training samples; a quarter more to test on")
    parser.add_argument("--limit-s", type=float, default=3_600.0, help="a measurement that takes longer is ended")
    parser.add_argument("--memory-gb", type=float, default=12.0, help="so is one that needs more; only where /proc is")
    parser.add_argument("--plain", action="store_true", help="also measure Sostenuto without native code")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the measurement under way is ended too
    bench = Bench(given)
    results: list[tuple[Cell, Rounds]] = []
    for cell in cells(given):
        results.append((cell, bench.measure(cell)))
        text = report(given, results)  # written after every cell: a run that is stopped leaves what it has
        (bench.out / "table.md").write_text(text, encoding="utf-8")
        as_json = [asdict(one) | {"batch": one.batch, "rounds": rounds} for one, rounds in results]
        settings = {name: str(value) for name, value in vars(given).items()}
        (bench.out / "results.json").write_text(
            json.dumps({"settings": settings, "results": as_json}, indent=2) + "\n", encoding="utf-8"
        )
    print(report(given, results))


if __name__ == "__main__":
    main()
