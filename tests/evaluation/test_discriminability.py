"""dare.md section 8.3: mutual information of label and cluster of a representation."""

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import mutual_info_score

from sostenuto.evaluation.discriminability import (
    CLUSTERS,
    chance_information,
    cluster_information,
    clustered,
    label_separation,
)
from sostenuto.schema.errors import MissingExtra, SpecError


def entropy(label):
    return -sum(p * math.log2(p) for p in (label.mean(), 1 - label.mean()) if p > 0)


def planted(seed, count=4_000, dim=8):
    """Return labels, vectors whose direction tells nine of ten of them, and vectors that tell nothing."""
    rng = np.random.default_rng(seed)
    kind = rng.random(count) < 0.3
    label = kind ^ (rng.random(count) < 0.1)
    noise = rng.normal(size=(2, count, dim))
    return label, noise[0] + np.where(kind, 3.0, -3.0)[:, None] * (np.arange(dim) < 2), noise[1]


@given(cluster=arrays(np.int64, 60, elements=st.integers(0, 6)), label=arrays(np.bool_, 60))
def test_counted_information_is_that_of_another_house_and_at_most_the_entropy_of_the_label(cluster, label):
    found = cluster_information(cluster, label)
    assert found == pytest.approx(mutual_info_score(cluster, label) / math.log(2), abs=1e-9)
    assert 0 <= found <= entropy(label) + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_a_representation_that_separates_labels_has_more_than_a_random_one(seed):
    label, telling, random = planted(seed)
    good, bad = (label_separation(rows, label, (2, 20, 200), seed=seed) for rows in (telling, random))
    noise = 0.1 * math.log2(1 / 0.1) + 0.9 * math.log2(1 / 0.9)
    for more, less in zip(good, bad, strict=True):
        assert more["corrected"] > less["corrected"] + 0.2
        assert more["bits"] <= entropy(label)
        assert more["corrected"] == pytest.approx(entropy(label) - noise, abs=0.06)  # what the kind says of the label


def test_many_clusters_of_nothing_are_counted_as_information_and_chance_takes_it_off():
    label, _, random = planted(7)
    (point,) = label_separation(random, label, (500,))
    biased = (500 - 1) / (2 * len(label) * math.log(2))
    assert point["bits"] > 0.6 * biased > 0.05
    assert point["chance"] == pytest.approx(biased, rel=0.4)
    assert abs(point["corrected"]) < 0.02


def test_labels_that_the_cluster_decides_give_their_whole_entropy():
    label = np.arange(1_000) % 4 == 0
    vectors = np.where(label, 5.0, -5.0)[:, None] + np.random.default_rng(0).normal(size=(1_000, 3)) * 0.1
    (point,) = label_separation(vectors, label, (2,))
    assert point["bits"] == pytest.approx(entropy(label))
    assert point["chance"] < 2e-3


def test_representations_that_are_all_alike_say_nothing():
    label = np.arange(100) % 2 == 0
    for point in label_separation(np.zeros((100, 4), np.float32), label, (2, 20)):
        assert point["bits"] <= point["chance"] + 1e-9


def test_the_same_seed_gives_the_same_figures():
    label, telling, _ = planted(3, count=600)
    assert label_separation(telling, label, (5, 50), seed=4) == label_separation(telling, label, (5, 50), seed=4)
    cluster = clustered(telling, 5, seed=4)
    assert cluster.shape == (600,)
    drawn = [chance_information(cluster, label, permutations=3, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("clusters", [(), (1,), (6,), (2, 6)])
def test_more_clusters_than_half_the_candidates_are_refused(clusters):
    with pytest.raises(SpecError, match="clusters must be 2 to half the candidates, 5, got"):
        label_separation(np.zeros((10, 2)), np.zeros(10, bool), clusters)


def test_the_numbers_of_clusters_are_the_papers_range():
    assert (min(CLUSTERS), max(CLUSTERS)) == (2, 1_000)


def test_without_its_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"sostenuto\[analysis\]"):
        clustered(np.zeros((4, 2)), 2, seed=0)
