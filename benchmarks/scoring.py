"""Scoring for one user, one thread, tower included: DIN, ETA's search and SDIM with cached state against naive DIN.

    python benchmarks/scoring.py --out results --picture docs/pictures/scoring.svg

One user with L behaviours, 500 candidates, item 16 + category 16 (D = 32), activation unit [64] with ReLU and without
normalisation, tower 128-64. The user's state is made beforehand, as a service keeps it, and so is the table of what
depends on the item alone, for all 50,000 items (not by the naive form); what making them takes and what they weigh is
printed beside. All systems are called in turns in one process; medians over the rounds, least and most in
brackets.

The naive form is what published tools do: every candidate carries its own copy of the history, [q, k, q - k, q * k] is
built and goes through the whole first layer. The FLOP bound is the fewest multiplications and additions that the exact
attention (factored first layer) and the tower need, at the rate at which this core multiplies and adds float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.resources
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sostenuto.models import table
from sostenuto.ops.backend import library, notice
from sostenuto.ops.multiply_adds import multiply_adds
from sostenuto.ops.simhash import random_hyperplanes, signature_bits
from sostenuto.ops.top_k import TopK, hamming_top_k, inner_product_top_k, pack_signatures, selected
from sostenuto.reports.charts import Series, line_chart
from sostenuto.schema.features import FeatureSpec, Field
from sostenuto.schema.histories import Candidates, Catalogue, Context, History

ITEMS, CATEGORIES = 50_000, 500
EMBEDDING = 16  # per field; item and category make D = 32
UNITS = 64
TOWER = (128, 64)
HASHES, BITS = 48 * 3, 3  # 48 signatures of 3 bits
SHORT = 50  # behaviours of SDIM's short branch
SIGNATURE, KEPT = 64, 50  # bits of ETA's signatures, behaviours that it attends over
LENGTHS = (50, 200, 1_000, 10_000, 100_000)
NAIVE_LENGTH, LONG = 1_000, 10_000
HOUR_MS = 3_600_000
SWITCHED_OFF = {"gaps": False, "products": False, "wide": False}  # what the naive model does not have

Call = Callable[[], object]


# -- the systems ------------------------------------------------------------------------------------------------------


def build(name: str, **changes: Any) -> Any:
    """Return one of the package's models with the sizes above and all else off, in evaluation mode."""
    features = FeatureSpec(
        num_items=ITEMS,
        num_item_rows=ITEMS,
        categories=(Field(name="category", kind="categorical", size=CATEGORIES),),
    )
    wanted: dict[str, Any] = {
        "item_dim": EMBEDDING,
        "category_dim": EMBEDDING,
        "vector_dim": 0,
        "key_vector_dim": 0,
        "attention_units": (UNITS,),
        "attention_activation": "relu",
        "normalise": "none",
        "tower_units": TOWER,
        "tower_activation": "relu",
        "dropout": 0.0,
        "bins": 0,
        "table_std": 0.05,
    }
    if name == "sdim":
        wanted |= {"num_hashes": HASHES, "hash_bits": BITS, "half_life_days": (), "short_recent": SHORT}
    config = table.config_class(name)
    return table.build(name, config(**wanted | SWITCHED_OFF | changes), features, seed=0).eval()


