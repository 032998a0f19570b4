"""Logistic regression and trees: they recover what was planted, and what is saved is what scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from tests.baselines.planted_requests import FEATURES, planted_batch, planted_batches, planted_logit, scores, subset

from sostenuto.baselines.design_matrix import read_batches
from sostenuto.baselines.logistic import Logistic, LogisticConfig, moments
from sostenuto.baselines.popularity import Popularity, PopularityConfig
from sostenuto.baselines.trees import Trees, TreesConfig
from sostenuto.schema.errors import DataError, RunError, SpecError

TREES = TreesConfig(leaves_grid=(7,), min_leaf_grid=(20, 60), max_trees=80, patience=10, threads=1)
MAKERS = {
    "logistic": lambda features: Logistic(LogisticConfig(), features),
    "trees": lambda features: Trees(TREES, features),
}


@pytest.fixture(scope="module")
def fitted():
    train, valid = planted_batches(0, 8), planted_batches(100, 3)
    rankers = {name: make(FEATURES) for name, make in MAKERS.items()}
    return rankers, {name: ranker.fit(train, valid) for name, ranker in rankers.items()}


@pytest.fixture(params=sorted(MAKERS))
def name(request):
    return request.param


def test_it_nears_the_planted_rule_and_beats_popularity_by_far(fitted, name):
    test = planted_batch(999, requests=200)
    labels = test.labels.numpy()
    best = roc_auc_score(labels, planted_logit(test).numpy())
    reached = roc_auc_score(labels, scores(fitted[0][name], test))
    popular = roc_auc_score(labels, scores(Popularity(PopularityConfig(), FEATURES), test))
    assert reached > best - 0.02
    assert reached > popular + 0.1


def test_it_is_calibrated(fitted, name):
    test = planted_batch(998, requests=300)
    probability = 1 / (1 + np.exp(-scores(fitted[0][name], test)))
    # the standard error of the mean of 3,600 labels is below .009
    assert abs(probability.mean() - test.labels.numpy().mean()) < 0.03


def test_what_is_reported_is_the_validation_loss_of_the_kept_fit(fitted, name):
    rankers, numbers = fitted
    valid = planted_batches(100, 3)
    logits = np.concatenate([scores(rankers[name], batch) for batch in valid]).astype(np.float64)
    labels = np.concatenate([batch.labels.numpy() for batch in valid])
    assert numbers[name]["valid_logloss"] == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-logits))), abs=1e-6)


def test_saved_and_loaded_it_gives_the_same_logits(fitted, name, tmp_path):
    ranker = fitted[0][name]
    ranker.save(tmp_path)
    other = MAKERS[name](FEATURES)
    other.load(tmp_path)
    batch = planted_batch(5)
    np.testing.assert_array_equal(scores(ranker, batch), scores(other, batch))
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".txt"}


def test_another_set_of_columns_is_refused_on_load(fitted, name, tmp_path):
    fitted[0][name].save(tmp_path)
    with pytest.raises(RunError, match="must name the columns of these features"):
        MAKERS[name](replace(FEATURES, match=())).load(tmp_path)


def test_neighbours_and_order_of_candidates_change_no_score(fitted, name):
    batch = planted_batch(6)
    whole = scores(fitted[0][name], batch)
    smaller, at = subset(batch, [5, 0, 3], torch.Generator().manual_seed(0))
    np.testing.assert_allclose(scores(fitted[0][name], smaller), whole[at.numpy()], rtol=1e-6, atol=1e-6)


def test_unfitted_it_refuses_to_score_and_to_be_saved(name, tmp_path):
    ranker, batch = MAKERS[name](FEATURES), planted_batch(0)
    with pytest.raises(RunError, match="must be fitted before"):
        scores(ranker, batch)
    with pytest.raises(RunError, match="must be fitted before"):
        ranker.save(tmp_path)


def test_labels_of_one_class_are_refused(name):
    batches = [replace(batch, labels=torch.zeros_like(batch.labels)) for batch in planted_batches(0, 2)]
    with pytest.raises(DataError, match="both 0 and 1"):
        MAKERS[name](FEATURES).fit(batches, batches)


def test_no_candidates_give_no_logits(fitted, name):
    batch = planted_batch(0, requests=3, candidates=0)
    assert scores(fitted[0][name], batch).shape == (0,)


def test_it_works_without_match_features(name):
    ranker = MAKERS[name](replace(FEATURES, match=()))
    train = [
        replace(b, candidates=replace(b.candidates, match=b.candidates.match[:, :0])) for b in planted_batches(0, 3)
    ]
    ranker.fit(train, train[:1])
    assert np.isfinite(scores(ranker, train[0])).all()


def test_the_same_data_and_seed_give_the_same_fit(name):
    train, valid = planted_batches(0, 3), planted_batches(50, 1)
    pair = [MAKERS[name](FEATURES) for _ in range(2)]
    for ranker in pair:
        ranker.fit(train, valid)
    np.testing.assert_array_equal(scores(pair[0], valid[0]), scores(pair[1], valid[0]))


def test_logistic_ends_where_scikit_learn_ends():
    train = planted_batches(0, 4, requests=20)
    ranker = Logistic(LogisticConfig(l2_grid=(1e-2,), products=True), FEATURES)
    ranker.fit(train, train[:1])
    matrices, labels = read_batches(ranker.columns, train, split="train")
    x = np.concatenate([ranker._expanded(m, np.float64) for m in matrices])[:, :-1]
    y = np.concatenate(labels)
    # scikit-learn sums the loss and multiplies it by C: C = 1 / (n * l2)
    oracle = LogisticRegression(C=1 / (len(y) * 1e-2), tol=1e-10, max_iter=5000).fit(x, y)
    np.testing.assert_allclose(ranker.weight[:-1], oracle.coef_[0], atol=2e-4)
    assert ranker.weight[-1] == pytest.approx(float(oracle.intercept_[0]), abs=2e-3)
    slope = x.T @ (expit(x @ ranker.weight[:-1] + ranker.weight[-1]) - y) / len(y) + 1e-2 * ranker.weight[:-1]
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)


def test_logistic_names_every_weight(fitted):
    ranker = fitted[0]["logistic"]
    names = ranker.names()
    assert len(names) == len(set(names)) == len(ranker.weight)
    weight = dict(zip(names, ranker.weight, strict=True))
    assert weight["item.count"] > 0.3
    assert weight["popularity"] > 0.3
    assert weight["item.count * item.recency"] > 0


def test_moments_leave_missing_values_out():
    a = np.array([[1.0, 5.0], [np.nan, 5.0]], np.float32)
    b = np.array([[3.0, 5.0]], np.float32)
    mean, scale = moments([a, b])
    np.testing.assert_allclose(mean, [2.0, 5.0])
    np.testing.assert_allclose(scale, [1.0, 1.0])


def test_trees_give_the_gain_to_the_planted_columns(fitted):
    assert list(fitted[0]["trees"].gains())[:3][0] in {"item.count", "popularity"}
    assert sum(fitted[0]["trees"].gains().values()) == pytest.approx(1.0)


def test_nonsense_configurations_are_refused():
    with pytest.raises(SpecError, match=r"TreesConfig\.leaves_grid"):
        TreesConfig(leaves_grid=())
    with pytest.raises(SpecError, match=r"TreesConfig\.row_share must be in"):
        TreesConfig(row_share=0)
    with pytest.raises(SpecError, match=r"LogisticConfig\.l2_grid"):
        LogisticConfig(l2_grid=(0.0,))
