"""Do the behaviours that `rank` names carry the score? Take them out of the history and score again.

    python benchmarks/explanations.py RUN [DATA] --requests 200 --top 3 --candidates all

Requests are drawn from the test split (user and moment; live requests know no promotion flags). For the first items of
each ranking the named behaviours are removed, in a call apart from the one that found them, and as a control the same
number of other behaviours of that history, drawn at random, with the same items. A case without an explanation counts
as a failure. Requests of users without any history have nothing to name; they are left out and counted.

Intervals are 95 %, by a bootstrap over users. `--candidates all` ranks what `sostenuto rank` ranks by default,
`--candidates request` only the request's own candidate lists.
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

from sostenuto.features.loading import sample_rows
from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.serving.ranking import HistoryRanker
from sostenuto.training.run import open_run

CONTROLS = 5  # random removals averaged per case
DRAWS = 2_000
BAR = 0.80


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One item of one ranking. Drops are logit with minus logit without; NaN where there is nothing to compare."""

    user: int
    rank: int
    is_named: bool
    is_lowered: bool
    named: int  # behaviours
    drop: float
    control: float  # mean drop of removing as many others


def cases_of(
    ranker: HistoryRanker, user_id: str, time_ms: int, items: list[str], rng: np.random.Generator
) -> tuple[list[Case], float]:
    """Explain a request; return its cases and the seconds of ranking `items` with reasons."""
    request = ranker.request(user_id, time_ms)
    start = time.perf_counter()
    ranking = ranker.rank(user_id, time_ms=time_ms, candidates=items, k=len(items))
    seconds = time.perf_counter() - start
    past_item = np.asarray(ranker.data.behaviours.item[request.past])
    cases = []
    for entry in ranking.items:
        index = ranker.item_indices([entry.item_id])
        is_named = np.isin(past_item, ranker.item_indices(reason.item_id for reason in entry.reasons))
        others, named = np.flatnonzero(~is_named), int(is_named.sum())
        drop = control = float("nan")
        if named:
            versions = [request.past[~is_named]]
            if len(others) >= named:
                removed = [rng.choice(others, named, replace=False) for _ in range(CONTROLS)]
                versions += [np.delete(request.past, gone) for gone in removed]
            whole = ranker.logits(request, [request.past], index)[0, 0]
            drops = whole - ranker.logits(request, versions, index)[:, 0]
            drop = float(drops[0])
            control = float(drops[1:].mean()) if len(drops) > 1 else control
        cases.append(
            Case(
                user=request.user,
                rank=entry.rank,
                is_named=bool(named),
                is_lowered=drop > 0,
                named=named,
                drop=drop,
                control=control,
            )
        )
    return cases, seconds


def interval(user: np.ndarray, value: np.ndarray, rng: np.random.Generator) -> list[float]:
    """Return the 95 % interval of the mean of `value` when users are resampled."""
    known = np.isfinite(value)
    if not known.any():
        return [float("nan")] * 2
    _, cluster = np.unique(user[known], return_inverse=True)
    sums, counts = np.bincount(cluster, value[known]), np.bincount(cluster)
    drawn = rng.integers(0, len(sums), (DRAWS, len(sums)))
    return np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975]).tolist()


def spread(seconds: list[float]) -> dict[str, float]:
    return dict(zip(("median", "p95"), np.quantile(seconds, [0.5, 0.95]).tolist(), strict=True))


