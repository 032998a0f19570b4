"""Do the candidate sources of `/v1/recommend` find what users take next? Recall of next baskets, per source and merged.

    python benchmarks/candidates.py DATA --requests 500 --split test [--fit] [--json OUT.json]

Requests are drawn from a split: user, moment and place. What counts as found are the distinct items of that user at
exactly that moment (a basket) among the candidate items. Every source sees only what was strictly before it, the table
of items that go together and the fixed item vectors only what training may use. `--fit` fits the weights of the cheap
stage by logistic regression on requests of the validation split, so that the defaults can be checked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sostenuto.content.store import open_content
from sostenuto.data.prepared import PreparedData
from sostenuto.features.cooccurrence import item_vectors
from sostenuto.features.popularity import PopularityIndex
from sostenuto.serving.exporting import candidate_items
from sostenuto.serving.recommending.cheap import COLUMNS, CheapWeights, cheap_columns
from sostenuto.serving.recommending.company import TogetherSource
from sostenuto.serving.recommending.nearest import NearestSource, VectorIndex, content_vectors
from sostenuto.serving.recommending.past import UserPast
from sostenuto.serving.recommending.popular import PopularSource
from sostenuto.serving.recommending.repeat import RepeatSource
from sostenuto.serving.recommending.source import CandidateSource, Merged, Seeker
from sostenuto.serving.recommending.together import together_from

AT = (50, 200, 500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request, and what was taken."""

    seeker: Seeker
    basket: np.ndarray  # item indices


def cases_of(data: PreparedData, split: str, count: int, seed: int, popularity: PopularityIndex) -> list[Case]:
    """Draw requests and read the baskets that came with them."""
    b, requests = data.behaviours, data.requests(split)
    allowed = np.zeros(data.features.num_items, np.bool_)
    allowed[candidate_items(data)] = True
    rows = np.random.default_rng(seed).permutation(len(requests))
    found: list[Case] = []
    for row in rows.tolist():
        user, moment = int(requests.user[row]), int(requests.time_ms[row])
        start, end = (int(x) for x in b.offsets[user : user + 2])
        low, high = start + np.searchsorted(b.time_ms[start:end], [moment, moment + 1], side="left")
        basket = np.unique(b.item[low:high])
        basket = basket[allowed[basket]]
        if not len(basket):
            continue
        past = UserPast.of(np.asarray(b.item[start:low], np.int64), np.asarray(b.time_ms[start:low]))
        seeker = Seeker(past=past, time_ms=moment, place=int(requests.place[row]), popularity=popularity)
        found.append(Case(seeker=seeker, basket=basket))
        if len(found) == count:
            break
    return found


def sources_of(data: PreparedData, content: str | None, dim: int) -> tuple[list[CandidateSource], dict[str, float]]:
    """Build every source that the folder has parts for; also return the CPU seconds that each took."""
    items = candidate_items(data)
    allowed = np.zeros(data.features.num_items, np.bool_)
    allowed[items] = True
    seconds: dict[str, float] = {}
    start = time.process_time()
    table = together_from(data)
    seconds["together"] = time.process_time() - start
    found: list[CandidateSource] = [
        RepeatSource(),
        PopularSource(items),
        TogetherSource(table=table, items=allowed),
    ]
    start = time.process_time()
    found.append(NearestSource(name="vectors", index=VectorIndex.of(items, item_vectors(data, dim).last)))
    seconds["vectors"] = time.process_time() - start
    if content is not None:
        vectors = content_vectors(open_content(data, [data.content()[content].sizes], ("vectors",))[content])
        found.append(NearestSource(name="content", index=VectorIndex.of(items, vectors)))
    return found, seconds


def recall(found: np.ndarray, basket: np.ndarray) -> float:
    """Return the share of a basket that was found."""
    return float(np.isin(basket, found).mean())


