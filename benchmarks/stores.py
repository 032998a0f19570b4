"""Stores: events a second that are durable, and what a request waits for, on LMDB and on Redis.

    python benchmarks/stores.py --out results

Redis is a server of this script's own, on a unix socket, `appendfsync always`; LMDB syncs every commit. Both write into
a folder of `--folder`, so name one on the disk that is meant: that disk's sync is what most of a durable write is.

- durable events a second: `--callers` threads each send batches of 32 through one group committer, wait for the
  answer, and send the next; beside it one caller alone.
- reading: histories of 1,000, 10,000 and 100,000 events into columns, the newest 32 events, `head`, a state of 64 KiB.

One `fsync` of 4 KiB on the same disk is measured beside: a single caller cannot be faster than that.
Medians; least and 95th percentile in brackets.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sostenuto.schema.events import Event
from sostenuto.serving.stores.committing import GroupCommitter
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.stores.store import Store

LAYOUT = RecordLayout(fields=(("channel", "categorical"), ("price", "numeric")))
LENGTHS = (1_000, 10_000, 100_000)
USERS, ITEMS, BATCH = 2_000, 20_000, 32
HOUR_MS = 3_600_000
STATE_BYTES = 65_536
BULK = 5_000


def event(number: int, user: str) -> Event:
    return Event(
        event_id=str(number),
        user_id=user,
        item_id=f"item{number * 7_919 % ITEMS}",
        time_ms=number * HOUR_MS,
        action=("view", "buy")[number % 2],
        value=float(number % 100),
        place=f"shop{number % 50}",
        fields={"channel": "web", "price": 1.5},
    )


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    place = Path(tempfile.mkdtemp(prefix="redis-"))
    command = ["redis-server", "--port", "0", "--unixsocket", str(place / "s"), "--dir", str(folder), "--save", ""]
    durable = ["--appendonly", "yes", "--appendfsync", "always"]
    server = subprocess.Popen([*command, *durable], stdout=subprocess.DEVNULL)
    try:
        while not (place / "s").exists():
            assert server.poll() is None, "redis-server ended"
            time.sleep(0.05)
        yield f"unix://{place / 's'}"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(place)


def timed(call: Callable[[], object], repeats: int) -> dict[str, float]:
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        call()
        taken.append((time.perf_counter_ns() - start) / 1_000)
    taken.sort()
    return {"us": statistics.median(taken), "least": taken[0], "p95": taken[int(0.95 * (len(taken) - 1))]}


def sync_us(folder: Path, repeats: int = 50) -> dict[str, float]:
    with (folder / "sync").open("wb") as file:

        def once() -> None:
            file.write(bytes(4_096))
            file.flush()
            os.fsync(file.fileno())

        return timed(once, repeats)


def durable(store: Store, callers: int, seconds: float, first: int) -> dict[str, float]:
    """Let callers send batches for some seconds through a group committer."""
    until = time.monotonic() + seconds
    waits: list[float] = []

    def call(caller: int) -> None:
        number = first + caller * 10_000_000
        while time.monotonic() < until:
            batch = [event(number + at, f"user{(number + at) * 31 % USERS}") for at in range(BATCH)]
            number += BATCH
            start = time.perf_counter()
            committer.append(batch)
            waits.append(time.perf_counter() - start)

    with GroupCommitter(store) as committer:
        threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = time.perf_counter() - start
        counts = committer.counts()
    waits.sort()
    return {
        "events_a_second": counts.events / taken,
        "events_a_group": counts.events / counts.groups,
        "wait_ms_p50": 1_000 * waits[len(waits) // 2],
        "wait_ms_p99": 1_000 * waits[int(0.99 * (len(waits) - 1))],
    }


def measure(store: Store, seconds: float, callers: int, repeats: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    start = time.perf_counter()
    for length in LENGTHS:
        for at in range(0, length, BULK):
            store.append([event(number, f"long{length}") for number in range(at, min(at + BULK, length))])
    found["bulk_events_a_second"] = sum(LENGTHS) / (time.perf_counter() - start)
    found["one_caller"] = durable(store, 1, seconds, 0)
    found["callers"] = durable(store, callers, seconds, 1_000_000_000)
    found["head"] = timed(lambda: store.head("long10000"), 20 * repeats)
    for length in LENGTHS:
        user = f"long{length}"
        head = store.head(user)
        assert head is not None
        assert head.count == length
        found[f"history {length:,}"] = timed(lambda user=user: store.history(user), repeats)  # type: ignore[misc]
    newest = store.changes(0, LENGTHS[0])[-1].sequence - BATCH
    found["newest 32"] = timed(lambda: store.history("long1000", after_sequence=newest), repeats)
    head = store.head("long1000")
    assert head is not None
    store.put_state("v1", "long1000", revision=head.revision, newest_ms=0, blob=bytes(STATE_BYTES))
    found["state 64 KiB"] = timed(lambda: store.state("v1", "long1000"), repeats)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: the system's")
    parser.add_argument("--seconds", type=float, default=5.0, help="of sending, per row")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--stores", default="lmdb,redis")
    parser.add_argument("--out", type=Path, default=None, help="folder of stores.json")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    found: dict[str, Any] = {}
    try:
        for kind in given.stores.split(","):
            place = folder / kind
            place.mkdir()
            if kind == "lmdb":
                with open_store(place / "store", LAYOUT) as store:
                    found[kind] = measure(store, given.seconds, given.callers, given.repeats)
            else:
                with redis_server(place) as url, open_store(url, LAYOUT) as store:
                    found[kind] = measure(store, given.seconds, given.callers, given.repeats)
        found["sync"] = sync_us(folder)
    finally:
        shutil.rmtree(folder)
    found["machine"] = {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("lmdb", "redis", "numpy")},
    }
    for kind, rows in found.items():
        print(kind)
        for name, row in rows.items() if kind != "sync" else [("4 KiB", rows)]:
            if isinstance(row, dict) and "us" in row:
                print(f"  {name:24} {row['us']:10,.0f} us [{row['least']:,.0f}, {row['p95']:,.0f}]")
            elif isinstance(row, dict):
                print(f"  {name:24} " + ", ".join(f"{key} {value:,.1f}" for key, value in row.items()))
            else:
                print(f"  {name:24} {row:,.1f}" if isinstance(row, float) else f"  {name:24} {row}")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "stores.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
