"""DFGR against MetaGR: pairs of attention, training step, peak memory, and a request, in one run.

    python benchmarks/flows.py [--lengths 1000 4000] [--rounds 7] [--layers 2] [--full-head] [--json FILE]

A user has N exposures, each with an action, each a request of its own with one candidate: the exposure. MetaGR reads
2 N tokens, item and action in turn, and takes its losses at its own item tokens; DFGR reads N real tokens and N fake
ones. Both run the same blocks, the same blocked attention that never touches the upper triangle, and both leave out
what nobody reads of the last block. At inference a user's N exposures are encoded and 100 candidates scored.

The tower reads the flow alone (`pure`); with `--full-head` also everything that DIN's tower reads, which costs both the
same. One process, one thread; the two take turns within a round; seconds of the processor (not of the clock: others may
use the machine), medians, and the quartiles of the ratio of each round. Peak memory is of a training step in a process
of its own, above what stood there before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from sostenuto.bench.machine import this_machine
from sostenuto.models.table import build, default_config
from sostenuto.ops.jagged import lengths_to_offsets
from sostenuto.schema.features import FeatureSpec, Field
from sostenuto.schema.histories import Candidates, Context, History, SequenceBatch
from sostenuto.training.process_memory import keep_freed

MODELS = ("dfgr", "metagr")
FEATURES = FeatureSpec(
    num_items=5_000,
    num_item_rows=5_000,
    categories=(Field(name="kind", kind="categorical", size=50),),
    num_actions=5,
)
CANDIDATES = 100  # of the request
EVENTS = 4_000  # of a training step: 4 users of 1,000, 1 of 4,000
START_MS = 1_500_000_000_000
HOUR_MS = 3_600_000


def exposures_of(users: int, length: int, seed: int) -> SequenceBatch:
    """Draw users whose every exposure is a request."""
    generator = torch.Generator().manual_seed(seed)
    count = users * length

    def drawn(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    gap = (torch.rand(users, length, generator=generator) * 6 * HOUR_MS).long() + 1000
    time_ms = (START_MS + gap.cumsum(1)).flatten()
    item, kind, action = drawn(2, FEATURES.num_items), drawn(2, 50)[:, None], drawn(2, FEATURES.num_actions)
    row = torch.arange(users).repeat_interleave(length)
    none = torch.zeros(count, dtype=torch.int64)
    return SequenceBatch(
        histories=History(
            offsets=lengths_to_offsets(torch.full((users,), length)),
            item=item,
            category=kind,
            time_ms=time_ms,
            action=action,
            value=torch.full((count,), torch.nan),
            place=none,
        ),
        row=row,
        prefix=torch.arange(length).repeat(users),
        candidates=Candidates(offsets=torch.arange(count + 1), item=item, category=kind, match=torch.zeros(count, 0)),
        context=Context(time_ms=time_ms, place=none),
        labels=(action > 2).float(),
        list_id=none,
        request=torch.arange(count),
        user=row + 2,
    )


def request_of(length: int, seed: int) -> tuple[History, Candidates, Context]:
    """Draw a user of N exposures and 100 candidates."""
    batch = exposures_of(1, length + CANDIDATES, seed)
    past = batch.histories
    history = dataclasses.replace(past.part(0, 1), offsets=torch.tensor([0, length]))
    cut = {name: getattr(past, name)[:length] for name in ("item", "category", "time_ms", "action", "value", "place")}
    candidates = Candidates(
        offsets=torch.tensor([0, CANDIDATES]),
        item=past.item[length:],
        category=past.category[length:],
        match=torch.zeros(CANDIDATES, 0),
    )
    context = Context(time_ms=past.time_ms[-1:] + HOUR_MS, place=torch.zeros(1, dtype=torch.int64))
    return dataclasses.replace(history, **cut), candidates, context


def ranker_of(name: str, layers: int, *, pure: bool) -> Any:
    """Make a ranker of width 64."""
    config = dataclasses.replace(
        default_config(name), dim=64, layers=layers, pure=pure, vector_dim=0, key_vector_dim=0, item_dim=32
    )
    return build(name, config, FEATURES, seed=0)


def step_of(ranker: Any, batch: SequenceBatch) -> None:
    """Run a training step's forward and backward pass."""
    ranker.zero_grad(set_to_none=True)
    binary_cross_entropy_with_logits(ranker.logits_along(batch).logits, batch.labels).backward()


def pairs_of(name: str, length: int, layers: int) -> int:
    """Count the pairs of query and key that one user's training step looks at, own keys included, by arithmetic.

    The last block has no queries of real tokens (DFGR) or of actions (MetaGR).
    """
    n = length
    if name == "dfgr":
        return (layers - 1) * (n * n + n) + n * (n + 1) // 2
    return (layers - 1) * (2 * n * n + n) + n * n


