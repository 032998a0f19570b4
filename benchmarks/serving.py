"""Load on a real server: latency of rankings against an empty endpoint, by length of history, and events per second.

    python benchmarks/serving.py OUT [--models sdim din] [--stores lmdb redis] [--rate 100] [--seconds 30] [--rounds 3]
        [--workers 2]

makes the log of `serving_data.py`, trains each model with the budget `smoke`, exports it, warms a store up, starts
`sostenuto serve`, and asks it from this process over loopback:

- `empty`: GET /healthz, `rank`: POST /v1/rank with 500 candidates in msgpack for users with 1,000, 10,000 and 100,000
  behaviours whose state is warm, each at `--rate` requests a second, sent on schedule whether or not the ones before
  have been answered (a slow server cannot slow the load down), the kinds in turn within a round; of other models than
  sdim one at a time, each sent when the one before is answered;
- `events`: POST /v1/events with batches of 32 of many users, as many a second as make 2,000 events, and then as many as
  are taken in.

A latency runs from the moment a request was due to the last byte of its answer. Results go to OUT/serving.json and
OUT/serving.md. Run it on an idle machine: the load average is in the results.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' server and redis

from benchmarks.serving_data import ITEMS, PLACES
from tests.serving.live_server import live_server
from tests.serving.stores.redis_server import start_redis

from sostenuto.data.prepared import PreparedData
from sostenuto.serving.bundle import open_bundle
from sostenuto.serving.deployed import Deployed
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.warming import warm_up

LENGTHS = (1_000, 10_000, 100_000)
USERS_OF_LENGTH = 4
CANDIDATES, BATCH, WANTED_EVENTS = 500, 32, 2_000
CONNECTIONS = 32
PACKED = b"content-type: application/msgpack\r\naccept: application/msgpack\r\n"


@dataclass
class Latencies:
    """What one kind of request took, seconds."""

    taken: list[float] = field(default_factory=list)
    failed: int = 0
    late: int = 0  # sent more than a millisecond after they were due, for want of a connection

    def summary(self) -> dict[str, float]:
        ms = np.array(self.taken) * 1e3
        p50, p90, p99 = (float(np.quantile(ms, q)) for q in (0.5, 0.9, 0.99))
        return {"count": len(ms), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "failed": self.failed, "late": self.late}


class Connection:
    """One kept-alive connection; as little work around the bytes as can be."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Return status and body; a connection that the server has closed for idleness is made anew."""
        for _ in range(2):
            fresh = self.streams is None
            if self.streams is None:
                self.streams = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.streams
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()
                self.streams = None
                if fresh:
                    raise
                continue
            lowered = head.lower()
            at = lowered.find(b"content-length:")
            length = int(lowered[at + 15 : lowered.find(b"\r\n", at)]) if at >= 0 else 0
            return int(head[9:12]), await reader.readexactly(length) if length else b""
        raise ConnectionError("the server closes every connection")


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()


def post(path: str, body: object) -> bytes:
    packed = msgspec.msgpack.encode(body)
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(packed)}\r\n".encode()
        + PACKED
        + b"\r\n"
        + packed
    )


async def open_loop(
    free: asyncio.Queue[Connection], make: Callable[[], bytes], *, rate: float, seconds: float, found: Latencies
) -> None:
    """Send requests on schedule."""
    started = time.perf_counter() + 0.05
    tasks = []

    async def one(due: float, request: bytes) -> None:
        connection = await free.get()
        found.late += time.perf_counter() - due > 1e-3
        try:
            status, body = await connection.ask(request)
            found.taken.append(time.perf_counter() - due)
            if status >= 300 and not found.failed:
                print(f"  status {status}: {body[:300]!r}", flush=True)
            found.failed += status >= 300
        finally:
            free.put_nowait(connection)

    for n in range(int(rate * seconds)):
        due = started + n / rate
        request = make()
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(due, request)))
    await asyncio.gather(*tasks)


