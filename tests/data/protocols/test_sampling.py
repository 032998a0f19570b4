"""Candidate sampling: distinct, allowed, from the stated distribution, exact where rejection gives up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.data.prepared import Array
from sostenuto.data.protocols.sampling import cap_per_row, contains, generator, sample_distinct

NUM_ITEMS = 50


def run(counts: list[int], weights: Array, forbidden: set[tuple[int, int]], seed: int) -> tuple[Array, Array]:
    items = np.flatnonzero(weights)
    edges = np.cumsum(weights[items])

    def draw(rows: Array, rng: np.random.Generator) -> Array:
        return items[np.searchsorted(edges, rng.random(len(rows)) * edges[-1], side="right")]

    keys = np.array(sorted(row * NUM_ITEMS + item for row, item in forbidden), np.int64)
    return sample_distinct(
        np.array(counts),
        draw,
        lambda row: (items, weights[items]),
        keys,
        num_items=NUM_ITEMS,
        rng=generator(seed, "test"),
    )


@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    weights=st.lists(st.integers(0, 1000), min_size=12, max_size=NUM_ITEMS),
    banned=st.sets(st.tuples(st.integers(0, 7), st.integers(0, NUM_ITEMS - 1)), max_size=40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_draws_are_distinct_allowed_and_complete(
    counts: list[int], weights: list[int], banned: set[tuple[int, int]], seed: int
) -> None:
    weight = np.array(weights, float)
    able = np.flatnonzero(weight)
    counts = [min(n, len([i for i in able if (r, i) not in banned])) for r, n in enumerate(counts)]
    if not len(able):
        return
    row, item = run(counts, weight, banned, seed)
    pairs = list(zip(row.tolist(), item.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) == sum(counts)
    assert np.bincount(row, minlength=len(counts)).tolist() == counts
    assert not set(pairs) & banned
    assert all(weight[i] > 0 for _, i in pairs)


def test_first_draws_follow_the_weights() -> None:
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    row, item = run([1] * 20_000, weights, set(), seed=1)
    assert np.bincount(item) / len(row) == pytest.approx(weights / 10, abs=0.015)


def test_pairs_follow_successive_sampling_without_replacement() -> None:
    weights = np.array([1.0, 2.0, 7.0])
    _, item = run([2] * 20_000, weights, set(), seed=2)
    left_out = 3 - item.reshape(-1, 2).sum(1)
    # P(a left out) = P(b then c) + P(c then b), each p_first * p_second / (1 - p_first)
    p = weights / 10
    expected = [
        p[1] * p[2] / (1 - p[1]) + p[2] * p[1] / (1 - p[2]),
        p[0] * p[2] / (1 - p[0]) + p[2] * p[0] / (1 - p[2]),
        p[0] * p[1] / (1 - p[0]) + p[1] * p[0] / (1 - p[1]),
    ]
    assert np.bincount(left_out) / len(left_out) == pytest.approx(expected, abs=0.015)


def test_rows_that_rejection_cannot_fill_are_finished() -> None:
    # one item has nearly all the weight, yet all twelve are asked for
    weights = np.array([1e12, *[1.0] * 11])
    row, item = run([12, 12], weights, set(), seed=3)
    assert sorted(item[row == 0]) == sorted(item[row == 1]) == list(range(12))


def test_same_seed_same_draws_and_other_seed_others() -> None:
    weights = np.ones(NUM_ITEMS)
    first, again, other = (run([5] * 20, weights, set(), seed)[1].tolist() for seed in (4, 4, 5))
    assert first == again != other


@given(rows=st.lists(st.integers(0, 5), max_size=60), limit=st.integers(0, 4))
def test_cap_keeps_at_most_the_limit_and_all_below_it(rows: list[int], limit: int) -> None:
    row = np.array(rows, np.int64)
    keep = cap_per_row(row, limit, generator(0, "cap"))
    kept = np.bincount(row[keep], minlength=6)
    assert (kept == np.minimum(np.bincount(row, minlength=6), limit)).all()


def test_cap_takes_every_entry_equally_often() -> None:
    row = np.zeros(4, np.int64)
    rng = generator(0, "cap")
    kept = sum(cap_per_row(row, 1, rng).astype(int) for _ in range(4_000))
    assert kept / 4_000 == pytest.approx(0.25, abs=0.03)


@given(st.sets(st.integers(0, 30)), st.lists(st.integers(0, 30), max_size=20))
def test_contains_is_membership(known: set[int], asked: list[int]) -> None:
    found = contains(np.array(sorted(known), np.int64), np.array(asked, np.int64))
    assert found.tolist() == [a in known for a in asked]
