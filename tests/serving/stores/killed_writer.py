"""Appends the events of a stream and tells which are acknowledged, until it is killed.

    python killed_writer.py LOCATION FIRST LAST SEED

Batches go through a group committer from several threads, as in a server.
"""

import os
import random
import sys
import threading
import time

from tests.serving.stores.conftest import LAYOUT
from tests.serving.stores.events import event

from sostenuto.schema.errors import StoreGone
from sostenuto.serving.stores.committing import GroupCommitter
from sostenuto.serving.stores.opening import open_store

THREADS = 4
MOST = 32
PATIENCE_S = 60.0


def sent(number):
    """Return the event of a number; users take turns, one in eight events comes late."""
    late = 50_000 if number % 8 == 0 else 0
    return event(number, user=f"user{number % 37}", time_ms=10 * number - late, fields={"channel": f"c{number % 5}"})


def write(committer, numbers, seed):
    generator = random.Random(seed)
    at = 0
    while at < len(numbers):
        some = numbers[at : at + generator.randint(1, MOST)]
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                answers = committer.append([sent(number) for number in some])
            except StoreGone:  # the server was killed, and comes back
                assert time.monotonic() < until
                time.sleep(0.05)
            else:
                break
        lines = [f"{number} {answer.sequence}\n" for number, answer in zip(some, answers, strict=True)]
        os.write(1, "".join(lines).encode())  # one write below the size that pipes keep whole
        at += len(some)


def main():
    location, first, last, seed = sys.argv[1], *map(int, sys.argv[2:])
    numbers = range(first, last)
    with open_store(location, LAYOUT) as store, GroupCommitter(store) as committer:
        parts = [numbers[part::THREADS] for part in range(THREADS)]
        threads = [threading.Thread(target=write, args=(committer, part, seed + at)) for at, part in enumerate(parts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
