"""Compiled twins against their plain definitions, forward and backward, in turn in one process: medians and ratios.

    python benchmarks/twins.py [--rounds 7]

Shapes are those of training: a batch of requests of Complete Journey (42 candidates share a history), and batches of
1,024 samples with a history each. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sostenuto.layers.hash_buckets import HashBuckets
from sostenuto.ops.backend import available, notice, using
from sostenuto.ops.table_rows import lookup_rows
from sostenuto.ops.target_attention import UnitWeights, target_attention

Step = Callable[[], Tensor]


def draw(*shape: int) -> Tensor:
    return (torch.randn(*shape) * 0.3).requires_grad_()


def attention(requests: int, length: int, candidates: int, dim: int, units: int, width: int, kind: str) -> Step:
    query, key, value = draw(requests * candidates, dim), draw(requests * length, dim), draw(requests * length, width)
    weights = [draw(units, dim), draw(units, dim), draw(units, dim), draw(units), draw(units), draw(1)]
    unit = UnitWeights(*weights[:5], weights[5][0], None)
    query_offsets, key_offsets = torch.arange(requests + 1) * candidates, torch.arange(requests + 1) * length
    return lambda: target_attention(query, query_offsets, key, key_offsets, value, unit, normalise=kind)  # type: ignore[arg-type]


def buckets(requests: int, length: int, dim: int, width: int) -> Step:
    layer = HashBuckets(dim, [width], num_hashes=48, hash_bits=3, half_life_days=(28.0,))
    vectors, values = torch.randn(requests * length, dim), draw(requests * length, width)
    offsets, times = torch.arange(requests + 1) * length, torch.arange(requests * length) * 3_600_000
    return lambda: layer.encode(vectors, values, offsets, times).sums


def rows(table_rows: int, lookups: int, dim: int) -> Step:
    table, index = draw(table_rows, dim), torch.randint(2, table_rows, (lookups,))
    return lambda: lookup_rows(table, index, 0)


CASES: dict[str, Callable[[], Step]] = {
    "attention, 16 requests x 42 candidates, L 900, softmax": lambda: attention(16, 900, 42, 48, 32, 69, "softmax"),
    "attention, 1,024 samples, L 50": lambda: attention(1024, 50, 1, 32, 64, 32, "none"),
    "attention, 1,024 samples, L 200": lambda: attention(1024, 200, 1, 32, 64, 32, "none"),
    "attention, 1,024 samples, L 690": lambda: attention(1024, 690, 1, 32, 64, 32, "none"),
    "hash buckets, 16 histories, L 900": lambda: buckets(16, 900, 32, 48),
    "table lookup, 50,000 rows, 700,000 lookups": lambda: rows(50_000, 700_000, 16),
}


def timed(step: Step) -> float:
    start = time.perf_counter()
    step().sum().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    libraries = list(available().values())
    if not libraries:
        raise SystemExit(notice())
    twin = libraries[-1]
    print(
        f"| forward + backward, one thread | plain, ms | {twin.processor}, ms | ratio |\n| --- | ---: | ---: | ---: |"
    )
    for name, make in CASES.items():
        step = make()
        found: dict[bool, list[float]] = {False: [], True: []}
        for number in range(rounds + 1):
            for is_twin in (False, True):
                with using(twin if is_twin else None):
                    seconds = timed(step)
                if number:  # the first round warms up
                    found[is_twin].append(seconds)
        plain, fast = (1e3 * statistics.median(found[is_twin]) for is_twin in (False, True))
        print(f"| {name} | {plain:.1f} | {fast:.1f} | {plain / fast:.1f}x |", flush=True)


if __name__ == "__main__":
    main()