class NaiveDIN(nn.Module):
    """DIN as published tools compute it: a copy of the history per candidate, and the unit over the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        dim = 2 * EMBEDDING
        self.item, self.category = nn.Embedding(ITEMS, EMBEDDING), nn.Embedding(CATEGORIES, EMBEDDING)
        self.unit = nn.Sequential(nn.Linear(4 * dim, UNITS), nn.ReLU(), nn.Linear(UNITS, 1))
        self.tower = nn.Sequential(
            nn.Linear(2 * dim, TOWER[0]),
            nn.ReLU(),
            nn.Linear(TOWER[0], TOWER[1]),
            nn.ReLU(),
            nn.Linear(TOWER[1], 1),
        )

    def embed(self, item: Tensor, category: Tensor) -> Tensor:
        return torch.cat([self.item(item), self.category(category)], -1)

    def attend(self, target: Tensor, keys: Tensor) -> Tensor:
        query = target[:, None].expand_as(keys)
        scores = self.unit(torch.cat([query, keys, query - keys, query * keys], -1))
        return (scores * keys).sum(1)

    def forward(self, history: History, candidates: Candidates) -> Tensor:
        count = candidates.item.shape[0]
        target = self.embed(candidates.item, candidates.category[:, 0])
        keys = self.embed(history.item.repeat(count, 1), history.category[:, 0].repeat(count, 1))
        return self.tower(torch.cat([target, self.attend(target, keys)], 1)).squeeze(1)


class TwoStages:
    """A search for the behaviours nearest to each candidate, then the exact attention of a DIN over those alone."""

    def __init__(self, model: Any) -> None:
        self.model = model
        generator = torch.Generator().manual_seed(0)
        self.planes = random_hyperplanes(2 * EMBEDDING, 1, SIGNATURE, generator=generator)

    def codes(self, vectors: Tensor) -> Tensor:
        """Return (N, 1) packed signatures."""
        return pack_signatures(signature_bits(vectors, self.planes).flatten(1))

    def by_signature(self, state: Any, codes: Tensor, candidates: Candidates) -> TopK:
        found = self.codes(self._target(candidates))
        return hamming_top_k(found, candidates.offsets, codes, state.history.offsets, KEPT)

    def by_product(self, state: Any, candidates: Candidates) -> TopK:
        history = state.history
        return inner_product_top_k(self._target(candidates), candidates.offsets, history.key, history.offsets, KEPT)

    def score(self, state: Any, found: TopK, candidates: Candidates, context: Context) -> Tensor:
        """Score with every candidate as a request of its own, whose history is what was found for it."""
        starts, taken = selected(found.positions)
        own = dataclasses.replace(state, history=state.history.take(taken))
        row = torch.zeros(candidates.item.shape[0], dtype=torch.int64)
        requests = Context(time_ms=context.time_ms[row], place=context.place[row])
        return self.model.score(own, dataclasses.replace(candidates, offsets=starts), requests).logits

    def _target(self, candidates: Candidates) -> Tensor:
        return self.model.histories.items(candidates.item, candidates.category, candidates.fields)


# -- data -------------------------------------------------------------------------------------------------------------


def drawn_items(count: int, generator: torch.Generator) -> Tensor:
    """Draw items by Zipf's law: the n-th most frequent one n times rarer than the first."""
    share = 1.0 / torch.arange(1, ITEMS - 1, dtype=torch.float64)
    return torch.multinomial(share, count, replacement=True, generator=generator) + 2


def categories(item: Tensor) -> Tensor:
    return (item * 7919 % (CATEGORIES - 2) + 2)[:, None]


def history_of(length: int) -> History:
    item = drawn_items(length, torch.Generator().manual_seed(length))
    zeros = torch.zeros(length, dtype=torch.int64)
    return History(
        offsets=torch.tensor([0, length]),
        item=item,
        category=categories(item),
        time_ms=torch.arange(length) * HOUR_MS,
        action=zeros,
        value=torch.zeros(length),
        place=zeros,
    )


