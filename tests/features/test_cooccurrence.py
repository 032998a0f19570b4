"""Item vectors: a version knows only what lies before it, repeatable, close for what is bought together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.features.small_prepared import write_small

from sostenuto.data.prepared import PreparedData
from sostenuto.features.cooccurrence import cooccurrence_vectors, item_vectors, training_events, turned
from sostenuto.schema import features

Array = npt.NDArray[Any]


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


def _with_items_changed(data: PreparedData, where: Array) -> PreparedData:
    behaviours = data.behaviours
    changed = np.array(behaviours.item)
    changed[where] = 2 + (changed[where] + 7) % 38
    data.behaviours = dataclasses.replace(behaviours, item=changed)
    return data


def test_a_version_knows_nothing_at_or_after_its_start(tmp_path: Path) -> None:
    before = item_vectors(write_small(tmp_path / "one", users=30), 4)
    assert before.last.shape == (40, 8)
    assert before.past.shape == (len(before.starts_ms), 40, 8)
    for version in (0, 2, 4):
        data = write_small(tmp_path / f"other{version}", users=30)
        late = np.asarray(data.behaviours.time_ms) >= before.starts_ms[version]
        assert late.any()
        after = item_vectors(_with_items_changed(data, late), 4)
        np.testing.assert_array_equal(after.starts_ms, before.starts_ms)
        np.testing.assert_array_equal(after.past[: version + 1], before.past[: version + 1])
        assert np.abs(after.last - before.last).max() > 0.05


def test_the_last_version_knows_nothing_held_out(tmp_path: Path) -> None:
    data = write_small(tmp_path / "one", users=30)
    before = item_vectors(data, 4)
    lawful = training_events(data)
    user = np.repeat(np.arange(len(data.behaviours.offsets) - 1), np.diff(data.behaviours.offsets))
    for split in ("valid", "test"):
        requests = data.requests(split)
        assert len(requests)
        for u, time in zip(np.asarray(requests.user), np.asarray(requests.time_ms), strict=True):
            assert not lawful[(user == u) & (np.asarray(data.behaviours.time_ms) >= time)].any()
    assert (~lawful).any()
    other = _with_items_changed(write_small(tmp_path / "other", users=30), ~lawful)
    after = item_vectors(other, 4)
    np.testing.assert_array_equal(after.last, before.last)
    np.testing.assert_array_equal(after.past, before.past)


def test_a_split_by_time_holds_back_everybody_from_its_first_request_on(tmp_path: Path) -> None:
    data = write_small(tmp_path / "one", users=30)
    first = min(int(data.requests(split).time_ms.min()) for split in ("valid", "test"))
    by_time = int(data.requests("train").time_ms.max()) < first
    late = np.asarray(data.behaviours.time_ms) >= first
    assert late.any()
    assert training_events(data)[late].any() != by_time


def test_turning_changes_no_inner_product_and_finds_a_rotation() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(50, 4))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    np.testing.assert_allclose(turned(vectors @ rotation, vectors), vectors, atol=1e-5)
    other = turned(vectors, rng.normal(size=(50, 4)))
    np.testing.assert_allclose(other @ other.T, vectors @ vectors.T, atol=1e-4)


def test_the_cache_gives_the_same_vectors(tmp_path: Path) -> None:
    data = write_small(tmp_path / "two", users=30)
    first = item_vectors(data, 4)
    assert len(list((tmp_path / "two" / "cache").iterdir())) == 1
    again = item_vectors(data, 4)
    for name in ("last", "past", "starts_ms"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


def _last(data: PreparedData) -> Array:
    return item_vectors(data, 4).last


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    data = write_small(tmp_path / "two", users=30)
    whole = _last(data)
    (path,) = (tmp_path / "two" / "cache").iterdir()
    good = path.read_bytes()
    for bad in (b"", b"PK\x03\x04 not a zip", good[: len(good) // 2]):
        path.write_bytes(bad)
        np.testing.assert_array_equal(_last(data), whole)
        assert len(path.read_bytes()) == len(good)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, **arrays: Array) -> None:
        Path(path).write_bytes(b"a piece")
        raise OSError(28, "No space left on device")

    data = write_small(tmp_path / "two", users=30)
    monkeypatch.setattr(np, "savez", full)
    whole = _last(data)
    assert not list((tmp_path / "two" / "cache").iterdir())
    monkeypatch.undo()
    (tmp_path / "two" / "cache").rmdir()
    (tmp_path / "two" / "cache").write_text("a file where the folder should be")
    np.testing.assert_array_equal(_last(data), whole)


def test_only_the_most_frequent_items_of_a_large_catalogue_own_a_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MOST_VECTOR_ITEMS", 10)
    made = item_vectors(write_small(tmp_path / "one", users=30), 4)
    assert made.last.shape == (10, 8)
    assert made.past.shape[1:] == (10, 8)
    assert made.last[2:].any(1).all()