def measure(cases: list[Case], sources: list[CandidateSource], budget: int, weights: CheapWeights) -> dict[str, Any]:
    """Return mean recalls, and milliseconds of CPU per request."""
    by_source: dict[str, list[list[float]]] = {s.name: [] for s in sources}
    alone: dict[str, list[float]] = {s.name: [] for s in sources}
    ms: dict[str, float] = {s.name: 0.0 for s in sources} | {"merge and cut": 0.0}
    union, size, cut = [], [], []
    vector = np.array([getattr(weights, name) for name in COLUMNS])
    for case in cases:
        proposals = []
        for source in sources:
            start = time.process_time()
            proposal = source.propose(case.seeker, max(*AT, budget))
            ms[source.name] += 1e3 * (time.process_time() - start) / len(cases)
            by_source[source.name].append([recall(proposal.item[:k], case.basket) for k in AT])
            proposals.append((source.name, proposal.item[:budget]))
        start = time.process_time()
        merged = Merged.of(proposals)
        score = cheap_columns(merged, case.seeker) @ vector
        order = merged.item[np.argsort(-score, kind="stable")]
        ms["merge and cut"] += 1e3 * (time.process_time() - start) / len(cases)
        union.append(recall(merged.item, case.basket))
        size.append(len(merged))
        cut.append([recall(order[:k], case.basket) for k in AT])
        single = (merged.rank >= 0).sum(1) == 1
        for s, source in enumerate(sources):
            mine = merged.item[single & (merged.rank[:, s] >= 0)]
            alone[source.name].append(recall(mine, case.basket))
    return {
        "requests": len(cases),
        "basket_items": float(np.mean([len(c.basket) for c in cases])),
        "budget": budget,
        "sources": {
            name: {f"recall@{k}": float(v) for k, v in zip(AT, np.mean(rows, 0), strict=True)}
            | {"found_by_it_alone": float(np.mean(alone[name])), "ms": ms[name]}
            for name, rows in by_source.items()
        },
        "union": {"recall": float(np.mean(union)), "candidates": float(np.mean(size))},
        "cheap": {f"recall@{k}": float(v) for k, v in zip(AT, np.mean(cut, 0), strict=True)}
        | {"ms": ms["merge and cut"]},
    }


def fitted(cases: list[Case], sources: list[CandidateSource], budget: int) -> CheapWeights:
    """Fit the weights: Newton steps for logistic regression with an intercept and a small ridge."""
    columns, labels = [], []
    for case in cases:
        merged = Merged.of([(s.name, s.propose(case.seeker, budget).item) for s in sources])
        columns.append(cheap_columns(merged, case.seeker))
        labels.append(np.isin(merged.item, case.basket))
    x, y = np.concatenate(columns), np.concatenate(labels).astype(np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    beta = np.zeros(x.shape[1])
    for _ in range(25):
        p = 1.0 / (1.0 + np.exp(-(x @ beta)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(len(beta))
        beta += np.linalg.solve(hessian, x.T @ (y - p) - 1e-3 * beta)
    return CheapWeights(**{name: float(value) for name, value in zip(COLUMNS, beta, strict=False)})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--split", default="test")
    parser.add_argument("--budget", type=int, default=200, help="items per source")
    parser.add_argument("--dim", type=int, default=32, help="width of the fixed item vectors")
    parser.add_argument("--content", help="name of item content; default: the first that there is")
    parser.add_argument("--fit", action="store_true", help="fit the weights of the cheap stage on the valid split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = PreparedData(args.data)
    there = sorted(data.content())
    sources, seconds = sources_of(data, args.content or (there[0] if there else None), args.dim)
    b = data.behaviours
    start = time.process_time()
    popularity = PopularityIndex(num_items=data.features.num_items).joined(b.item, b.time_ms, b.place)
    seconds["popularity"] = time.process_time() - start
    weights = CheapWeights()
    report: dict[str, Any] = {"data": data.manifest.name, "split": args.split, "seed": args.seed, "built_s": seconds}
    if args.fit:
        found = fitted(cases_of(data, "valid", args.requests, args.seed + 1, popularity), sources, args.budget)
        report["fitted"] = {name: getattr(found, name) for name in COLUMNS}
        report["with_fitted"] = measure(
            cases_of(data, args.split, args.requests, args.seed, popularity), sources, args.budget, found
        )["cheap"]
    report |= measure(cases_of(data, args.split, args.requests, args.seed, popularity), sources, args.budget, weights)
    report["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report["numpy"] = np.__version__
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