def request_of(count: int, length: int) -> tuple[Candidates, Context]:
    item = drawn_items(count, torch.Generator().manual_seed(1))
    candidates = Candidates(
        offsets=torch.tensor([0, count]), item=item, category=categories(item), match=torch.zeros(count, 0)
    )
    return candidates, Context(time_ms=torch.tensor([length * HOUR_MS]), place=torch.zeros(1, dtype=torch.int64))


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Something that is timed."""

    name: str
    length: int
    call: Call
    flops: float | None = None  # the fewest that do the same exactly, tower included


def timed(call: Call, seconds: float) -> float:
    """Return the median seconds of a call, called until `seconds` are over."""
    taken: list[float] = []
    started = time.perf_counter()
    while not taken or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        call()
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def measure(systems: Sequence[System], *, rounds: int, seconds: float) -> dict[tuple[str, int], list[float]]:
    """Call all systems in turns; who comes first changes every round. Seconds of a call, one number a round."""
    found: dict[tuple[str, int], list[float]] = {(s.name, s.length): [] for s in systems}
    for system in systems:  # the first call is nobody's
        system.call()
    for number in range(rounds):
        for system in systems if number % 2 == 0 else reversed(systems):
            found[system.name, system.length].append(timed(system.call, seconds))
    return found


def peak_flops(seconds: float = 1.0) -> float:
    """Return the float32 multiplications and additions a second that one thread reaches, in registers or a product."""
    size, rounds = 768, 200_000
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    best, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        torch.mm(a, b, out=out)
        between = time.perf_counter()
        in_registers = multiply_adds(rounds) or 0.0
        after = time.perf_counter()
        best = max(best, 2.0 * size**3 / (between - before), in_registers / (after - between))
    return best


def attention_flops(candidates: int, length: int) -> float:
    """Return those of the exact attention: a (64, 32) matrix per candidate, the hidden layer, the readout, the sum."""
    dim = 2 * EMBEDDING
    per_candidate = 2 * UNITS * dim + 2 * UNITS * dim
    per_pair = 2 * dim * UNITS + 2 * UNITS + 2 * dim
    return float(candidates) * (per_candidate + length * per_pair)


def tower_flops(candidates: int, tower: nn.Module) -> float:
    return float(candidates) * sum(
        2 * m.in_features * m.out_features for m in tower.modules() if isinstance(m, nn.Linear)
    )


def size_of(state: object) -> int:
    """Return the bytes of the tensors in a state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if dataclasses.is_dataclass(state):
        return sum(size_of(getattr(state, field.name)) for field in dataclasses.fields(state))
    return 0


# -- the runs ---------------------------------------------------------------------------------------------------------


