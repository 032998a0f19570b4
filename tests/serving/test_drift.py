"""Drift and skew: nothing where live is as it was, a number that can be reckoned by hand where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from sostenuto.serving.drift import HALF_LIFE, LEAST, Drift, Reference

NAMES = ("price", "age")


def drawn(seed: int, count: int = 4_000, *, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    values = generator.normal([5.0, 40.0], [2.0, 10.0], (count, 2))
    values[::7, 1] = np.nan
    return generator.normal(shift, 1.0, count), values + np.array([2.0 * shift, 0.0])


@pytest.fixture
def reference() -> Reference:
    return Reference.of(NAMES, [drawn(0), drawn(1)])


def test_like_requests_show_no_drift(reference):
    drift = Drift(reference)
    for seed in range(2, 8):
        drift.observe(*drawn(seed))
    assert drift.stability < 0.01
    assert max(drift.skew.values()) < 0.05


def test_a_shift_of_one_deviation_is_seen_as_one(reference):
    drift = Drift(reference)
    for seed in range(2, 20):
        drift.observe(*drawn(seed, shift=1.0))
    assert drift.stability > 0.25
    assert drift.skew["price"] == pytest.approx(1.0, abs=0.05)
    assert drift.skew["age"] < 0.05


def test_the_index_is_its_formula():
    drift = Drift(Reference(edges=(0.0,), shares=(0.5, 0.5), mean={}, std={}))
    drift.observe(np.array([-1.0, 1.0, 2.0, 3.0]), np.zeros((4, 0)))
    assert drift.stability == pytest.approx((0.25 - 0.5) * np.log(0.5) + (0.75 - 0.5) * np.log(1.5))


def test_old_requests_fade(reference):
    drift = Drift(reference)
    drift.observe(*drawn(2, HALF_LIFE, shift=3.0))
    for seed in range(3, 33):
        drift.observe(*drawn(seed, HALF_LIFE))
    assert drift.skew["price"] < 0.05


def test_nothing_is_said_of_a_few(reference):
    drift = Drift(reference)
    drift.observe(*drawn(2, LEAST - 1))
    assert drift.readings("v") == []
    drift.observe(*drawn(3, 1))
    assert {reading.labels.get("feature") for reading in drift.readings("v")} == {None, *NAMES}


def test_a_feature_that_never_varied_or_was_never_there_is_finite():
    values = np.stack([np.full(100, 3.0), np.full(100, np.nan)], 1)
    drift = Drift(Reference.of(NAMES, [(np.zeros(100), values)]))
    drift.observe(np.zeros(10), np.stack([np.full(10, 3.0), np.full(10, 1.0)], 1))
    assert all(np.isfinite(value) for value in drift.skew.values())
    assert np.isfinite(drift.stability)
