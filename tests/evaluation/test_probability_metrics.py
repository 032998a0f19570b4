"""Logloss, NE, PCOC, ECE: against scikit-learn and by hand; merged equals whole."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import log_loss
from tests.evaluation.rows import labelled

from sostenuto.evaluation import calibration, logloss, pcoc


@given(labelled(max_groups=0))
def test_logloss_equals_scikit_learn_where_that_can_hold_the_probability(rows):
    labels, scores, _ = rows
    logits = np.clip(scores, -20, 20)
    wanted = log_loss(labels, expit(logits), labels=[0, 1])
    assert logloss.logloss(labels, logits) == pytest.approx(wanted, rel=1e-6, abs=1e-7)


def test_logloss_of_a_confident_error_is_its_logit_not_a_clipped_number():
    assert logloss.logloss(np.array([1.0]), np.array([-1e4])) == pytest.approx(1e4)


@given(labelled(), st.integers(0, 40))
def test_merged_sums_equal_the_whole(rows, cut):
    labels, scores, _ = rows
    logits = np.clip(scores, -30, 30)
    for metric in (logloss, pcoc):
        whole = metric.value(metric.state(labels, logits))
        merged = metric.merge(metric.state(labels[:cut], logits[:cut]), metric.state(labels[cut:], logits[cut:]))
        assert metric.value(merged) == pytest.approx(whole, rel=1e-12, nan_ok=True)
    parts = calibration.merge(
        calibration.state(labels[:cut], logits[:cut]), calibration.state(labels[cut:], logits[cut:])
    )
    whole, merged = calibration.value(calibration.state(labels, logits), 4), calibration.value(parts, 4)
    assert np.array_equal(whole.rows, merged.rows)
    assert merged.ece == pytest.approx(whole.ece, abs=1e-12)


def test_saying_the_base_rate_has_normalised_entropy_one():
    labels = np.array([1, 0, 0, 0])
    state = logloss.state(labels, np.full(4, math.log(0.25 / 0.75)))
    assert logloss.normalised_entropy(state) == pytest.approx(1.0)


def test_one_class_has_no_normalised_entropy_and_no_pcoc():
    none = np.zeros(3)
    assert math.isnan(logloss.normalised_entropy(logloss.state(none, none)))
    assert math.isnan(pcoc.pcoc(none, none))


def test_pcoc_is_the_ratio_of_predicted_to_observed():
    labels, probability = np.array([1, 0, 0, 1]), np.array([0.9, 0.5, 0.4, 0.6])
    logits = np.log(probability / (1 - probability))
    assert pcoc.pcoc(labels, logits) == pytest.approx(2.4 / 2)


def test_ece_of_two_bins_by_hand():
    probability = np.array([0.1, 0.2, 0.7, 0.8])
    labels = np.array([0, 1, 1, 1])
    curve = calibration.value(calibration.state(labels, np.log(probability / (1 - probability))), 2)
    assert curve.probability == pytest.approx([0.15, 0.75], abs=1e-6)
    assert curve.observed == pytest.approx([0.5, 1.0])
    assert curve.ece == pytest.approx((0.35 + 0.25) / 2, abs=1e-6)


@given(labelled(), st.integers(1, 20))
def test_every_row_is_in_one_bin_and_equal_scores_share_theirs(rows, bins):
    labels, scores, _ = rows
    logits = np.clip(scores, -30, 30)
    curve = calibration.value(calibration.state(labels, logits), bins)
    assert curve.rows.sum() == len(labels)
    assert len(curve.rows) <= min(bins, len(np.unique(logits)))
    assert (curve.low <= curve.observed + 1e-12).all()
    assert (curve.observed <= curve.high + 1e-12).all()
    assert np.all(np.diff(curve.probability) >= -1e-12)


def test_bins_hold_equally_many_rows_when_scores_differ():
    logits = np.random.default_rng(0).normal(size=1000)
    curve = calibration.value(calibration.state((logits > 0).astype(int), logits), 10)
    assert (curve.rows == 100).all()


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_a_large_one():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=40_000)
    labels = (rng.random(40_000) < expit(logits)).astype(int)
    assert calibration.ece(labels, logits) < 0.01
    assert calibration.ece(labels, 4 * logits) > 0.1
