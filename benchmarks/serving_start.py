"""How long a server takes to come up over a store: from the start of the process to the first 200 of /readyz.

    python benchmarks/serving_start.py BUNDLE STORE [--starts 3]

starts `sostenuto serve` several times, one after another, and ends each in peace. The first start over a store that no
server has run on counts all its events; the later ones read what the one before has kept. STORE is changed by that:
name a copy. Prints JSON: seconds of each start, events, load average.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' server

from tests.serving.live_server import live_server

from sostenuto.serving.stores.opening import open_store


def main() -> None:
    """Start, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("store")
    parser.add_argument("--starts", type=int, default=3)
    asked = parser.parse_args()
    with open_store(asked.store) as store:
        stats = store.stats()
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.starts):
            began = time.perf_counter()
            with live_server(Path(folder) / "server", store=asked.store, bundle=asked.bundle):
                seconds.append(round(time.perf_counter() - began, 2))
    told = {"store": stats.kind, "events": stats.events, "ready_after_s": seconds, "load": os.getloadavg()[0]}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