async def closed_loop(
    free: asyncio.Queue[Connection], make: Callable[[], bytes], *, clients: int, seconds: float, found: Latencies
) -> float:
    """Send as fast as answers come; return the seconds it took."""
    started = time.perf_counter()

    async def client() -> None:
        connection = await free.get()
        while time.perf_counter() - started < seconds:
            before = time.perf_counter()
            status, _ = await connection.ask(make())
            found.taken.append(time.perf_counter() - before)
            found.failed += status >= 300
        free.put_nowait(connection)

    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started


class Asking:
    """Makes the requests."""

    def __init__(self, now_ms: int) -> None:
        self.random = np.random.default_rng(0)
        self.now_ms = now_ms
        self.events = 0

    def rank(self, length: int) -> bytes:
        items = self.random.choice(ITEMS, CANDIDATES, replace=False)
        user = f"u{length}-{self.random.integers(USERS_OF_LENGTH)}"
        return post(
            "/v1/rank",
            {
                "user_id": user,
                "time_ms": self.now_ms + 3_600_000,
                "candidates": [str(item) for item in items.tolist()],
                "place": str(self.random.integers(PLACES)),
            },
        )

    def append(self) -> bytes:
        rows = []
        users, items = self.random.integers(4_000, size=BATCH), self.random.integers(ITEMS, size=BATCH)
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            self.events += 1
            rows.append(
                {
                    "event_id": f"load-{self.events}",
                    "user_id": f"u100-{user}",
                    "item_id": str(item),
                    "time_ms": self.now_ms + self.events,
                    "action": "view",
                    "place": "3",
                    "value": 1.0,
                }
            )
        return post("/v1/events", rows)


async def measure(port: int, now_ms: int, *, rate: float | None, seconds: float, rounds: int) -> dict[str, object]:
    asking = Asking(now_ms)
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(Connection(port))
    kinds: dict[str, Callable[[], bytes]] = {"empty": lambda: get("/healthz")}
    for length in LENGTHS:
        kinds[f"rank_{length}"] = lambda length=length: asking.rank(length)
    for length in LENGTHS:  # states warm
        await closed_loop(free, kinds[f"rank_{length}"], clients=8, seconds=2, found=Latencies())
    per_round: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, make in kinds.items():
            found = Latencies()
            if rate is None:
                await closed_loop(free, make, clients=1, seconds=seconds, found=found)
            else:
                await open_loop(free, make, rate=rate, seconds=seconds, found=found)
            per_round[name].append(found.summary())
            print(f"  {name:12}{found.summary()}", flush=True)
    events = Latencies()
    await open_loop(free, asking.append, rate=WANTED_EVENTS / BATCH, seconds=seconds, found=events)
    flood = Latencies()
    took = await closed_loop(free, asking.append, clients=16, seconds=seconds, found=flood)
    most = len(flood.taken) * BATCH / took
    print(f"  events      {events.summary()}; most {most:,.0f} events/s", flush=True)
    return {"latency": per_round, "events": events.summary(), "most_events_per_s": most, "flood": flood.summary()}


def run(command: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "sostenuto", *command], check=True, stdout=subprocess.DEVNULL)


def prepare(out: Path, models: list[str]) -> PreparedData:
    script = Path(__file__).with_name("serving_data.py")
    subprocess.run([sys.executable, str(script), str(out / "data")], check=True, stdout=subprocess.DEVNULL)
    data = out / "data" / "prepared"
    for model in models:
        bundle = out / "bundles" / model
        if not (bundle / "bundle.json").is_file():
            folder = str(out / "runs" / model)
            run(["train", str(data), "--recipe", model, "--out", folder, "--set", "budget=smoke"])
            run(["export", folder, "--out", str(bundle)])
    return PreparedData(data)


