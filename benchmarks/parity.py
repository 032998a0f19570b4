"""Before a release: every model, served over HTTP from a real store, scores as it did offline.

    python benchmarks/parity.py PREPARED OUT --from-date 2017-11-27 [--until-date 2017-12-25] [--models sdim din ...]
        [--stores lmdb redis] [--users 20]

trains each model with the budget `smoke` (a parity needs weights that say something, not good ones), exports it, warms
a store up with everything before the date, starts a server with all models over it, and plays the rest of the log to it
in order of time: events of all users, requests of the first `--users` users that have some, every one of them scored by
every model. A request that is scored otherwise than offline by more than 1e-5 of max(1, largest logit) fails the run.
Runs and bundles that are there are not made again. On Complete Journey, 2017-11-27 begins week 49.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' server, client and redis

from tests.serving.live_server import OverHTTP, live_server
from tests.serving.stores.redis_server import start_redis

from sostenuto.data.prepared import PreparedData
from sostenuto.models.table import MODELS
from sostenuto.schema.ranker import ItemKeeper
from sostenuto.serving.parity import TOLERANCE, Offline, replay
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.warming import warm_up
from sostenuto.training.run import open_run

EVENTS_AT_ONCE = 500


def command(*arguments: object) -> None:
    done = subprocess.run([sys.executable, "-m", "sostenuto", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"sostenuto {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")


def prepare_model(name: str, data: Path, out: Path) -> None:
    """Train and export a model, unless it is there."""
    if (out / "bundles" / name / "bundle.json").is_file():
        return
    command("train", data, "--recipe", name, "--out", out / "runs" / name, "--set", "budget=smoke")
    command("export", out / "runs" / name, "--out", out / "bundles" / name, "--data", data)


@contextlib.contextmanager
def store_of(kind: str, out: Path) -> Iterator[str]:
    """Give the place of a new store, and take it away afterwards."""
    folder = out / f"store-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    if kind == "lmdb":
        yield f"lmdb:{folder}"
    else:
        server = start_redis(folder)
        try:
            yield server.url()
        finally:
            server.end()
    shutil.rmtree(folder, ignore_errors=True)


def asking_users(data: PreparedData, from_ms: int, until_ms: int, count: int) -> list[int]:
    """Return users that ask between two moments, spread over all who do."""
    asking: set[int] = set()
    for split in ("train", "valid", "test"):
        requests = data.requests(split)
        time_ms = np.asarray(requests.time_ms)
        asking |= set(np.asarray(requests.user)[(time_ms >= from_ms) & (time_ms < until_ms)].tolist())
    found = sorted(asking)
    return [found[n] for n in np.unique(np.linspace(0, len(found) - 1, count).astype(int))]


def measure(kind: str, data: PreparedData, out: Path, names: list[str], users: int, span: tuple[int, int]) -> dict:
    from_ms, until_ms = span
    offline = {}
    for name in names:
        run = open_run(out / "runs" / name, data.folder)
        run.ranker.eval() if isinstance(run.ranker, torch.nn.Module) else None
        if isinstance(run.ranker, ItemKeeper):
            run.ranker.keep_items(run.collator.assembler.catalogue())
        offline[name] = Offline(collator=run.collator, ranker=run.ranker)
    chosen = asking_users(data, from_ms, until_ms, users)
    worst: dict[str, float] = dict.fromkeys(names, 0.0)
    count: dict[str, int] = dict.fromkeys(names, 0)
    lengths: list[int] = []
    with store_of(kind, out) as place:
        started = time.monotonic()
        with open_store(place, RecordLayout.of(data.features.behaviour_fields)) as store:
            warmed = warm_up(store, data, until_ms=from_ms)
        print(f"{kind}: {warmed:,} events in the store after {time.monotonic() - started:.0f} s", flush=True)
        server_folder = out / f"server-{kind}"
        shutil.rmtree(server_folder, ignore_errors=True)
        with (
            live_server(
                server_folder, store=place, bundle=out / "bundles" / names[0], follow_every_s=0.0, encode=False
            ) as server,
            OverHTTP(server) as service,
        ):
            for name in names:
                service.post("/v1/models", {"bundle": name})
            versions = {one["bundle"]: one["version"] for one in service.get("/v1/models")["models"] if one["loaded"]}
            names_of = {versions[name]: name for name in names}
            print(f"{kind}: {len(names)} models loaded after {time.monotonic() - started:.0f} s", flush=True)
            models = {version: offline[name] for version, name in names_of.items()}
            log = replay(
                data,
                models,
                service,
                from_ms=from_ms,
                until_ms=until_ms,
                users=chosen,
                events_at_once=EVENTS_AT_ONCE,
            )
            for one in log:
                name = names_of[one.model]
                worst[name] = max(worst[name], one.difference)
                count[name] += 1
                lengths.append(one.history_length)
                if sum(count.values()) % 500 == 0:
                    when = dt.datetime.fromtimestamp(one.time_ms / 1000, dt.UTC)
                    print(f"{kind}: {when:%Y-%m-%d}, {sum(count.values()):,} rankings", flush=True)
            states = {state: service.states.count(state) for state in sorted(set(service.states))}
    return {
        "store": kind,
        "users": len(chosen),
        "requests": count,
        "worst": worst,
        "states": states,
        "longest_history": max(lengths, default=0),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--from-date", type=dt.date.fromisoformat, required=True)
    parser.add_argument("--until-date", type=dt.date.fromisoformat, default=dt.date(9999, 12, 31))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--stores", nargs="+", default=["lmdb", "redis"], choices=["lmdb", "redis"])
    parser.add_argument("--users", type=int, default=20)
    given = parser.parse_args()
    data = PreparedData(given.data)
    zone = ZoneInfo(data.manifest.time_zone)
    span = [
        int(dt.datetime.combine(day, dt.time(), zone).timestamp() * 1000)
        for day in (given.from_date, min(given.until_date, dt.date(9000, 1, 1)))
    ]
    for n, name in enumerate(given.models):
        print(f"[{n + 1}/{len(given.models)}] {name}", flush=True)
        prepare_model(name, given.data, given.out)
    results = [measure(kind, data, given.out, given.models, given.users, (span[0], span[1])) for kind in given.stores]
    (given.out / "parity.json").write_text(json.dumps(results, indent=2) + "\n")
    failed = False
    for result in results:
        for name, worst in result["worst"].items():
            bad = not worst <= TOLERANCE or not result["requests"][name]
            failed |= bad
            print(
                f"{result['store']:6}{name:20}{result['requests'][name]:6} requests, worst {worst:.1e}", "FAILED" * bad
            )
        print(f"{result['store']:6}longest history {result['longest_history']:,}; states {result['states']}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
