"""Coverage, novelty, diversity, and the top rows they look at."""

import math

import numpy as np
import pytest

from sostenuto.evaluation import coverage, diversity, novelty
from sostenuto.evaluation.top_rows import top_rows


def test_top_rows_are_the_best_of_each_group_best_first():
    scores = np.array([1.0, 3.0, 2.0, 9.0, 8.0])
    top = top_rows(scores, np.array([4, 4, 4, 2, 2]), np.arange(5), 2)
    assert top.row.tolist() == [3, 4, 1, 2]
    assert top.place.tolist() == [0, 1, 0, 1]
    assert top.first(1).row.tolist() == [3, 1]


def test_ties_do_not_follow_row_order_nor_item_order():
    item = np.arange(2, 1002)
    top = top_rows(np.zeros(1000), np.zeros(1000, int), item, 100)
    assert 300 < item[top.row].mean() < 700
    order = np.random.default_rng(0).permutation(1000)
    again = top_rows(np.zeros(1000), np.zeros(1000, int), item[order], 100)
    assert item[order][again.row].tolist() == item[top.row].tolist()


def test_coverage_counts_shown_over_candidates_and_merges():
    item = np.array([5, 6, 7, 5, 8, 9])
    group = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([3.0, 2, 1, 3, 2, 1])
    whole = coverage.state(top_rows(scores, group, item, 1), item)
    assert coverage.value(whole) == pytest.approx(1 / 5)
    halves = [
        coverage.state(top_rows(scores[part], group[part], item[part], 1), item[part])
        for part in (slice(0, 3), slice(3, 6))
    ]
    assert coverage.value(coverage.merge(*halves)) == coverage.value(whole)


def test_novelty_is_the_mean_self_information_and_finite_for_the_unseen():
    top = top_rows(np.array([2.0, 1.0]), np.array([0, 0]), np.array([2, 3]), 2)
    state = novelty.state(top, np.array([3, 0]), total=3, num_items=5)
    assert novelty.value(state) == pytest.approx((-math.log2(4 / 8) - math.log2(1 / 8)) / 2)
    assert novelty.value(novelty.merge(state, state)) == novelty.value(state)


def test_diversity_equals_brute_force_over_pairs():
    rng = np.random.default_rng(0)
    group, scores = rng.integers(0, 6, 60), rng.normal(size=60)
    category = rng.integers(0, 3, (60, 2))
    top = top_rows(scores, group, np.arange(60), 5)
    means = []
    for g in np.unique(top.group):
        paths = [tuple(category[r]) for r in top.row[top.group == g]]
        distances = []
        for i, one in enumerate(paths):
            for two in paths[:i]:
                shared = 2 if one == two else int(one[0] == two[0])
                distances.append(1 - shared / 2)
        if distances:
            means.append(np.mean(distances))
    state = diversity.state(top, category)
    assert state.lists == len(means)
    assert diversity.value(state) == pytest.approx(np.mean(means))
    assert diversity.value(diversity.merge(state, state)) == pytest.approx(np.mean(means))


def test_lists_of_one_item_have_no_diversity():
    top = top_rows(np.ones(2), np.array([0, 1]), np.arange(2), 5)
    assert math.isnan(diversity.value(diversity.state(top, np.zeros((2, 1), int))))
