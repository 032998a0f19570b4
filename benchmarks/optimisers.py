"""What a step costs as the tables grow, with the same batch: ours compiled and plain, torch's dense and sparse Adam.

    python benchmarks/optimisers.py [--rounds 7] [--rows 10000 50000 1000000 5000000 10000000] [--json FILE]

Two tables are printed. The first is a whole training step of a small DIN (forward, backward, clipping, optimiser); the
second the optimiser alone (summing repeated rows, and the update). Rows are drawn from the whole table, others in each
step, so most are in no cache when the table is large; every batch has the same pattern of repeats. Sizes take turns
within a round, in one process and one thread; medians, and the quartiles of the ratio of each round. Peak memory at
the default sizes is below 6 GB, and the run takes less than three minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sostenuto.models import table as models
from sostenuto.ops.backend import library, notice, using
from sostenuto.ops.row_updates import state_bytes_per_row
from sostenuto.schema.features import FIRST_KNOWN, FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RequestBatch
from sostenuto.training.config import TrainingConfig
from sostenuto.training.loop import train_step
from sostenuto.training.losses import objective_named
from sostenuto.training.optimiser import RankerOptimiser
from sostenuto.training.touched_rows import Kind, TouchedRowOptimiser

DIM = 16
LENGTH = 50  # behaviours of a request
REQUESTS = {2_000: 64, 30_000: 1_024}  # touched rows -> requests; each has one candidate
BATCHES = 8  # taken in turn, so that a row is cold again when it comes back
SMALL, LARGE = 50_000, 5_000_000  # rows of the ratio
KINDS: tuple[Kind, ...] = ("adam", "rowwise_adam", "adagrad", "rowwise_adagrad")
Clock = Callable[[], float]  # seconds
Step = Callable[[int], object]  # takes the number of the batch


def touched_rows(rows: int, touched: int, seed: int) -> Tensor:
    """Draw distinct rows from everywhere in a table, rising."""
    drawn = np.random.default_rng(seed).choice(rows - FIRST_KNOWN, touched, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(drawn) + FIRST_KNOWN)


def batch_of(rows: int, touched: int, seed: int) -> RequestBatch:
    """Make a batch in which exactly `touched` rows occur: each once, then by chance."""
    requests = REQUESTS[touched]
    lookups = requests * (LENGTH + 1)
    pattern = np.random.default_rng(seed)  # the same for every size of table
    pick = np.concatenate([np.arange(touched), pattern.integers(0, touched, lookups - touched)])
    item = touched_rows(rows, touched, seed)[torch.from_numpy(pattern.permutation(pick))]
    past, asked = item[: requests * LENGTH], item[requests * LENGTH :]
    zeros = torch.zeros(len(past), dtype=torch.int64)
    return RequestBatch(
        histories=History(
            offsets=torch.arange(requests + 1) * LENGTH,
            item=past,
            category=torch.zeros(len(past), 0, dtype=torch.int64),
            time_ms=torch.arange(len(past)) * 3_600_000,
            action=zeros,
            value=torch.zeros(len(past)),
            place=zeros,
        ),
        candidates=Candidates(
            offsets=torch.arange(requests + 1),
            item=asked,
            category=torch.zeros(requests, 0, dtype=torch.int64),
            match=torch.zeros(requests, 0),
        ),
        context=Context(time_ms=torch.arange(1, requests + 1) * 10**9, place=torch.zeros(requests, dtype=torch.int64)),
        labels=torch.from_numpy(pattern.integers(0, 2, requests).astype(np.float32)),
        list_id=torch.zeros(requests, dtype=torch.int64),
        request=torch.arange(requests),
        user=torch.arange(requests),
    )


class Trained:
    """A small DIN over a table of some size, and its optimiser."""

    def __init__(self, rows: int, kind: Kind) -> None:
        wanted = {
            "item_dim": DIM,
            "vector_dim": 0,
            "key_vector_dim": 0,
            "category_dim": 0,
            "attention_units": (32,),
            "attention_activation": "relu",
            "normalise": "none",
            "gap_values": False,
            "tower_units": (64, 32),
            "dropout": 0.0,
            "wide": False,
            "bins": 0,
        }
        config = models.config_class("din")(**wanted)
        features = FeatureSpec(num_items=rows, num_item_rows=rows)
        self.model: Any = models.build("din", config, features, seed=0)
        self.model.train()
        self.training = TrainingConfig(table_optimiser=kind)
        self.optimiser = RankerOptimiser(self.model, self.training)
        self.objective = objective_named("bce")

    def step(self, batch: RequestBatch) -> float:
        loss, _ = train_step(self.model, batch, self.optimiser, self.objective, self.training, 1.0, 1)
        return loss

    def on_small_pages(self) -> Trained:
        """Move table and state to memory as it comes."""
        item = self.model.histories.items.item
        item.weight.data = item.weight.data.clone()
        for state in self.optimiser.tables.state.values():
            for name, value in state.items():
                state[name] = value.clone()
        return self


# -- timing -----------------------------------------------------------------------------------------------------------


def milliseconds(clock: Clock, steps: Mapping[Any, Step], rounds: int) -> dict[Any, list[float]]:
    """Time every step once a round, in turn; the first two rounds warm up."""
    taken: dict[Any, list[float]] = {key: [] for key in steps}
    for number in range(-2, rounds):
        for key, step in steps.items():
            started = clock()
            step(number % BATCHES)
            if number >= 0:
                taken[key].append(1e3 * (clock() - started))
    return taken


def ratio(taken: Mapping[int, Sequence[float]]) -> dict[str, float] | None:
    """Large over small table: of the medians, and the quartiles over rounds."""
    if LARGE not in taken or SMALL not in taken:
        return None
    each = sorted(large / small for large, small in zip(taken[LARGE], taken[SMALL], strict=True))
    low, _, high = statistics.quantiles(each, n=4)
    return {"median": statistics.median(taken[LARGE]) / statistics.median(taken[SMALL]), "low": low, "high": high}


def with_form(step: Step, is_compiled: bool) -> Step:
    chosen = library() if is_compiled else None
    later = 0 if is_compiled else BATCHES // 2  # else the second form would find the rows of the first in the cache

    def run(number: int) -> object:
        with using(chosen):
            return step((number + later) % BATCHES)

    return run


# -- the two tables ---------------------------------------------------------------------------------------------------


def line(name: str, touched: int, taken: Mapping[int, list[float]], state: int | None) -> dict[str, Any]:
    return {
        "what": name,
        "touched": touched,
        "ms": {rows: statistics.median(times) for rows, times in taken.items()},
        "ratio": ratio(taken),
        "state_bytes_per_row": state,
    }


def whole_steps(clock: Clock, sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Time training steps; both forms train the same models."""
    found = []
    trained = {rows: Trained(rows, "adam") for rows in sizes}
    forms = {"compiled": True, "plain": False} if library() is not None else {"plain": False}
    for touched in REQUESTS:
        fitting = {rows: t for rows, t in trained.items() if rows - FIRST_KNOWN >= touched}
        batches = {rows: [batch_of(rows, touched, seed) for seed in range(BATCHES)] for rows in fitting}

        def steps_of(rows: int, t: Trained, given: Mapping[int, list[RequestBatch]] = batches) -> Step:
            return lambda number: t.step(given[rows][number])

        steps = {
            (form, rows): with_form(steps_of(rows, t), is_compiled)
            for form, is_compiled in forms.items()
            for rows, t in fitting.items()
        }
        taken = milliseconds(clock, steps, rounds)
        for form in forms:
            its = {rows: times for (of, rows), times in taken.items() if of == form}
            found.append(line(f"DIN, Adam, {form}", touched, its, state_bytes_per_row("adam", DIM)))
    return found