@contextlib.contextmanager
def warm_store(kind: str, data: PreparedData, out: Path, models: list[str]) -> Iterator[str]:
    folder = out / f"store-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    server = start_redis(folder) if kind == "redis" else None
    place = f"lmdb:{folder}" if server is None else server.url()
    try:
        with open_store(place, RecordLayout.of(data.features.behaviour_fields)) as store:
            warm_up(store, data)
            for model in models:
                Deployed.of(open_bundle(out / "bundles" / model), store).encoder.warm_up()
        yield place
    finally:
        if server is not None:
            server.end()
        shutil.rmtree(folder, ignore_errors=True)


def stage_shares(url_port: int) -> dict[str, float]:
    """Return the share of each stage of rankings, from /metrics."""
    import httpx

    text = httpx.get(f"http://127.0.0.1:{url_port}/metrics", timeout=20).text
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if "stage_seconds_sum" in line and 'route="rank"' in line:
            stage = line.partition('stage="')[2].partition('"')[0]
            sums[stage] = sums.get(stage, 0.0) + float(line.rsplit(" ", 1)[1])
    whole = sum(sums.values())
    return {stage: value / whole for stage, value in sorted(sums.items(), key=lambda pair: -pair[1])} if whole else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=["sdim", "din"])
    parser.add_argument("--stores", nargs="+", default=["lmdb", "redis"], choices=["lmdb", "redis"])
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes of the server")
    given = parser.parse_args()
    data = prepare(given.out, given.models)
    now_ms = int(data.behaviours.time_ms.max()) + 1
    results = []
    for kind in given.stores:
        with warm_store(kind, data, given.out, given.models) as place:
            for model in given.models:
                print(f"{model} over {kind}, load average {os.getloadavg()[0]:.1f}", flush=True)
                folder = given.out / f"server-{kind}-{model}"
                shutil.rmtree(folder, ignore_errors=True)
                bundle = given.out / "bundles" / model
                with live_server(folder, store=place, bundle=bundle, workers=given.workers) as server:
                    rate = given.rate if model == "sdim" else None  # attention over all costs more: one at a time
                    measured = asyncio.run(
                        measure(server.port, now_ms, rate=rate, seconds=given.seconds, rounds=given.rounds)
                    )
                    shares = stage_shares(server.port)
                about = {"store": kind, "model": model, "rate": rate, "workers": given.workers, "load": os.getloadavg()}
                results.append({**about, "stages": shares, **measured})
                now_ms += 10_000_000
    failed = sum(r["failed"] for one in results for rounds in one["latency"].values() for r in rounds)
    failed += sum(one[kind]["failed"] for one in results for kind in ("events", "flood"))
    if failed:
        raise SystemExit(f"{failed:,} requests were not answered as they should be: these are no measurements")
    (given.out / "serving.json").write_text(json.dumps(results, indent=2) + "\n")
    (given.out / "serving.md").write_text(table(results))
    print(table(results))


def table(results: list[dict]) -> str:
    """Return medians over rounds as markdown."""
    lines = ["| store | model | what | a second | p50 ms | p99 ms | p50 / empty | p99 / empty |"]
    lines.append("|---" * 8 + "|")
    for one in results:
        medians = {
            name: [statistics.median(r[q] for r in rounds) for q in ("p50_ms", "p99_ms")]
            for name, rounds in one["latency"].items()
        }
        rows = [(name, one["rate"], *medians[name]) for name in medians]
        empty = medians["empty"]
        said = one["events"]
        rows.append((f"{WANTED_EVENTS:,} events", WANTED_EVENTS / BATCH, said["p50_ms"], said["p99_ms"]))
        for name, rate, p50, p99 in rows:
            often = "one at a time" if rate is None else f"{rate:.0f}"
            cells = (one["store"], one["model"], name, often, f"{p50:.2f}", f"{p99:.2f}")
            lines.append("| " + " | ".join((*cells, f"{p50 / empty[0]:.1f}", f"{p99 / empty[1]:.1f}")) + " |")
        lines.append(f"| {one['store']} | {one['model']} | most events: {one['most_events_per_s']:,.0f}/s |" + " |" * 5)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