def measured(run: Path, data: Path | None, *, count: int, top: int, pool: str, split: str, seed: int) -> dict[str, Any]:
    opened = open_run(run, data)
    ranker = HistoryRanker(opened.data, opened.collator, opened.ranker)
    requests = opened.data.requests(split)
    users, ids = opened.data.vocabulary("user"), opened.data.vocabulary("item")
    rng = np.random.default_rng(seed)
    rows = sample_rows(requests, count, seed)
    cases: list[Case] = []
    lengths, ranking_s, explaining_s, empty = [], [], [], 0
    for row in rows:
        user, time_ms = int(requests.user[row]), int(requests.time_ms[row])
        if user < FIRST_KNOWN or not requests.prefix[row]:
            empty += 1
            continue
        own = np.unique(requests.item[requests.offsets[row] : requests.offsets[row + 1]])
        candidates = None if pool == "all" else [ids[item] for item in own if item >= FIRST_KNOWN]
        start = time.perf_counter()
        best = ranker.rank(users[user], time_ms=time_ms, candidates=candidates, k=top, explain=False)
        ranking_s.append(time.perf_counter() - start)
        found, seconds = cases_of(ranker, users[user], time_ms, [entry.item_id for entry in best.items], rng)
        explaining_s.append(seconds / len(found))
        lengths.append(best.history_length)
        cases += found
    if not cases:
        raise SystemExit(f"none of the {len(rows)} requests sampled from {split} has a history: take more --requests")
    user = np.array([case.user for case in cases])
    lowered = np.array([float(case.is_lowered) for case in cases])
    drop = np.array([case.drop for case in cases])
    control = np.array([case.control for case in cases])
    both = np.isfinite(drop) & np.isfinite(control)
    ranks = np.array([case.rank for case in cases])
    return {
        "run": str(run),
        "model": opened.config.model,
        "data": opened.data.manifest.name,
        "arrays_hash": opened.data.manifest.arrays_hash,
        "split": split,
        "candidates": pool,
        "seed": seed,
        "requests": len(rows),
        "requests_without_history": empty,
        "history_length": {"median": float(np.median(lengths)), "longest": int(max(lengths))},
        "cases": len(cases),
        "share_lowered": float(lowered.mean()),
        "share_lowered_interval": interval(user, lowered, rng),
        "share_lowered_by_rank": {int(n): float(lowered[ranks == n].mean()) for n in np.unique(ranks)},
        "share_not_explained": float(np.mean([not case.is_named for case in cases])),
        "bar": BAR,
        "named_behaviours_median": float(np.median([case.named for case in cases])),
        "paired_cases": int(both.sum()),
        "drop_named": float(drop[both].mean()) if both.any() else float("nan"),
        "drop_random": float(control[both].mean()) if both.any() else float("nan"),
        "difference_interval": interval(user, np.where(both, drop - control, np.nan), rng),
        "share_above_random": float((drop[both] > control[both]).mean()) if both.any() else float("nan"),
        "explanation_s": spread(explaining_s),
        "ranking_without_reasons_s": spread(ranking_s),
        "load_1min": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("data", type=Path, nargs="?", help="prepared folder; default the one of the run")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--top", type=int, default=3, help="first items of each ranking that are explained")
    parser.add_argument("--candidates", choices=["all", "request"], default="all")
    parser.add_argument("--split", choices=["valid", "test"], default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measured(
        given.run,
        given.data,
        count=given.requests,
        top=given.top,
        pool=given.candidates,
        split=given.split,
        seed=given.seed,
    )
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}
    if given.json:
        print(json.dumps({"machine": machine, "result": found}, indent=2))
        return
    low, high = found["share_lowered_interval"]
    less, more = found["difference_interval"]
    print(f"{found['model']} on {found['data']}, {found['split']}, candidates: {found['candidates']}; {machine}")
    print(
        f"{found['cases']} cases from {found['requests']} requests ({found['requests_without_history']} without a "
        f"history, left out); histories of {found['history_length']['median']:.0f} behaviours (median)"
    )
    print(
        f"removing the named behaviours lowers the score in {found['share_lowered']:.1%} of the cases "
        f"[{low:.1%}, {high:.1%}] (bar {BAR:.0%}); nothing was named in {found['share_not_explained']:.1%}"
    )
    print(
        f"mean drop of the logit {found['drop_named']:.3f}, of as many random others {found['drop_random']:.3f}; "
        f"difference [{less:.3f}, {more:.3f}]; larger in {found['share_above_random']:.1%} of {found['paired_cases']} "
        f"pairs; {found['named_behaviours_median']:.0f} behaviours named (median)"
    )
    print(
        f"an explanation takes {found['explanation_s']['median']:.3f} s (95 %: {found['explanation_s']['p95']:.3f}) an "
        f"item, ranking without reasons {found['ranking_without_reasons_s']['median']:.3f} s per request; "
        f"load {found['load_1min']}"
    )


if __name__ == "__main__":
    main()