def pages(clock: Clock, rounds: int) -> list[dict[str, Any]]:
    """Time the same step with tables on large pages and on small ones."""
    touched = max(REQUESTS)
    small, large, plain = Trained(SMALL, "adam"), Trained(LARGE, "adam"), Trained(LARGE, "adam").on_small_pages()
    batches = {rows: [batch_of(rows, touched, seed) for seed in range(BATCHES)] for rows in (SMALL, LARGE)}
    steps: dict[str, Step] = {
        "small": lambda number: small.step(batches[SMALL][number]),
        "large": lambda number: large.step(batches[LARGE][number]),
        "plain": lambda number: plain.step(batches[LARGE][number]),
    }
    taken = milliseconds(clock, steps, rounds)
    state = state_bytes_per_row("adam", DIM)
    return [
        line(name, touched, {SMALL: taken["small"], LARGE: taken[which]}, state)
        for name, which in (("DIN, Adam, large pages", "large"), ("DIN, Adam, pages of 4 KiB", "plain"))
    ]


def sparse_gradient(rows: int, touched: int, seed: int) -> Tensor:
    """Make a gradient as autograd leaves it: rows rise, but are not marked so."""
    at = touched_rows(rows, touched, seed)[None]
    values = torch.randn(touched, DIM, generator=torch.Generator().manual_seed(seed))
    return torch.sparse_coo_tensor(at, values, (rows, DIM), check_invariants=False)


