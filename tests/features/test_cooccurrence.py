"""Item vectors: only from before the first training request, repeatable, close for what is bought together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from tests.features.small_prepared import write_small

from sostenuto.features.cooccurrence import cooccurrence_vectors, item_vectors


def test_items_bought_by_the_same_users_are_close() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(60), 8)
    item = 2 + rng.integers(0, 10, len(user)) + 10 * (user % 2)  # two camps with ten items each
    vectors = cooccurrence_vectors(user, item, 25, 4)
    near = vectors[2:12] @ vectors[2:12].T
    far = vectors[2:12] @ vectors[12:22].T
    assert near.mean() > far.mean() + 0.5
    assert not vectors[[0, 1, 22, 23, 24]].any()
    np.testing.assert_array_less(np.linalg.norm(vectors, axis=1), 1.0)


def test_vectors_are_repeatable_and_do_not_depend_on_the_order_of_events() -> None:
    rng = np.random.default_rng(1)
    user, item = rng.integers(0, 30, 400), rng.integers(2, 40, 400)
    order = rng.permutation(400)
    first = cooccurrence_vectors(user, item, 40, 6)
    np.testing.assert_array_equal(first, cooccurrence_vectors(user, item, 40, 6))
    np.testing.assert_allclose(first, cooccurrence_vectors(user[order], item[order], 40, 6), atol=1e-5)


def test_too_little_data_gives_zero_columns() -> None:
    assert not cooccurrence_vectors(np.zeros(0, int), np.zeros(0, int), 5, 3).any()
    few = cooccurrence_vectors(np.array([0, 0, 1]), np.array([2, 3, 3]), 5, 3)
    assert few.shape == (5, 3)
    assert not few[:, 1:].any()


def test_items_that_every_user_has_get_zero_vectors() -> None:
    user, item = np.repeat(np.arange(10), 4), np.tile(np.arange(2, 6), 10)
    assert not cooccurrence_vectors(user, item, 8, 3).any()
    one_more = cooccurrence_vectors(np.append(user, 0), np.append(item, 6), 8, 3)
    assert not one_more[2:6].any()
    assert one_more[6].any()


def test_nothing_at_or_after_the_first_training_request_is_used(tmp_path: Path) -> None:
    before = item_vectors(write_small(tmp_path / "one", users=30), 4)
    assert before.shape == (40, 8)
    data = write_small(tmp_path / "other", users=30)
    first = int(data.requests("train").time_ms.min())
    behaviours = data.behaviours
    late = np.asarray(behaviours.time_ms) >= first
    assert late.any()
    changed = np.array(behaviours.item)
    changed[late] = 2 + (changed[late] + 7) % 38
    data.behaviours = dataclasses.replace(behaviours, item=changed)
    np.testing.assert_array_equal(item_vectors(data, 4), before)


def test_the_cache_gives_the_same_vectors(tmp_path: Path) -> None:
    data = write_small(tmp_path / "two", users=30)
    first = item_vectors(data, 4)
    assert len(list((tmp_path / "two" / "cache").iterdir())) == 1
    np.testing.assert_array_equal(item_vectors(data, 4), first)
