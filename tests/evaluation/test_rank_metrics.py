"""AUC, GAUC and the top-k measures against scikit-learn, pairs by brute force, and all orders of ties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score
from tests.evaluation.rows import labelled

from sostenuto.evaluation import auc, gauc, top_k
from sostenuto.evaluation.score_counts import count_scores, merge_counts
from sostenuto.schema.errors import DataError, SpecError


def pairs_auc(labels, scores):
    positives, negatives = scores[labels == 1], scores[labels == 0]
    if len(positives) == 0 or len(negatives) == 0:
        return math.nan
    wins = (positives[:, None] > negatives).sum() + 0.5 * (positives[:, None] == negatives).sum()
    return wins / (len(positives) * len(negatives))


def slow_gauc(labels, scores, group, weight):
    total, mass, dropped = 0.0, 0.0, 0
    for g in np.unique(group):
        y, s = labels[group == g], scores[group == g]
        one = pairs_auc(y, s)
        if math.isnan(one):
            dropped += 1
            continue
        p, n = (y == 1).sum(), (y == 0).sum()
        w = {"exposures": p + n, "uniform": 1, "positives": p, "pairs": p * n}[weight]
        total, mass = total + w * one, mass + w
    return (total / mass if mass else math.nan), dropped


@given(labelled())
def test_auc_equals_brute_force_over_pairs_and_scikit_learn(rows):
    labels, scores, _ = rows
    ours, slow = auc.auc(labels, scores), pairs_auc(labels, scores)
    assert ours == pytest.approx(slow, abs=1e-12, nan_ok=True)
    if not math.isnan(slow):
        assert ours == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)


@given(labelled(), st.sampled_from(["exposures", "uniform", "positives", "pairs"]))
def test_gauc_equals_brute_force_in_every_weight_and_counts_what_it_dropped(rows, weight):
    labels, scores, group = rows
    ours = gauc.gauc(labels, scores, group, weight)
    value, dropped = slow_gauc(labels, scores, group, weight)
    assert ours.value == pytest.approx(value, abs=1e-12, nan_ok=True)
    assert ours.dropped_groups == dropped
    assert ours.groups + dropped == len(np.unique(group))
    mixed = [g for g in np.unique(group) if len(np.unique(labels[group == g])) == 2]
    assert ours.dropped_exposures == int((~np.isin(group, mixed)).sum())


def test_the_four_weights_are_four_different_numbers():
    labels = np.array([1, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    scores = np.array([4, 1, 2, 3, 1, 2, 3, 1, 2, 3])
    group = np.array([1, 1, 1, 1, 2, 2, 2, 3, 3, 3])  # AUC 1 with 4 rows; AUC 0 with 3 rows; one class
    values = {w: gauc.gauc(labels, scores, group, w).value for w in ("exposures", "uniform", "positives", "pairs")}
    assert values == pytest.approx({"exposures": 4 / 7, "uniform": 1 / 2, "positives": 1 / 3, "pairs": 3 / 5})


@given(labelled(), st.randoms(use_true_random=False))
def test_row_order_changes_no_state(rows, random):
    labels, scores, group = rows
    order = list(range(len(labels)))
    random.shuffle(order)
    one, two = count_scores(labels, scores, group), count_scores(labels[order], scores[order], group[order])
    for name in ("group", "score", "positives", "negatives"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


@given(labelled(), st.integers(0, 40))
def test_merged_states_equal_the_whole_even_when_a_group_is_cut(rows, cut):
    labels, scores, group = rows
    whole = count_scores(labels, scores, group)
    merged = merge_counts(
        count_scores(labels[:cut], scores[:cut], group[:cut]), count_scores(labels[cut:], scores[cut:], group[cut:])
    )
    for name in ("group", "score", "positives", "negatives"):
        assert np.array_equal(getattr(whole, name), getattr(merged, name))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=True), min_size=1, max_size=30))
def test_scores_of_any_size_keep_their_order_and_their_ties(scores):
    scores = np.array(scores)
    counts = count_scores(np.zeros(len(scores)), scores)
    assert np.array_equal(counts.score, np.unique(scores + 0.0))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30))
def test_single_precision_scores_come_back_exactly(scores):
    scores = np.array(scores, np.float32)
    assert np.array_equal(count_scores(np.ones(len(scores)), scores).score, np.unique(scores + np.float32(0)))


def brute(labels, scores, k):
    """Mean of the five measures over all orders that respect the scores."""
    positives = int(labels.sum())
    ideal = sum(1 / math.log2(i + 2) for i in range(min(positives, k)))
    blocks = [np.flatnonzero(scores == s) for s in sorted(set(scores), reverse=True)]
    sums, orders = dict.fromkeys(top_k.TOP_K, 0.0), 0
    for parts in itertools.product(*(itertools.permutations(block) for block in blocks)):
        hits = labels[[i for part in parts for i in part]][:k]
        places = np.flatnonzero(hits)
        sums["ndcg"] += sum(1 / math.log2(i + 2) for i in places) / ideal
        sums["recall"] += len(places) / positives
        sums["hr"] += float(len(places) > 0)
        sums["mrr"] += 1 / (places[0] + 1) if len(places) else 0.0
        sums["map"] += sum((j + 1) / (i + 1) for j, i in enumerate(places)) / min(positives, k)
        orders += 1
    return {name: total / orders for name, total in sums.items()}


@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 1.0, 2.0])), min_size=1, max_size=6),
    st.integers(1, 8),
)
def test_top_k_measures_are_the_mean_over_all_orders_of_ties(rows, k):
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    state = top_k.state(labels, scores, np.zeros(len(labels), int))
    wanted = brute(labels, scores, k) if labels.any() else dict.fromkeys(top_k.TOP_K, math.nan)
    for name in top_k.TOP_K:
        assert top_k.value(state, name, k) == pytest.approx(wanted[name], abs=1e-9, nan_ok=True), name


@given(labelled(), st.integers(1, 12))
def test_top_k_measures_average_over_groups_with_a_positive(rows, k):
    labels, scores, group = rows
    state = top_k.state(labels, scores, group)
    kept = [g for g in np.unique(group) if labels[group == g].any()]
    for name, measured in top_k.TOP_K.items():
        alone = [
            top_k.value(top_k.state(labels[group == g], scores[group == g], group[group == g]), name, k) for g in kept
        ]
        terms = measured(state, k)
        assert terms.denominator.sum() == len(kept)
        assert terms.value == pytest.approx(np.mean(alone) if kept else math.nan, abs=1e-9, nan_ok=True)


@given(labelled(max_groups=-2), st.integers(1, 10))
def test_ndcg_agrees_with_scikit_learn_ties_included(rows, k):
    labels, scores, _ = rows
    if len(labels) < 2 or not labels.any():
        return
    ours = top_k.value(top_k.state(labels, scores, np.zeros(len(labels), int)), "ndcg", k)
    assert ours == pytest.approx(ndcg_score([labels], [scores], k=k), abs=1e-9)


def test_a_constant_model_gains_nothing_by_row_order():
    labels = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    for order in (labels, labels[::-1]):
        state = top_k.state(order, np.zeros(10), np.zeros(10, int))
        assert top_k.value(state, "recall", 5) == pytest.approx(0.5)
        assert gauc.gauc(order, np.zeros(10), np.zeros(10, int)).value == 0.5


def test_empty_input_has_no_value_and_does_not_fail():
    none = np.zeros(0)
    assert math.isnan(gauc.gauc(none, none, none.astype(int)).value)
    assert math.isnan(auc.auc(none, none))
    assert all(math.isnan(top_k.value(top_k.state(none, none, none.astype(int)), name, 3)) for name in top_k.TOP_K)


@pytest.mark.parametrize(
    ("labels", "scores", "says"),
    [([0, 2], [0.0, 1.0], "0 or 1"), ([0, 1], [0.0, math.nan], "NaN"), ([0, 1], [0.0], "one length")],
)
def test_what_has_no_meaning_is_refused(labels, scores, says):
    with pytest.raises(DataError, match=says):
        auc.auc(np.array(labels), np.array(scores))


def test_an_unknown_weight_is_refused_with_the_nearest_known():
    with pytest.raises(SpecError, match="Did you mean 'exposures'"):
        gauc.gauc(np.array([0, 1]), np.array([0.0, 1.0]), np.array([0, 0]), "exposure")
