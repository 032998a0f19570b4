"""Next-item tables: our retrievers on public sets, beside the figures that were published for them.

    python benchmarks/next_item.py OUT --from amazon=FOLDER --from complete-journey=FOLDER --from movielens=FOLDER
        [--sets beauty sports toys movielens complete-journey] [--models sasrec hstu popularity] [--seeds 3]

Every (set, model, seed) is a run folder under OUT/runs and a file under OUT/results; what is there is not done again,
and a run that was killed goes on. At the end OUT/next_item.json and OUT/next_item.md hold the tables.

Protocol of the Amazon sets: 5-core sequences as S3-Rec published them; of each user the last item is test, the last
but one validation, all earlier ones train (the validation item is part of the history at test). Every item that
training knows is ranked, items the user met before left out (no user of these sets meets an item twice). A user whose
test item training never saw counts as a miss. Movielens and Complete Journey: split by time, all moments of the test
time, repeats allowed, nothing left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sostenuto.data.preparation import prepare
from sostenuto.data.prepared import PreparedData
from sostenuto.data.sources import open_source
from sostenuto.evaluation.catalogue import catalogue_ranking
from sostenuto.recipes import recipe_named
from sostenuto.training.config import apply_overrides
from sostenuto.training.reporting import RichReporter
from sostenuto.training.run import open_run, run_training, with_seed
from sostenuto.training.run_folder import machine, versions

SHOWN = ("recall@10", "ndcg@10", "recall@50", "ndcg@50", "mrr", "coverage@10")
STUDY = "eSASRec study (github.com/blondered/transformer_benchmark), leave-one-out table"
QUOTED = "figures that the study quotes from other papers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """One data set of the table."""

    source: str  # built-in name
    family: str  # key of --from
    recipes: Mapping[str, str]  # model -> recipe
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # model -> changes of its recipe
    exclude_seen: bool
    seeds: int  # at most
    popularity_requests: int | None  # requests that popularity is measured on; None = all
    published: Mapping[str, tuple[float, float, str]] = field(default_factory=dict)  # recall@10, ndcg@10, source


ORDER_ONLY = {
    "sasrec": "sasrec",
    "sasrec_content": "sasrec_content",
    "hstu": "hstu_no_time",
    "popularity": "popularity",
}
WITH_TIME = {
    "sasrec": "sasrec",
    "sasrec_content": "sasrec_content",
    "hstu": "hstu",
    "popularity": "popularity",
    "popularity_recent": "popularity_recent",
}

SETS = {
    "beauty": Set(
        source="amazon-beauty",
        family="amazon",
        recipes=ORDER_ONLY,
        exclude_seen=True,
        seeds=3,
        popularity_requests=1_000,
        published={
            "SASRec, sampled softmax": (0.0921, 0.0531, STUDY),
            "eSASRec": (0.0928, 0.0523, STUDY),
            "HSTU": (0.0788, 0.0439, STUDY),
            "FuXi-alpha": (0.0809, 0.0451, STUDY),
            "SASRec": (0.0605, 0.0318, QUOTED),
            "TIGER": (0.0648, 0.0384, QUOTED),
            "ActionPiece": (0.0775, 0.0424, QUOTED),
        },
    ),
    "sports": Set(
        source="amazon-sports",
        family="amazon",
        recipes=ORDER_ONLY,
        exclude_seen=True,
        seeds=1,
        popularity_requests=1_000,
        published={
            "SASRec, sampled softmax": (0.0569, 0.0314, STUDY),
            "eSASRec": (0.0560, 0.0323, STUDY),
            "HSTU": (0.0437, 0.0243, STUDY),
            "FuXi-alpha": (0.0437, 0.0244, STUDY),
        },
    ),
    "toys": Set(
        source="amazon-toys",
        family="amazon",
        recipes=ORDER_ONLY,
        exclude_seen=True,
        seeds=1,
        popularity_requests=1_000,
        published={
            "SASRec, sampled softmax": (0.0970, 0.0580, STUDY),
            "eSASRec": (0.0939, 0.0538, STUDY),
            "HSTU": (0.0778, 0.0450, STUDY),
            "FuXi-alpha": (0.0765, 0.0437, STUDY),
        },
    ),
    "movielens": Set(
        source="movielens-100k",
        family="movielens",
        recipes=WITH_TIME,
        exclude_seen=True,
        seeds=1,
        popularity_requests=2_000,
    ),
    "complete-journey": Set(
        source="complete-journey",
        family="complete-journey",
        recipes=WITH_TIME,
        # seven times the events of Beauty, a quarter of its epochs
        overrides=dict.fromkeys(WITH_TIME, ("training.exclude_seen=false", "budget.epochs=8")),
        exclude_seen=False,
        seeds=1,
        popularity_requests=None,
    ),
}


def prepared(name: str, out: Path, folders: Mapping[str, Path]) -> PreparedData:
    """Return the prepared folder of a set, made when it is missing."""
    folder = out / "data" / name
    if not (folder / "manifest.json").is_file():
        one = SETS[name]
        with tempfile.TemporaryDirectory() as cache:
            prepare(open_source(one.source, cache, folder=folders.get(one.family)), folder)
    return PreparedData(folder)


def unseen_share(data: PreparedData, split: str, requests: int) -> float:
    """Return requests over moments: moments whose every item training never met have no request, and are misses."""
    counts, protocol = data.manifest.counts, data.manifest.protocol
    if protocol is None or protocol.name != "leave-last-out":
        return 1.0
    return requests / counts[f"{split}_moments"]


def measured(name: str, model: str, seed: int, out: Path, data: PreparedData) -> dict[str, Any]:
    """Train one run, or take up what is there, and measure it on validation and test."""
    one = SETS[name]
    config = recipe_named(one.recipes[model])
    is_rule = model.startswith("popularity")
    if not is_rule:
        config = apply_overrides(config, one.overrides.get(model, ()))
    config = with_seed(config, seed)
    if is_rule:
        config = replace(config, budget=replace(config.budget, valid=100))
    folder = out / "runs" / f"{name}-{model}-{seed}"
    result = run_training(data, folder, config, reporter=RichReporter())
    run = open_run(folder, data.folder)
    answer: dict[str, Any] = {"set": name, "model": model, "recipe": config.name, "seed": seed}
    for split in ("test",) if is_rule else ("valid", "test"):
        found = catalogue_ranking(
            run.ranker,
            run.collator,
            split,
            requests=one.popularity_requests if is_rule else None,
            exclude_seen=one.exclude_seen,
        )
        counted = len(data.requests(split)) if is_rule else found["requests"]
        share = unseen_share(data, split, counted)
        for metric, value in found["metrics"].items():
            if not metric.startswith("coverage"):
                found["metrics"][metric] = {part: number * share for part, number in value.items()}
        answer[split] = found | {"share_of_moments_with_a_request": share}
    finished = result.finished
    answer |= {"seconds": finished.seconds, "steps": finished.steps, "parameters": finished.parameters}
    return answer | {"versions": versions(), "machine": machine()}


def results_of(out: Path) -> list[dict[str, Any]]:
    """Read every result there is."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "results").glob("*.json"))]


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables as markdown."""
    lines: list[str] = []
    for name, one in SETS.items():
        here = [result for result in results if result["set"] == name]
        if not here:
            continue
        test = here[0]["test"]
        seen = "left out" if test["exclude_seen"] else "kept"
        lines += ["", f"## {name}", "", f"{test['candidates']:,} items ranked, those met before {seen}.", ""]
        lines += ["| model | seeds | requests | " + " | ".join(SHOWN) + " | train s |"]
        lines += ["|---|---|---|" + "---|" * (len(SHOWN) + 1)]
        for model in one.recipes:
            mine = [result for result in here if result["model"] == model]
            if mine:
                values = [_mean([r["test"]["metrics"][metric]["value"] for r in mine]) for metric in SHOWN]
                seconds = statistics.fmean(r["seconds"] for r in mine)
                row = (f"{model} (ours)", len(mine), f"{mine[0]['test']['requests']:,}", *values, f"{seconds:,.0f}")
                lines.append("| " + " | ".join(map(str, row)) + " |")
        for title, (recall, ndcg, source) in dict(one.published).items():
            blank = " | ".join("-" for _ in SHOWN[2:])
            lines.append(f"| {title}: {source} | - | - | {recall:.4f} | {ndcg:.4f} | {blank} | - |")
    return "\n".join(lines).strip() + "\n"


def _mean(values: Sequence[float]) -> str:
    """Return the mean, and the spread over seeds where there are several."""
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) < 2 else f"{mean} (sd {statistics.stdev(values):.4f})"


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", dest="folders", action="append", default=[], metavar="FAMILY=FOLDER")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--models", nargs="+", default=list(WITH_TIME), choices=list(WITH_TIME))
    parser.add_argument("--seeds", type=int, default=3, help="at most; sets have their own limit")
    given = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (text.partition("=") for text in given.folders)}
    (given.out / "results").mkdir(parents=True, exist_ok=True)
    for name in given.sets:
        data = prepared(name, given.out, folders)
        for model in given.models:
            if model not in SETS[name].recipes:
                continue
            seeds = 1 if model.startswith("popularity") else min(given.seeds, SETS[name].seeds)
            for seed in range(seeds):
                path = given.out / "results" / f"{name}-{model}-{seed}.json"
                if not path.is_file():
                    path.write_text(json.dumps(measured(name, model, seed, given.out, data), indent=2) + "\n")
    results = results_of(given.out)
    (given.out / "next_item.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (given.out / "next_item.md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
