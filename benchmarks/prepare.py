"""Preparation of a generated log against a plain polars sort + group_by of the same file: time and peak memory.

    python benchmarks/prepare.py --events 20000000 --memory-mb 1000 --repeats 1

Each measurement runs in a process of its own; its peak resident memory is what the system says of that child. That
counts pages of mapped files too, which the system may take back at any time; the peak of anonymous memory, which it
cannot, is sampled every 50 ms where /proc tells it (0 elsewhere).

The log has users, items, times, actions and values; `prepare` writes the whole folder, requests of `global-time`
included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import polars as pl

CHUNK = 1_000_000


def generate(path: Path, events: int, seed: int) -> None:
    """Write `events` rows in pieces: 200 behaviours a user, popular items often, one year, whole seconds."""
    generator = np.random.default_rng(seed)
    users, items = max(events // 200, 10), max(events // 100, 50)
    pieces = []
    for start in range(0, events, CHUNK):
        size = min(CHUNK, events - start)
        frame = pl.DataFrame(
            {
                "user": generator.integers(0, users, size),
                "item": (items * generator.random(size) ** 3).astype(np.int64),
                "time": 1_600_000_000 + generator.integers(0, 365 * 86_400, size),
                "action": generator.choice(["view", "cart", "buy"], size, p=[0.8, 0.12, 0.08]),
                "value": generator.gamma(2.0, 5.0, size).round(2),
            }
        )
        if path.suffix == ".csv":
            with path.open("ab") as file:
                frame.write_csv(file, include_header=start == 0)
        else:
            pieces.append(path.with_suffix(f".{start:012d}.piece"))
            frame.write_parquet(pieces[-1])
    if pieces:
        pl.scan_parquet(pieces).sink_parquet(path, row_group_size=CHUNK)
        for piece in pieces:
            piece.unlink()


def plain(path: Path) -> None:
    """Read everything, sort it, make a list per user: what a notebook would do, held in memory."""
    frame = pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)
    frame.sort("user", "time").group_by("user", maintain_order=True).agg(pl.all())


def ours(path: Path, memory_mb: int) -> None:
    from sostenuto.data.preparation import prepare
    from sostenuto.data.spec import make_spec

    columns = {"user": "user", "item": "item", "action": "action", "value": "value"}
    events = {"files": path.name, "time": {"column": "time", "unit": "s"}, **columns}
    spec = make_spec({"name": "generated", "folder": path.parent, "events": events, "protocol": "global-time"})
    prepare(spec, path.parent / "prepared", memory_mb=memory_mb, overwrite=True)


class AnonymousPeak(threading.Thread):
    """Samples the anonymous memory of a process until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.status, self.ended, self.peak_gb = Path(f"/proc/{pid}/status"), threading.Event(), 0.0

    def run(self) -> None:
        while not self.ended.wait(0.05):
            with contextlib.suppress(OSError):  # no such system, or the process is gone
                found = [line for line in self.status.read_text().splitlines() if line.startswith("RssAnon:")]
                self.peak_gb = max([self.peak_gb, *(int(line.split()[1]) * 1024 / 1e9 for line in found)])


def measured(arguments: list[str]) -> dict[str, float]:
    """Run this file in a child; return its wall-clock and processor seconds and its peak memory."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, __file__, *arguments])
    anonymous = AnonymousPeak(child.pid)
    anonymous.start()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    anonymous.ended.set()
    anonymous.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{arguments} ended with {child.returncode}")
    return {
        "seconds": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "peak_anonymous_gb": anonymous.peak_gb,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--memory-mb", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--formats", nargs="+", default=["csv", "parquet"], choices=["csv", "parquet"])
    parser.add_argument("--folder", type=Path, help="where the log is written; default a temporary folder")
    parser.add_argument("--alone", action="store_true", help="leave polars out: it holds the whole log in memory")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["plain", "prepare"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only == "plain":
        plain(given.file)
        return
    if given.only == "prepare":
        ours(given.file, given.memory_mb)
        return
    results = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for kind in given.formats:
            path = Path(folder) / f"log.{kind}"
            generate(path, given.events, seed=0)
            names = ["prepare"] if given.alone else ["plain", "prepare"]
            both: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for _ in range(given.repeats):
                for name, runs in both.items():  # in turns, so that both meet the same machine
                    runs.append(measured(["--only", name, "--file", str(path), "--memory-mb", str(given.memory_mb)]))
            median = {
                name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
                for name, runs in both.items()
            }
            against = {}
            if not given.alone:
                ratios = [a["seconds"] / b["seconds"] for a, b in zip(both["prepare"], both["plain"], strict=True)]
                against = {
                    "ratio": round(statistics.median(ratios), 2),
                    "ratios": [round(ratio, 2) for ratio in ratios],
                    "cpu_ratio": round(median["prepare"]["cpu_s"] / median["plain"]["cpu_s"], 2),
                }
            results.append(
                {
                    "format": kind,
                    "events_per_s": round(given.events / median["prepare"]["seconds"]),
                    "events": given.events,
                    "file_mb": round(path.stat().st_size / 1e6, 1),
                    "memory_mb": given.memory_mb,
                    **{f"{name}_{key}": round(value, 2) for name, row in median.items() for key, value in row.items()},
                    **against,
                    "load_1min": round(os.getloadavg()[0], 1),
                }
            )
            path.unlink()
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "polars": pl.__version__}
    if given.json:
        print(json.dumps({"machine": machine, "results": results}, indent=2))
        return
    print(machine)
    for row in results:
        words = [f"{row['format']:8} {row['events']:>11,} events", f"prepare {row['prepare_seconds']:.1f} s"]
        words += [f"{row['prepare_peak_gb']:.2f} GB ({row['prepare_peak_anonymous_gb']:.2f} anonymous)"]
        words += [f"{row['events_per_s']:,} events/s"]
        if not given.alone:
            words += [f"plain {row['plain_seconds']:.1f} s, {row['plain_peak_gb']:.2f} GB"]
            words += [f"ratio {row['ratio']:.2f} (bar 3.00), of processor time {row['cpu_ratio']:.2f}"]
        print("  ".join([*words, f"load {row['load_1min']}"]))


if __name__ == "__main__":
    main()
