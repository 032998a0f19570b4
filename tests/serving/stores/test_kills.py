"""Processes that are killed while they write: what was acknowledged is there, once."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serving.stores.killed_writer import sent
from tests.serving.stores.redis_server import start_redis

from sostenuto.serving.stores.opening import open_store

ROOT = Path(__file__).parents[3]


def start_writer(location, first, last, seed):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    command = [sys.executable, str(Path(__file__).with_name("killed_writer.py")), location]
    command += [str(each) for each in (first, last, seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def read_acknowledged(writer, acknowledged, most=None):
    """Read lines until `most` have come or there are none; return how many came."""
    count = 0
    for line in writer.stdout:
        if line.endswith(b"\n"):
            number, sequence = map(int, line.split())
            assert acknowledged.setdefault(number, sequence) == sequence  # told again, it is the same event
            count += 1
            if count == most:
                break
    return count


def stream_with_kills(location, total, kills, seed, kill_server=None):
    generator = random.Random(seed)
    acknowledged = {}
    moments = sorted(generator.randrange(1, total) for _ in range(kills))
    for at, moment in enumerate(moments):
        first = next((number for number in range(total) if number not in acknowledged), total)
        writer = start_writer(location, first, total, seed + at)
        try:
            read_acknowledged(writer, acknowledged, max(1, moment - len(acknowledged)))
            if kill_server is not None and at % 2:
                kill_server()  # under a writer that goes on as soon as the server is back
                read_acknowledged(writer, acknowledged, 100)
        finally:
            writer.kill()
            read_acknowledged(writer, acknowledged)  # what was told before it died
            writer.wait()
            writer.stdout.close()
        with open_store(location) as store:
            check(store, acknowledged, total)
    first = next((number for number in range(total) if number not in acknowledged), total)
    writer = start_writer(location, first, total, seed)
    read_acknowledged(writer, acknowledged)
    assert writer.wait() == 0
    writer.stdout.close()
    assert sorted(acknowledged) == list(range(total))
    with open_store(location) as store:
        check(store, acknowledged, total)
        assert store.stats().events == total
    return acknowledged


def check(store, acknowledged, total):
    """No acknowledged event is lost, none is there twice, nothing is there that was not sent."""
    assert store.verify() == []
    by_sequence = {}
    for block in store.all_events():
        by_sequence |= dict(zip(block.sequence.tolist(), block.time_ms.tolist(), strict=True))
    assert len(by_sequence) == store.stats().events <= total
    times = {number: sent(number).time_ms for number in acknowledged}
    assert {number: by_sequence[sequence] for number, sequence in acknowledged.items()} == times
    assert len(set(acknowledged.values())) == len(acknowledged)
    assert [change.sequence for change in store.changes(0, 10 * total)] == sorted(by_sequence)


def run(kind, tmp_path, total, kills, seed):
    if kind == "lmdb":
        stream_with_kills(str(tmp_path / "store"), total, kills, seed)
        return
    server = start_redis(tmp_path / "redis")
    try:

        def kill_server():
            server.kill()
            server.start()

        stream_with_kills(server.url(), total, kills, seed, kill_server)
    finally:
        server.end()


@pytest.mark.slow
def test_no_acknowledged_event_is_lost_or_doubled_by_kills(kind, tmp_path):
    run(kind, tmp_path, total=5_000, kills=5, seed=1)


@pytest.mark.slow
@pytest.mark.long
def test_no_acknowledged_event_is_lost_or_doubled_by_many_kills(kind, tmp_path):
    run(kind, tmp_path, total=50_000, kills=30, seed=2)
