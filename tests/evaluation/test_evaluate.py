"""`evaluate` and `compare_runs`: plain JSON, the right groups, refusals."""

import json

import numpy as np
import pytest
from tests.evaluation.rows import make_predictions

from sostenuto.evaluation.evaluate import compare_runs, evaluate
from sostenuto.evaluation.gauc import gauc
from sostenuto.evaluation.measures import measure
from sostenuto.evaluation.predictions import concatenate
from sostenuto.schema.errors import DataError, SpecError

LISTS = ["promoted", "window"]


def test_evaluate_is_plain_json_without_nan():
    p = make_predictions()
    categories = np.stack([np.arange(60) % 4, np.arange(60)], 1)
    result = evaluate(p, lists=LISTS, item_counts=np.arange(60), categories=categories, draws=100)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert set(result["lists"]) == set(LISTS)
    metrics = result["lists"]["window"]["metrics"]
    for name in ("gauc_request", "gauc_user", "auc", "logloss", "ne", "pcoc", "ndcg@10"):
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"], name
    for name in ("ece", "coverage@10", "novelty@10", "diversity@10"):
        assert metrics[name]["value"] >= 0


def test_the_headline_groups_by_request_and_list():
    p = make_predictions()
    result = evaluate(p, lists=LISTS, draws=50)
    for list_id, name in enumerate(LISTS):
        q = p.take(p.list_id == list_id)
        assert result["headline"][name] == pytest.approx(gauc(q.label, q.logit, q.request).value)
    both = result["overall"]
    assert both["metrics"]["gauc_request"]["value"] == pytest.approx(gauc(p.label, p.logit, p.request_list).value)
    assert both["groups"] + both["dropped_groups"] == 2 * result["overall"]["requests"]


def leaves(tree, path=()):
    """Every leaf of a JSON tree by its path."""
    if isinstance(tree, (dict, list)):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, sub in pairs for k, v in leaves(sub, (*path, key)).items()}
    return {path: tree}


def test_row_order_and_batching_change_nothing():
    p = make_predictions()
    order = np.random.default_rng(0).permutation(len(p))
    parts = concatenate([p.take(order[:100]), p.take(order[100:])])
    one, two = leaves(evaluate(p, lists=LISTS, draws=50)), leaves(evaluate(parts, lists=LISTS, draws=50))
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        assert two[path] == (pytest.approx(leaf, abs=1e-12) if isinstance(leaf, float) else leaf), path


def test_slices_count_every_request_once_and_name_their_metrics():
    result = evaluate(make_predictions(), lists=LISTS, draws=50)
    for cut in result["overall"]["slices"].values():
        if cut["by"] == "request":
            assert sum(part["requests"] for part in cut["parts"]) == result["overall"]["requests"]
        assert sum(part["rows"] for part in cut["parts"]) == result["overall"]["rows"]
        assert all(set(part["metrics"]) == {"gauc_request", "logloss", "pcoc"} for part in cut["parts"])


def test_one_row_and_one_class_are_null_not_errors():
    p = make_predictions()
    one = evaluate(p.take(np.array([0])), lists=LISTS, draws=10)
    assert one["lists"]["promoted"]["metrics"]["gauc_request"]["value"] is None
    negatives = evaluate(p.take(p.label == 0), lists=LISTS, draws=10)
    metrics = negatives["overall"]["metrics"]
    assert metrics["auc"]["value"] is None
    assert metrics["ne"]["value"] is None
    assert metrics["ndcg@10"]["value"] is None
    assert metrics["logloss"]["value"] > 0
    assert json.dumps(negatives, allow_nan=False)


def test_a_list_without_a_name_and_an_empty_split_are_refused():
    p = make_predictions()
    with pytest.raises(DataError, match="name every list_id"):
        evaluate(p, lists=["promoted"])
    with pytest.raises(DataError, match="at least one row"):
        evaluate(p.take(np.zeros(0, int)), lists=LISTS)


def seeds(signal, count=3):
    return [make_predictions(requests=200, users=60, signal=signal, model_seed=s) for s in range(count)]


def test_compare_marks_what_beats_the_baseline_in_every_list_and_is_json():
    runs = {"trees": seeds(1.5), "din": seeds(2.2), "popularity": seeds(0.4, count=1)}
    result = compare_runs(runs, lists=LISTS, baseline="trees")
    json.dumps(result, allow_nan=False)
    for name in LISTS:
        table = result["lists"][name]["gauc_request"]
        by_run = {c["a"]: c for c in table["comparisons"]}
        assert by_run["din"]["beats"]
        assert by_run["popularity"]["loses"]
        assert table["runs"]["din"]["mean"] == pytest.approx(np.mean(table["runs"]["din"]["per_seed"]))
        assert table["runs"]["popularity"]["spread"] is None
        loss = {c["a"]: c for c in result["lists"][name]["logloss"]["comparisons"]}
        assert loss["din"]["difference"] > 0  # less loss is better: the difference is turned


def test_compare_without_baseline_tests_every_pair():
    runs = {"a": seeds(1.0, 1), "b": seeds(1.2, 1), "c": seeds(1.4, 1)}
    result = compare_runs(runs, lists=LISTS, measures=["gauc_request"], draws=200)
    assert [(c["a"], c["b"]) for c in result["lists"]["window"]["gauc_request"]["comparisons"]] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]


def test_runs_over_other_rows_are_refused_but_another_order_is_not():
    one, other = make_predictions(), make_predictions(seed=5)
    with pytest.raises(DataError, match="same requests and candidates"):
        compare_runs({"a": [one], "b": [other]}, lists=LISTS)
    shuffled = one.take(np.random.default_rng(0).permutation(len(one)))
    result = compare_runs({"a": [one], "b": [shuffled]}, lists=LISTS, draws=50)
    assert result["lists"]["window"]["gauc_request"]["comparisons"][0]["difference"] == pytest.approx(0, abs=1e-12)


def test_misspelt_names_are_refused_with_the_nearest_known():
    p = make_predictions()
    with pytest.raises(SpecError, match="Did you mean 'trees'"):
        compare_runs({"trees": [p]}, lists=LISTS, baseline="tree")
    with pytest.raises(SpecError, match="Did you mean 'gauc_request'"):
        measure("gauc_requests")
    assert measure("recall@50").title == "Recall@50"