def systems_of(count: int, lengths: Sequence[int]) -> tuple[list[System], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what is timed, what making the states took, and what filling the item tables took."""
    din, sdim, naive = build("din"), build("sdim"), NaiveDIN().eval()
    about = Catalogue(category=categories(torch.arange(ITEMS)))
    tables = [kept_items("DIN", din, about), kept_items("SDIM", sdim, about)]
    stages = TwoStages(din)
    found: list[System] = []
    states: list[dict[str, Any]] = []

    def note(name: str, length: int, make: Callable[[], Any]) -> Any:
        state = make()
        took = statistics.median(timed(make, 0.1) for _ in range(3))
        states.append({"state": name, "length": length, "encode_ms": 1e3 * took, "bytes": size_of(state)})
        return state

    for length in lengths:
        history = history_of(length)
        candidates, context = request_of(count, length)
        flops = attention_flops(count, length) + tower_flops(count, din.tower)
        if length == NAIVE_LENGTH:
            found.append(System(name="naive DIN", length=length, call=lambda h=history, c=candidates: naive(h, c)))
        state = note("DIN", length, lambda h=history: din.encode(h))
        found.append(
            System(
                name="DIN",
                length=length,
                call=lambda s=state, c=candidates, x=context: din.score(s, c, x),
                flops=flops,
            )
        )
        buckets = note("SDIM", length, lambda h=history: sdim.encode(h))
        found.append(
            System(
                name="SDIM, cached",
                length=length,
                call=lambda s=buckets, c=candidates, x=context: sdim.score(s, c, x),
            )
        )
        if length >= NAIVE_LENGTH:
            nobody = selected(torch.full((1, 1), -1)).taken
            alone = dataclasses.replace(buckets, recent=buckets.recent.take(nobody))
            found.append(
                System(
                    name="SDIM, cached, no short branch",
                    length=length,
                    call=lambda s=alone, c=candidates, x=context: sdim.score(s, c, x),
                )
            )
            codes = note("ETA signatures", length, lambda s=state: stages.codes(s.history.key))
            found += two_stage_systems(stages, state, codes, candidates, context, length)
    return found, states, tables


def kept_items(name: str, model: Any, about: Catalogue) -> dict[str, Any]:
    """Fill a model's item table, and return what that took and weighs."""
    taken = [timed(lambda: model.keep_items(about), 0.0) for _ in range(3)]
    return {
        "table": name,
        "items": about.num_items,
        "fill_ms": 1e3 * statistics.median(taken),
        "bytes": model.kept.num_bytes,
    }


def two_stage_systems(
    stages: TwoStages, state: Any, codes: Tensor, candidates: Candidates, context: Context, length: int
) -> list[System]:
    def eta() -> Tensor:
        return stages.score(state, stages.by_signature(state, codes, candidates), candidates, context)

    def inner() -> Tensor:
        return stages.score(state, stages.by_product(state, candidates), candidates, context)

    return [
        System(name=f"ETA, top {KEPT}", length=length, call=eta),
        System(name="  its search alone", length=length, call=lambda: stages.by_signature(state, codes, candidates)),
        System(name=f"inner product, top {KEPT}", length=length, call=inner),
        System(name="  its search alone ", length=length, call=lambda: stages.by_product(state, candidates)),
    ]


def ratio(found: dict[tuple[str, int], list[float]], above: tuple[str, int], below: tuple[str, int]) -> float | None:
    """Return the median over the rounds of one system's time over another's."""
    if above not in found or below not in found:
        return None
    return statistics.median(a / b for a, b in zip(found[above], found[below], strict=True))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is asked of a ratio."""

    text: str
    found: float | None
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool | None:
        if self.found is None:
            return None
        return (self.least is None or self.found >= self.least) and (self.most is None or self.found <= self.most)


def claims_of(found: dict[tuple[str, int], list[float]], bounds: dict[int, float]) -> list[Claim]:
    naive = ("naive DIN", NAIVE_LENGTH)
    cached = "SDIM, cached"

    def over_bound(length: int) -> float | None:
        taken = found.get(("DIN", length))
        return statistics.median(taken) / bounds[length] if taken else None

    return [
        Claim(text="naive DIN / DIN, L = 1,000", found=ratio(found, naive, ("DIN", NAIVE_LENGTH)), least=25.0),
        Claim(text="DIN / its FLOP bound, L = 1,000", found=over_bound(NAIVE_LENGTH), most=1.7),
        Claim(text="DIN / its FLOP bound, L = 10,000", found=over_bound(LONG), most=1.7),
        Claim(text="naive DIN / SDIM, L = 1,000", found=ratio(found, naive, (cached, NAIVE_LENGTH)), least=300.0),
        Claim(text="SDIM, L = 100,000 / L = 1,000", found=ratio(found, (cached, 100_000), (cached, 1_000)), most=1.3),
        Claim(
            text=f"ETA top {KEPT} / DIN, L = 10,000",
            found=ratio(found, (f"ETA, top {KEPT}", LONG), ("DIN", LONG)),
            most=0.15,
        ),
    ]


# -- what is printed --------------------------------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}"


def tables(results: dict[str, Any]) -> str:
    lines = [
        f"{results['candidates']} candidates, one thread, {results['backend']}; "
        f"{results['peak_gflops']:.1f} GFLOP/s are this core's peak.",
        "",
        "| ranker | L | ms (least - most) | GFLOP | bound, ms | times the bound | naive at L = 1,000 is |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        taken, bound = row["seconds"], row["bound_s"]
        median = statistics.median(taken)
        exact = ["", "", ""]
        if bound is not None:
            exact = [f"{row['flops'] / 1e9:.3f}", milliseconds(bound), f"{median / bound:.2f}"]
        naive = "" if row["naive_ratio"] is None else f"{row['naive_ratio']:,.1f}x"
        spread = f"{milliseconds(median)} ({milliseconds(min(taken))} - {milliseconds(max(taken))})"
        lines.append(f"| {row['name'].strip()} | {row['length']:,} | {spread} | {' | '.join(exact)} | {naive} |")
    lines += ["", "| state, made off the request | L | ms | bytes |", "| --- | ---: | ---: | ---: |"]
    for row in results["states"]:
        lines.append(f"| {row['state']} | {row['length']:,} | {row['encode_ms']:.3f} | {row['bytes']:,} |")
    lines += ["", "| item table, once per model version | items | ms | bytes |", "| --- | ---: | ---: | ---: |"]
    for row in results["item_tables"]:
        lines.append(f"| {row['table']} | {row['items']:,} | {row['fill_ms']:.1f} | {row['bytes']:,} |")
    lines += ["", "| claim | asked | found | holds |", "| --- | ---: | ---: | --- |"]
    for row in results["claims"]:
        asked = f">= {row['least']:g}" if row["least"] is not None else f"<= {row['most']:g}"
        value = "not run" if row["found"] is None else f"{row['found']:.2f}"
        lines.append(f"| {row['text']} | {asked} | {value} | {row['holds']} |")
    return "\n".join(lines)


def picture(results: dict[str, Any]) -> str:
    """Return scoring time against L, both logarithmic, as an SVG that stands alone."""
    shown = {"DIN": "c0", f"ETA, top {KEPT}": "c1", "SDIM, cached": "c2", "naive DIN": "c4"}
    series = []
    for name, colour in shown.items():
        rows = sorted((r for r in results["rows"] if r["name"] == name), key=lambda r: r["length"])
        if rows:
            series.append(
                Series(
                    label=name.split(",")[0],
                    colour=colour,
                    x=[row["length"] for row in rows],
                    y=[1e3 * statistics.median(row["seconds"]) for row in rows],
                    low=[1e3 * min(row["seconds"]) for row in rows],
                    high=[1e3 * max(row["seconds"]) for row in rows],
                )
            )
    bounds = sorted((r["length"], r["bound_s"]) for r in results["rows"] if r["bound_s"] is not None)
    series.append(
        Series(
            label="FLOP bound",
            colour="c6",
            x=[length for length, _ in bounds],
            y=[1e3 * bound for _, bound in bounds],
            dashed=True,
        )
    )
    drawn = line_chart(
        series,
        title=f"Scoring {results['candidates']} candidates of one user",
        description="Milliseconds on one thread against the length of the history, both axes logarithmic.",
        y_caption="ms",
        x_caption="behaviours in the history",
        logarithmic=True,
    )
    style = importlib.resources.files("sostenuto.reports").joinpath("assets", "report.css").read_text(encoding="utf-8")
    opening, rest = drawn.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style><![CDATA[{style}]]></style>{rest}\n'


def run(given: argparse.Namespace) -> dict[str, Any]:
    load = os.getloadavg()
    with torch.inference_mode():
        peak = peak_flops()
        systems, states, item_tables = systems_of(given.candidates, given.lengths)
        found = measure(systems, rounds=given.rounds, seconds=given.seconds)
        peak = max(peak, peak_flops())
    bounds = {s.length: s.flops / peak for s in systems if s.flops is not None}
    compiled = library()
    return {
        "candidates": given.candidates,
        "backend": notice() if compiled is None else compiled.processor,
        "peak_gflops": peak / 1e9,
        "load": [load, os.getloadavg()],
        "machine": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("sostenuto", "torch")}
        | {"python": platform.python_version()},
        "rounds": given.rounds,
        "rows": [
            {
                "name": s.name,
                "length": s.length,
                "seconds": found[s.name, s.length],
                "flops": s.flops,
                "bound_s": None if s.flops is None else s.flops / peak,
                "naive_ratio": ratio(found, ("naive DIN", NAIVE_LENGTH), (s.name, s.length)),
            }
            for s in systems
        ],
        "states": states,
        "item_tables": item_tables,
        "claims": [dataclasses.asdict(c) | {"holds": c.holds} for c in claims_of(found, bounds)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each system in each round, one call at least")
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--out", type=Path, help="folder for scoring.json and scoring.md")
    parser.add_argument("--picture", type=Path, help="where to write the SVG")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = run(given)
    text = tables(results)
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "scoring.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (given.out / "scoring.md").write_text(text + "\n", encoding="utf-8")
    if given.picture is not None:
        given.picture.write_text(picture(results), encoding="utf-8")


if __name__ == "__main__":
    main()
