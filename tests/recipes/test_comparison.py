"""A comparison on a small synthetic world: it reports, it goes on where it was, it refuses nonsense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sostenuto.data.worlds import world_prepared
from sostenuto.recipes.comparison import best_run, planned_runs, run_comparison
from sostenuto.reports.comparison import load_comparison
from sostenuto.schema.errors import RunError, SpecError
from sostenuto.training.run import run_training

TINY = ("training.batch_requests=16", "training.evaluations_per_epoch=1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "stable"
    world_prepared("stable_taste", folder, events=4_000, seed=0)
    return folder


@pytest.mark.slow
def test_a_comparison_is_whole_and_goes_on_where_it_was(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "compare"
    recipes = ("popularity", "repeat", "logistic", "mean_pool")
    result = run_comparison(world, out, recipes=recipes, seeds=(0, 1), budget="smoke", changes=TINY)
    assert result.baseline == "logistic"
    assert {row.key for row in result.rows} == set(recipes)
    seeds = {row.key: len(next(iter(row.lists.values())).metrics["gauc_request"].per_seed) for row in result.rows}
    assert seeds == {"popularity": 1, "repeat": 1, "logistic": 1, "mean_pool": 2}
    for row in result.rows:
        assert row.cost.serving_ms is not None
        assert row.cost.serving_ms > 0
    curves = next(row.training for row in result.rows if row.key == "mean_pool")
    assert all(curve.loss_step and len(curve.valid_step) == len(curve.valid_gauc) > 0 for curve in curves)
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert load_comparison(out / "comparison.json") == result
    assert best_run(out).parent.name in recipes

    kept = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/config.json")}
    (out / "runs" / "mean_pool" / "seed1" / "predictions" / "test.npz").unlink()
    again = run_comparison(world, out, recipes=recipes, seeds=(0, 1), budget="smoke", changes=TINY)
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/config.json")} == kept
    assert [row.lists for row in again.rows] == [row.lists for row in result.rows]


def test_the_best_run_is_chosen_on_validation(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must hold finished runs"):
        best_run(tmp_path)
    for row, gaucs in {"a": (0.7, 0.9), "b": (0.85, 0.81), "c": (None, None), "d": (0.99,)}.items():
        for seed, gauc in enumerate(gaucs):
            folder = tmp_path / "runs" / row / f"seed{seed}"
            folder.mkdir(parents=True)
            finished = None if row == "d" else {"gauc": gauc}
            (folder / "config.json").write_text(json.dumps({"finished": finished}), encoding="utf-8")
    assert best_run(tmp_path) == tmp_path / "runs" / "b" / "seed0"


def test_random_recipes_run_once_per_seed_and_others_once(tmp_path: Path) -> None:
    plan = planned_runs(tmp_path, ("popularity", "din"), (0, 1, 2), "smoke", ())
    assert [(run.recipe, run.seed) for run in plan] == [("popularity", 0), ("din", 0), ("din", 1), ("din", 2)]
    assert [run.config.training.seed for run in plan[1:]] == [0, 1, 2]


@pytest.mark.parametrize("recipes", [(), ("din", "din")])
def test_rows_must_have_distinct_names(tmp_path: Path, recipes: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match="distinct names"):
        planned_runs(tmp_path, recipes, (0,), "smoke", ())


def test_a_baseline_must_be_compared(world: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="baseline must be one of the compared recipes"):
        run_comparison(world, tmp_path, recipes=("repeat",), baseline="trees")


def test_runs_of_another_config_are_not_taken_for_ours(world: Path, tmp_path: Path) -> None:
    (run,) = planned_runs(tmp_path, ("popularity",), (0,), "smoke", TINY)
    run_training(world, run.folder, run.config)
    (run.folder / "predictions" / "test.npz").write_bytes(b"")  # as if it had been measured
    with pytest.raises(RunError, match=r"budget.*another output folder"):
        run_comparison(world, tmp_path, recipes=("popularity",), seeds=(0,), budget="demo", changes=TINY)


def test_a_change_that_no_recipe_knows_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="learning_rate"):
        planned_runs(tmp_path, ("din",), (0,), "smoke", ("training.learnin_rate=1",))
    assert json.dumps(list(tmp_path.iterdir()), default=str) == "[]"