def ours(kind: Kind, rows: int) -> tuple[nn.Parameter, Callable[[], object]]:
    from sostenuto.layers.embedding import Table

    table = Table(rows, DIM).weight
    optimiser = TouchedRowOptimiser({"table": table}, kind=kind)

    def step() -> object:
        optimiser.coalesce()
        return optimiser.step(1e-3)

    return table, step


def torch_adam(is_sparse: bool, rows: int) -> tuple[nn.Parameter, Callable[[], object]]:
    table = nn.Parameter(torch.full((rows, DIM), 0.01))
    if is_sparse:
        optimiser: torch.optim.Optimizer = torch.optim.SparseAdam([table], lr=1e-3)
    else:
        optimiser = torch.optim.Adam([table], lr=1e-3, fused=True)
        table.grad = torch.full_like(table, 1e-3)  # what makes it is not counted
    return table, optimiser.step


def optimisers_alone(clock: Clock, sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    found = []
    makers: dict[str, tuple[Callable[[int], tuple[nn.Parameter, Callable[[], object]]], bool, int | None]] = {}
    for kind in KINDS:
        makers[f"ours, {kind}"] = (lambda rows, kind=kind: ours(kind, rows), True, state_bytes_per_row(kind, DIM))  # type: ignore[misc]
    makers["torch SparseAdam"] = (lambda rows: torch_adam(True, rows), True, 8 * DIM)
    makers["torch Adam, fused, dense"] = (lambda rows: torch_adam(False, rows), False, 8 * DIM)
    gradients = {
        (rows, touched): [sparse_gradient(rows, touched, seed) for seed in range(BATCHES)]
        for rows in sizes
        for touched in REQUESTS
        if rows - FIRST_KNOWN >= touched
    }
    for name, (make, is_sparse, state) in makers.items():
        made = {rows: make(rows) for rows in sizes}
        forms = {"compiled": True, "plain": False} if name.startswith("ours") else {"": False}
        if library() is None:
            forms.pop("compiled", None)
        for touched in REQUESTS if is_sparse else [0]:

            def step_of(rows: int, touched: int = touched, is_sparse: bool = is_sparse, made: Any = made) -> Step:
                table, step = made[rows]

                def run(number: int) -> object:
                    if is_sparse:
                        table.grad = gradients[rows, touched][number]
                    return step()

                return run

            steps = {
                (form, rows): with_form(step_of(rows), is_compiled)
                for form, is_compiled in forms.items()
                for rows in sizes
                if not is_sparse or (rows, touched) in gradients
            }
            taken = milliseconds(clock, steps, rounds)
            for form in forms:
                its = {rows: times for (of, rows), times in taken.items() if of == form}
                found.append(line(f"{name}, {form}" if form else name, touched, its, state))
        del made
        gc.collect()
    return found


# -- printing ---------------------------------------------------------------------------------------------------------


def markdown(title: str, found: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> str:
    head = [f"{title}; ms", "touched rows", *(f"{rows:,}" for rows in sizes), "5 M / 50 k", "state, bytes a row"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for one in found:
        times = [f"{one['ms'][size]:.2f}" if size in one["ms"] else "-" for size in sizes]
        r = one["ratio"]
        shown = f"{r['median']:.2f}x ({r['low']:.2f}-{r['high']:.2f})" if r else "-"
        rows.append(
            [
                one["what"],
                f"{one['touched']:,}" if one["touched"] else "all",
                *times,
                shown,
                str(one["state_bytes_per_row"]),
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def machine() -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [text for text in cpuinfo.read_text(encoding="utf-8").splitlines() if text.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "torch": torch.__version__,
        "twins": notice(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, SMALL, 1_000_000, LARGE, 10_000_000])
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a machine that is not idle")
    parser.add_argument("--json", type=Path, help="also write everything here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    facts = machine()
    print(f"{facts['processor']}, {facts['cores']} cores, load {facts['load'][0]}, torch {facts['torch']}")
    print(f"{facts['twins']}; one thread, {given.clock} clock, {given.rounds} rounds, rows of {DIM} float32\n")
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    whole = whole_steps(clock, given.rows, given.rounds)
    gc.collect()
    if {SMALL, LARGE} <= set(given.rows):
        whole += pages(clock, given.rounds)
    print(markdown("training step by rows of the table", whole, given.rows), flush=True)
    gc.collect()
    alone = optimisers_alone(clock, given.rows, given.rounds)
    print("\n" + markdown("optimiser alone by rows of the table", alone, given.rows))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    taken = time.perf_counter() - started
    print(f"\npeak memory {peak / 2**30:.1f} GiB, {taken:.0f} s, load at the end {os.getloadavg()[0]:.1f}")
    if given.json:
        result = {"machine": facts, "whole": whole, "alone": alone, "peak_bytes": peak, "seconds": taken}
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