def in_turns(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return the seconds of each call in every round, after one round that does not count."""
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for taken, call in zip(seconds, calls, strict=True):
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
    return seconds


def _peak(name: str, length: int, layers: int, pure: bool, answer: Any) -> None:
    torch.set_num_threads(1)
    ranker, batch = ranker_of(name, layers, pure=pure).train(), exposures_of(EVENTS // length, length, 0)
    step_of(ranker_of(name, layers, pure=pure), exposures_of(1, 50, 0))  # libraries are loaded and warm
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    step_of(ranker, batch)
    answer.put(_status("VmHWM") - before)


def _status(name: str) -> int:
    """Return bytes of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def peak_memory(name: str, length: int, layers: int, *, pure: bool) -> int:
    """Return the bytes that a training step adds, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=_peak, args=(name, length, layers, pure, answer))
    child.start()
    found = int(answer.get())
    child.join()
    return found


def ratios_of(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile of ours / theirs."""
    each = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, _, high = statistics.quantiles(each, n=4)
    return low, statistics.median(each), high


def measure(length: int, rounds: int, layers: int, *, pure: bool) -> dict[str, Any]:
    """Return all numbers of one length."""
    users = max(1, EVENTS // length)
    rankers = {name: ranker_of(name, layers, pure=pure) for name in MODELS}
    batch = exposures_of(users, length, 0)
    training = in_turns([partial(step_of, ranker.train(), batch) for ranker in rankers.values()], rounds)
    history, candidates, context = request_of(length, 1)

    whole = [partial(_asked, ranker.eval(), history, candidates, context) for ranker in rankers.values()]
    inference = in_turns(whole, max(rounds, 11))
    with torch.inference_mode():
        states = [ranker.encode(history) for ranker in rankers.values()]
    scoring = [
        partial(_scored, r, state, candidates, context) for r, state in zip(rankers.values(), states, strict=True)
    ]
    cached = in_turns(scoring, max(rounds, 11))
    memory = [peak_memory(name, length, layers, pure=pure) for name in MODELS]
    pairs = [users * pairs_of(name, length, layers) for name in MODELS]
    return {
        "length": length,
        "users": users,
        "pairs": dict(zip(MODELS, pairs, strict=True)),
        "pairs_ratio": pairs[0] / pairs[1],
        "train_s": {name: statistics.median(s) for name, s in zip(MODELS, training, strict=True)},
        "train_ratio": ratios_of(*training),
        "peak_bytes": dict(zip(MODELS, memory, strict=True)),
        "request_s": {name: statistics.median(s) for name, s in zip(MODELS, inference, strict=True)},
        "request_ratio": ratios_of(*inference),
        "cached_s": {name: statistics.median(s) for name, s in zip(MODELS, cached, strict=True)},
        "cached_ratio": ratios_of(*cached),
    }


def _asked(ranker: Any, history: History, candidates: Candidates, context: Context) -> None:
    with torch.inference_mode():
        ranker.score(ranker.encode(history), candidates, context)


def _scored(ranker: Any, state: Any, candidates: Candidates, context: Context) -> None:
    with torch.inference_mode():
        ranker.score(state, candidates, context)


def shown(found: dict[str, Any]) -> str:
    """Return the table of one length."""

    def line(what: str, key: str, unit: float, word: str, ratio: tuple[float, float, float] | float) -> str:
        ours, theirs = (found[key][name] / unit for name in MODELS)
        text = f"{ratio:.2f}" if isinstance(ratio, float) else f"{ratio[1]:.2f} ({ratio[0]:.2f} .. {ratio[2]:.2f})"
        return f"| {what} | {ours:,.1f} {word} | {theirs:,.1f} {word} | {text} |"

    memory = found["peak_bytes"]["dfgr"] / found["peak_bytes"]["metagr"]
    return "\n".join(
        [
            f"\nN = {found['length']:,}, {found['users']} users in a step\n",
            "| | DFGR | MetaGR | DFGR / MetaGR |",
            "|---|---|---|---|",
            line("attention pairs, training", "pairs", 1e6, "M", found["pairs_ratio"]),
            line("training step", "train_s", 1e-3, "ms", found["train_ratio"]),
            line("peak memory of a step", "peak_bytes", 2**20, "MiB", memory),
            line("encode and score 100", "request_s", 1e-3, "ms", found["request_ratio"]),
            line("score 100, cached", "cached_s", 1e-3, "ms", found["cached_ratio"]),
        ]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1_000, 4_000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--full-head", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()
    print(f"torch {torch.__version__}, one thread, D = 64, {options.layers} blocks; {this_machine()}")
    found = []
    for length in options.lengths:
        found.append(measure(length, options.rounds, options.layers, pure=not options.full_head))
        print(shown(found[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
