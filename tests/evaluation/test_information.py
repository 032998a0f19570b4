"""dare.md section 8 and property 11: mutual information of category and place with the label, and retrieval by it."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score, ndcg_score

from sostenuto.evaluation.information import Samples, mutual_information, ranking_ndcg, relevance_table


def samples(rng, count, categories, positions, label_of):
    past = rng.integers(2, 2 + categories, (count, positions))
    target = np.full(count, 2)
    return Samples(target=target, past=past, label=label_of(past).astype(float))


def test_11_independent_data_have_no_information():
    rng = np.random.default_rng(0)
    some = samples(rng, 200_000, 4, 3, lambda past: rng.random(len(past)) < 0.3)
    table = relevance_table(some, np.array([2]), 6)
    assert table.shape == (1, 6, 3)
    assert table.max() < 1e-3


def test_11_a_label_that_is_the_category_has_the_entropy_of_the_label():
    rng = np.random.default_rng(1)
    some = samples(rng, 20_000, 4, 3, lambda past: past[:, 1] == 3)
    table = relevance_table(some, np.array([2]), 6)
    share = some.label.mean()
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    assert table[0, 3, 1] == pytest.approx(entropy, abs=1e-3)
    assert table[0, 3, [0, 2]].max() < 1e-2
    assert not table[0, 0].any()  # nothing is no category


def test_it_is_the_information_that_counting_pairs_gives():
    rng = np.random.default_rng(2)
    met, label = rng.random(500) < 0.4, rng.random(500) < 0.5
    label |= met & (rng.random(500) < 0.3)
    counts = [np.array(float((met & label).sum())), np.array(float((met & ~label).sum()))]
    found = mutual_information(*counts, np.array(float(label.sum())), np.array(float((~label).sum())))
    assert float(found) == pytest.approx(mutual_info_score(met, label) / np.log(2), abs=1e-6)


def test_ndcg_is_that_of_another_house():
    rng = np.random.default_rng(3)
    for _ in range(20):
        scores, gains = rng.normal(size=12), rng.random(12)
        assert ranking_ndcg(scores, gains, 5) == pytest.approx(ndcg_score(gains[None], scores[None], k=5))
    assert np.isnan(ranking_ndcg(np.ones(3), np.zeros(3), 2))
