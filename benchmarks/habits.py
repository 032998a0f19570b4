"""STIM's ablation grid on the planted world of weekly and place habits, where the truth is known.

    python benchmarks/habits.py OUT [--recipes stim stim_no_week ...] [--seeds 1]

Every row of `STIM_ROWS`, and attention over the newest 50 and over the whole history, trained without match features
for three epochs of 5,000 requests; expected AUC on test requests over all candidates, and over those drawn for one
planted structure and its decoys. What is there is not done again. Results: OUT/habits.json and OUT/habits.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sostenuto.data.prepared import PreparedData
from sostenuto.data.worlds import expected_auc, world_prepared
from sostenuto.recipes import recipe_named
from sostenuto.recipes.spatio_temporal import STIM_ROWS
from sostenuto.training.config import Budget
from sostenuto.training.measuring import predictions_of
from sostenuto.training.reporting import RichReporter
from sostenuto.training.run import open_run, run_training, with_seed

PARTS = {"drifting taste": 1, "weekday": 2, "place": 3}
RECIPES = ("din_recent50", "din", *(row.__name__ for row in STIM_ROWS if row.__name__ != "stim_no_match"))


def world(out: Path, seed: int) -> PreparedData:
    folder = out / f"world{seed}"
    made = folder / "prepared.txt"
    if not made.is_file():
        data = world_prepared("habits", folder, events=24_000, requests=5_000, seed=seed)
        made.write_text(str(data.folder), encoding="utf-8")
    return PreparedData(Path(made.read_text(encoding="utf-8")))


def measured(name: str, seed: int, out: Path) -> dict[str, Any]:
    data = world(out, seed)
    config = recipe_named(name)
    config = replace(
        config,
        view=replace(config.view, match=False),
        training=replace(config.training, threads=1, evaluations_per_epoch=2),
        budget=Budget(name="planted", epochs=3),
    )
    folder = out / "runs" / f"{name}-{seed}"
    result = run_training(data, folder, with_seed(config, seed), reporter=RichReporter())
    logit = np.asarray(predictions_of(open_run(folder, data.folder), "test").logit)
    true, part = (np.load(data.folder / "truth" / f"test{suffix}.npy") for suffix in ("", ".part"))
    probability = 1 / (1 + np.exp(-true.astype(np.float64)))
    found = {"all": expected_auc(probability, logit), "oracle": expected_auc(probability, probability)}
    for title, number in PARTS.items():
        found[title] = expected_auc(probability[part == number], logit[part == number])
    return {"recipe": name, "seed": seed, "auc": found, "seconds": result.finished.seconds}


def table(results: list[dict[str, Any]]) -> str:
    columns = ["all", *PARTS]
    lines = [
        "| recipe | seeds | " + " | ".join(columns) + " | training s |",
        "|---|---|" + "---:|" * (len(columns) + 1),
    ]
    rows = []
    for name in dict.fromkeys(result["recipe"] for result in results):
        mine = [result for result in results if result["recipe"] == name]
        means = [float(np.mean([result["auc"][column] for result in mine])) for column in columns]
        rows.append((means, name, len(mine), float(np.mean([result["seconds"] for result in mine]))))
    for means, name, count, seconds in sorted(rows, reverse=True):
        lines.append(f"| `{name}` | {count} | " + " | ".join(f"{mean:.4f}" for mean in means) + f" | {seconds:.0f} |")
    oracle = {result["seed"]: result["auc"]["oracle"] for result in results}
    lines += ["", "Best possible, by seed: " + ", ".join(f"{value:.4f}" for _, value in sorted(oracle.items()))]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    given = parser.parse_args()
    (given.out / "results").mkdir(parents=True, exist_ok=True)
    results = []
    for seed in given.seeds:
        for name in given.recipes:
            path = given.out / "results" / f"{name}-{seed}.json"
            if not path.is_file():
                path.write_text(json.dumps(measured(name, seed, given.out), indent=2) + "\n", encoding="utf-8")
            results.append(json.loads(path.read_text(encoding="utf-8")))
    (given.out / "habits.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (given.out / "habits.md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
