"""Intervals cover, paired tests find what is there and only that, Holm is Holm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.rows import make_predictions

from sostenuto.evaluation import gauc
from sostenuto.evaluation.measures import measure_terms
from sostenuto.evaluation.significance import (
    RunDraws,
    auc_interval,
    bootstrap_interval,
    bootstrap_ratios,
    bootstrap_runs,
    compare_pair,
    corrected,
    holm,
    run_interval,
    two_sided_p,
    user_draws,
    user_sums,
)
from sostenuto.evaluation.terms import row_terms
from sostenuto.schema.errors import DataError


def test_each_draw_takes_as_many_users_as_there_are():
    blocks = list(user_draws(37, draws=50, seed=1))
    counts = np.concatenate(blocks)
    assert counts.shape == (50, 37)
    assert (counts.sum(1) == 37).all()


def test_draws_do_not_depend_on_how_they_are_cut_into_blocks(monkeypatch):
    whole = np.concatenate(list(user_draws(7, draws=20, seed=3)))
    monkeypatch.setattr("sostenuto.evaluation.significance._CELLS", 7)
    parts = list(user_draws(7, draws=20, seed=3))
    assert len(parts) == 20
    assert np.array_equal(whole, np.concatenate(parts))


def test_a_draw_equals_the_metric_on_the_resampled_rows():
    p = make_predictions(lists=1)
    owned = measure_terms(p, ["gauc_request"])["gauc_request"]
    users = np.unique(p.user)
    ratios = bootstrap_ratios(user_sums(owned.terms, owned.user, users)[:, None], draws=5, seed=2)[:, 0]
    counts = np.concatenate(list(user_draws(len(users), draws=5, seed=2))).astype(int)
    for drawn, ratio in zip(counts, ratios, strict=True):
        labels, logits, groups = [], [], []
        for copy in range(drawn.max()):  # a user drawn twice comes with two copies of her requests
            rows = np.isin(p.user, users[drawn > copy])
            labels.append(p.label[rows])
            logits.append(p.logit[rows])
            groups.append(p.request_list[rows] + copy * 10**6)
        slow = gauc.gauc(np.concatenate(labels), np.concatenate(logits), np.concatenate(groups)).value
        assert ratio == pytest.approx(slow, abs=1e-12)


def test_intervals_by_user_are_wider_than_by_row_when_users_differ():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(50), 40)
    value = rng.normal(size=50)[user] + 0.1 * rng.normal(size=2000)
    clustered = row_terms(user, value, np.ones(2000))
    by_row = row_terms(np.arange(2000), value, np.ones(2000))
    wide = bootstrap_interval(clustered, clustered.group)
    narrow = bootstrap_interval(by_row, by_row.group)
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(80), 5)
        value = 0.3 + rng.normal(size=80)[user] + rng.normal(size=400)
        terms = row_terms(user, value, np.ones(400))
        interval = bootstrap_interval(terms, terms.group, draws=400, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


def test_auc_interval_covers_under_user_effects():
    covered, truth = 0, 0.7602499  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(60), 12)
        labels = (rng.random(720) < 0.4).astype(int)
        effect = rng.normal(size=60)[user] * math.sqrt(0.5)
        scores = labels + effect + rng.normal(size=720) * math.sqrt(0.5)
        interval = auc_interval(labels, scores, user)
        covered += interval.low <= truth <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


def test_auc_interval_of_one_class_does_not_exist():
    assert math.isnan(auc_interval(np.ones(3), np.arange(3.0), np.arange(3)).low)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_by_definition(p):
    p = np.array(p)
    order, running, wanted = np.argsort(p, kind="stable"), 0.0, np.empty(len(p))
    for step, place in enumerate(order):
        running = max(running, (len(p) - step) * p[place])
        wanted[place] = min(running, 1.0)
    assert holm(p) == pytest.approx(wanted)


def test_p_is_large_where_draws_lie_on_both_sides_and_bounded_by_the_normal_tail_where_none_does():
    rng = np.random.default_rng(0)
    assert two_sided_p(rng.normal(size=2000)) > 0.5
    assert two_sided_p(np.zeros(2000)) == 1.0
    far = two_sided_p(5 + rng.normal(size=2000))
    assert 1e-7 < far < 1e-4


def runs_of(**runs):
    """RunDraws by name, from predictions by seed."""
    first = next(iter(runs.values()))[0]
    users = np.unique(first.user)
    sums = {}
    for name, seeds in runs.items():
        terms = [measure_terms(p, ["gauc_request"])["gauc_request"] for p in seeds]
        sums[name] = [user_sums(t.terms, t.user, users) for t in terms]
    return bootstrap_runs(sums)


def test_a_better_run_beats_and_an_equal_one_does_not():
    def seeds(signal):
        return [make_predictions(requests=300, users=80, signal=signal, model_seed=s) for s in range(3)]

    good, same, plain = seeds(2.0), seeds(1.5)[::-1], seeds(1.5)
    runs = runs_of(good=good, same=same, plain=plain)
    one, two, turned = corrected(
        [compare_pair("good", "plain", runs), compare_pair("same", "plain", runs), compare_pair("plain", "good", runs)]
    )
    assert one.beats
    assert not one.loses
    assert one.seeds_agree
    assert not two.beats
    assert not two.loses
    assert turned.loses
    assert turned.difference == pytest.approx(-one.difference)
    assert one.p_holm >= one.p


def test_a_run_against_itself_differs_by_nothing():
    p = make_predictions()
    result = compare_pair("a", "b", runs_of(a=[p], b=[p]))
    assert (result.difference, result.low, result.high, result.p) == (0.0, 0.0, 0.0, 1.0)
    assert not result.beats


def test_pairing_makes_the_interval_of_a_difference_narrow():
    base = make_predictions(requests=200, users=60)
    near = make_predictions(requests=200, users=60, signal=1.52)
    runs = runs_of(a=[near], b=[base])
    alone = run_interval(runs["a"])
    paired = compare_pair("a", "b", runs)
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_one_seed_that_disagrees_forbids_the_claim():
    draws = np.full((2000, 3), 0.02) + 1e-4 * np.random.default_rng(0).normal(size=(2000, 3))
    lucky = RunDraws(values=np.array([0.05, 0.05, -0.001]), draws=draws)
    zero = RunDraws(values=np.zeros(1), draws=np.zeros((2000, 1)))
    result = compare_pair("lucky", "zero", {"lucky": lucky, "zero": zero})
    assert result.low > 0
    assert result.p < 0.05
    assert not result.seeds_agree
    assert not result.beats


def test_seeds_that_scatter_widen_the_interval():
    flat = np.zeros((2000, 3))
    steady = RunDraws(values=np.full(3, 0.1), draws=flat + 0.1)
    scattered = RunDraws(values=np.array([0.0, 0.1, 0.2]), draws=flat + np.array([0.0, 0.1, 0.2]))
    assert run_interval(steady).high - run_interval(steady).low < 1e-12
    assert run_interval(scattered).high - run_interval(scattered).low > 0.1


def test_unequal_numbers_of_seeds_are_refused():
    runs = {n: RunDraws(values=np.zeros(s), draws=np.zeros((10, s))) for n, s in (("a", 2), ("b", 3))}
    with pytest.raises(DataError, match="equally many seeds"):
        compare_pair("a", "b", runs)
