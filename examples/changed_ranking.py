"""A ranking over HTTP, an event, and the ranking that follows: the last step of `make demo`.

    python examples/changed_ranking.py demo/bundle demo/store --user 1609

Starts `sostenuto serve` on a free port of this machine, over a copy of the store, so that it can be run again and shows
the same; asks as any client would; ends the server, whatever happens.
"""

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HOUR_MS = 3_600_000
# popularity otherwise follows some hundredths of a second behind, and the ranking after the event would hang on luck
SETTINGS = "[service]\nfollow_every_s = 0\nencode = false\n"
PATIENCE_S = 180  # for the server to be ready: it reads every event of the store once
END_S = 60  # for the server to end


def ask(url: str, body: object = None) -> dict:
    """Send JSON, or nothing, and return the answer; a problem document is said and ends the example."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.code} {json.load(error).get('detail', '')}")


def wait_until_ready(url: str, server: subprocess.Popen, log: Path) -> None:
    """Return when /readyz says 200; say why where the server ends before that."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if server.poll() is not None:
            sys.exit(f"the server did not come up:\n{log.read_text()[-2_000:]}")
        try:
            urllib.request.urlopen(url + "/readyz", timeout=5).close()
            return
        except OSError:  # nobody listens yet, or 503
            time.sleep(0.2)
    sys.exit(f"the server was not ready within {PATIENCE_S} s:\n{log.read_text()[-2_000:]}")


def show(url: str, user_id: str) -> None:
    """Rank for a user, send an event of hers, and rank again."""
    (newest,) = ask(f"{url}/v1/users/{urllib.parse.quote(user_id, safe='')}?limit=1")["events"]
    moment = {"time_ms": newest["time_ms"] + 24 * HOUR_MS, "place": newest["place"]}  # the log ends years ago
    who = {"user_id": user_id, **moment}
    found = ask(url + "/v1/recommend", {**who, "k": 10, "explore": False})
    question = {**who, "candidates": [item["item_id"] for item in found["items"]]}
    before = ask(url + "/v1/rank", question)
    bought = before["items"][-1]
    event = {"user_id": user_id, "item_id": bought, "action": newest["action"], "place": newest["place"],
             "time_ms": newest["time_ms"] + 23 * HOUR_MS}  # fmt: skip
    receipt = ask(url + "/v1/events", event)["events"][0]
    after = ask(url + "/v1/rank", question)
    why = {item: ask(url + "/v1/explain", {**who, "items": [item]})["items"][0] for item in after["items"]}

    print(f"User {user_id}, {before['history_length']:,} behaviours, ranked over HTTP by {before['model']}")
    print(f"Event: {event['action']} of {bought} {why[bought]['label']}, an hour before the request: "
          f"{receipt['outcome']}, durable as number {receipt['sequence']:,}")  # fmt: skip
    print(f"{'before':>14} {'after':>14}  item       name")
    for place, (item, score) in enumerate(zip(after["items"], after["scores"], strict=True), 1):
        was = before["items"].index(item)
        mark = "  <- bought" if item == bought else "" if was + 1 == place else "  <- moved"
        print(f"{was + 1:>4} {before['scores'][was]:>9.4f} {place:>4} {score:>9.4f}  {item:<10} "
              f"{why[item]['label']}{mark}")  # fmt: skip
    reasons = "; ".join(f"{one['label']} {one['count']}x ({one['drop']:+.3f})" for one in why[bought]["reasons"])
    print(f"The score of {bought} now rests on: {reasons or 'no behaviour that lowers it when it is taken away'}")


def main() -> None:
    """Start the server, show, end the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder that `sostenuto export` made")
    parser.add_argument("store", type=Path, help="folder that `sostenuto store warm-up` filled; it is left as it is")
    parser.add_argument("--user", required=True, help="as in the log")
    given = parser.parse_args()
    try:
        import lmdb
    except ImportError:
        sys.exit("lmdb is not installed; pip install 'sostenuto[serve]'")
    if not (given.store / "data.mdb").is_file():
        sys.exit(f"{given.store} is no store; fill one with `sostenuto store warm-up`")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # so that what is below in `finally` is done
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="changed-ranking-", dir=given.store.parent) as name:
        folder, log = Path(name), Path(name) / "server.log"
        (folder / "store").mkdir()
        (folder / "server.toml").write_text(SETTINGS)
        with lmdb.open(str(given.store), create=False, readonly=True) as store:
            store.copy(str(folder / "store"))  # whole, even while a server writes into it
        command = [sys.executable, "-m", "sostenuto", "serve", str(given.bundle), "--store", str(folder / "store"),
                   "--port", str(port), "--settings", str(folder / "server.toml")]  # fmt: skip
        with log.open("wb") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", server, log)
            show(f"http://127.0.0.1:{port}", given.user)
        finally:
            server.terminate()
            try:
                server.wait(END_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


if __name__ == "__main__":
    main()
