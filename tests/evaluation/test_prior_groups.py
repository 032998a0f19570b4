"""Entropy, exploring requests, per-group accuracy and steering curves, against brute force."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from tests.training.toy_prepared import write_toy

from sostenuto.data.prepared import PreparedData
from sostenuto.evaluation import entropy
from sostenuto.evaluation.catalogue import rank_catalogue
from sostenuto.evaluation.group_requests import exploring, of_group, restricted
from sostenuto.evaluation.steering import recall_of, shown, steering_curve, window_truth
from sostenuto.evaluation.top_rows import top_rows
from sostenuto.features.collation import Collator
from sostenuto.features.priors import priors_of
from sostenuto.features.view import HistoryView
from sostenuto.models.table import build, default_config
from sostenuto.reports.steering import steering_pictures
from sostenuto.schema.errors import SpecError


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_toy(tmp_path_factory.mktemp("groups") / "toy")


def test_entropy_equals_brute_force_and_merges():
    rng = np.random.default_rng(0)
    rows = 60
    group, scores, held = rng.integers(0, 6, rows), rng.normal(size=rows), rng.random((rows, 4)) < 0.4
    top = top_rows(scores, group, np.arange(rows), 5)
    expected = []
    for g in np.unique(group):
        best = sorted(np.flatnonzero(group == g), key=lambda r: -scores[r])[:5]
        counts = Counter(c for r in best for c in range(4) if held[r, c])
        total = sum(counts.values())
        expected.append(-sum(n / total * math.log2(n / total) for n in counts.values()))
    whole = entropy.state(top, held)
    assert entropy.value(whole) == pytest.approx(np.mean(expected))
    parts = [
        entropy.state(top_rows(scores[one], group[one], np.flatnonzero(one), 5), held[one])
        for one in (group < 3, group >= 3)
    ]
    assert entropy.value(entropy.merge(*parts)) == pytest.approx(entropy.value(whole))
    assert math.isnan(entropy.value(entropy.state(top_rows(scores[:0], group[:0], group[:0], 5), held[:0])))


def test_exploring_requests_have_a_target_of_a_group_their_history_does_not_know():
    rng = np.random.default_rng(1)
    groups = rng.random((30, 5)) < 0.3
    groups[7] = True  # in all groups: no news, and no knowledge
    truth = [rng.integers(0, 30, rng.integers(1, 4)) for _ in range(40)]
    history = [rng.integers(0, 30, rng.integers(0, 5)) for _ in range(40)]
    truth[0], history[0] = np.array([7]), np.array([], np.int64)
    found = exploring(truth, history, groups)
    by_group = of_group(truth, groups)
    for r in range(40):
        known = {c for i in history[r] if i != 7 for c in range(5) if groups[i, c]}
        wanted = {c for i in truth[r] if i != 7 for c in range(5) if groups[i, c]}
        assert found[r] == bool(wanted - known)
        assert set(np.flatnonzero(by_group[r]).tolist()) == wanted
    assert 0 < found.sum() < 40
    assert not found[0]


def heads_of(toy: PreparedData):
    collator = Collator(toy, HistoryView(match=False))
    ranker = build("prior_heads", default_config("prior_heads"), collator.features, seed=1)
    priors = priors_of(toy, ranker.config.prior)
    ranker.take_priors(priors, collator.assembler.items(priors.anchors.flatten().numpy()))
    return ranker.eval(), collator


def test_window_truth_is_what_followed_in_the_whole_log(toy: PreparedData):
    truth = window_truth(toy, "train", window=4, segments=2, requests=50, seed=0)
    asked, b = toy.requests("train"), toy.behaviours
    assert len(truth.rows) == 50
    for n, row in enumerate(truth.rows.tolist()):
        low, high = (int(b.offsets[asked.user[row] + k]) for k in (0, 1))
        mine = [r for r in range(low, high) if b.time_ms[r] >= asked.time_ms[row]]
        moments = sorted({int(b.time_ms[r]) for r in mine})[:4]
        for found, wanted in ((truth.items, moments), (truth.near, moments[:2]), (truth.far, moments[2:])):
            assert found[n].tolist() == sorted({int(b.item[r]) for r in mine if int(b.time_ms[r]) in wanted})


def test_measures_of_some_requests_are_those_of_ranking_them_alone(toy: PreparedData):
    ranker, collator = heads_of(toy)
    truth = window_truth(toy, "train", window=4, segments=2, requests=20, seed=0)
    whole = rank_catalogue(ranker, collator, "train", rows=truth.rows, truth=truth.items, most=10)
    alone = rank_catalogue(ranker, collator, "train", rows=truth.rows[::3], truth=truth.items[::3], most=10)
    some = restricted(whole.terms("recall", 10), truth.rows[::3])
    assert some.terms.value == pytest.approx(alone.terms("recall", 10).terms.value)
    assert recall_of(whole, truth.items, 10) == pytest.approx(whole.terms("recall", 10).terms.value, abs=1e-6)
    assert (np.bincount(shown(whole, 10).group) == 10).all()


def test_a_catalogue_is_ranked_by_the_scores_of_its_items(toy: PreparedData):
    """Heads answer for a whole catalogue at once; candidate by candidate they say the same."""
    ranker, collator = heads_of(toy)
    truth = window_truth(toy, "train", window=4, segments=2, requests=5, seed=0)
    standing = rank_catalogue(ranker, collator, "train", rows=truth.rows, truth=truth.items, most=10)

    class OneByOne:
        encode, score = ranker.encode, ranker.score

    slow = rank_catalogue(OneByOne(), collator, "train", rows=truth.rows, truth=truth.items, most=10)
    assert standing.top_item.tolist() == slow.top_item.tolist()


@pytest.mark.parametrize("knob", ["habit", "frequency", "long_term"])
def test_a_steering_curve_measures_each_value_and_puts_the_steering_back(toy: PreparedData, knob: str):
    ranker, collator = heads_of(toy)
    before = ranker.steering
    curve = steering_curve(ranker, collator, knob, [-3.0, 0.0, 3.0], split="train", requests=30, k=5)
    assert ranker.steering == before
    assert [point["value"] for point in curve["points"]] == [-3.0, 0.0, 3.0]
    if knob != "long_term":  # fresh heads of near and far future are the same
        assert curve["points"][0]["entropy"] != curve["points"][2]["entropy"]
    for point in curve["points"]:
        assert 0 <= point["recall"] <= 1
        assert 0 <= point["entropy"] <= math.log2(curve["groups"])
    json.dumps(curve)
    for chart in steering_pictures(curve).values():
        assert chart.startswith("<svg")
        assert "nan" not in chart


def test_an_unknown_knob_is_refused(toy: PreparedData):
    ranker, collator = heads_of(toy)
    with pytest.raises(SpecError, match="Did you mean 'habit'"):
        steering_curve(ranker, collator, "habits")
    with pytest.raises(SpecError, match="must have heads to steer"):
        steering_curve(build("popularity", default_config("popularity"), collator.features), collator, "habit")
