"""Lists keep every rule, diversity moves items as its formula says, and logged propensities are those of the draws."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sostenuto.schema.errors import RequestError
from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.serving.recommending.arranging import Arranged, Cap, Exploration, Lawful, arrange
from sostenuto.serving.recommending.similarity import ItemSimilarity


@st.composite
def cases(draw: Any) -> tuple[Lawful, int, np.ndarray]:
    """Candidates with ties, musts that fit, caps that bite, and a similarity."""
    count = draw(st.integers(0, 14))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    score = rng.integers(-3, 4, count) / 2.0 if draw(st.booleans()) else rng.normal(size=count)
    k = draw(st.integers(1, 10))
    caps = [
        Cap(name=f"c{n}", value=rng.integers(0, 5, count), most=draw(st.integers(1, 3)))
        for n in range(draw(st.integers(0, 2)))
    ]
    must = np.zeros(count, np.bool_)
    for row in rng.permutation(count)[: draw(st.integers(0, 3))]:
        must[row] = True
        for cap in caps:
            held = cap.value[must & (cap.value >= FIRST_KNOWN)]
            if len(held) and np.bincount(held).max() > cap.most:
                must[row] = False
        if must.sum() > k:
            must[row] = False
    alike = rng.random((count, count))
    return Lawful(score=score.astype(np.float64), is_must=must, caps=caps), k, (alike + alike.T) / 2


def most_of_a_value(cap: Cap, rows: np.ndarray) -> int:
    held = cap.value[rows]
    return max(Counter(held[held >= FIRST_KNOWN].tolist()).values(), default=0)


def check_rules(lawful: Lawful, k: int, found: Arranged) -> None:
    rows = found.row
    assert len(set(rows.tolist())) == len(rows) <= k
    assert set(np.flatnonzero(lawful.is_must)) <= set(rows.tolist())
    for cap in lawful.caps:
        assert most_of_a_value(cap, rows) <= cap.most
    if len(rows) < k:  # nobody was left who could have stood there
        for row in set(range(len(lawful.score))) - set(rows.tolist()):
            assert any(most_of_a_value(cap, np.append(rows, row)) > cap.most for cap in lawful.caps)


@settings(max_examples=300)
@given(case=cases(), diversity=st.sampled_from([0.0, 0.3, 1.0]))
def test_every_rule_holds_for_every_list(case, diversity):
    lawful, k, alike = case
    found = arrange(lawful, k, diversity=diversity, similarity=lambda row: alike[row])
    check_rules(lawful, k, found)
    assert (found.propensity == 1).all()
    assert not found.is_explored.any()
    assert found.list_propensity == 1


@settings(max_examples=300)
@given(
    case=cases(),
    positions=st.sets(st.integers(1, 10), min_size=1, max_size=4),
    pool=st.integers(1, 8),
    seed=st.integers(0, 100),
)
def test_every_rule_holds_whatever_the_exploring_places_draw(case, positions, pool, seed):
    lawful, k, alike = case
    exploration = Exploration(positions=tuple(sorted(positions)), pool=pool)
    found = arrange(
        lawful,
        k,
        diversity=0.3,
        similarity=lambda row: alike[row],
        exploration=exploration,
        draw=np.random.default_rng(seed),
    )
    check_rules(lawful, k, found)
    explored = np.flatnonzero(found.is_explored)
    assert set(explored + 1) <= positions
    assert not lawful.is_must[found.row[explored]].any()
    if len(explored):
        assert len(explored) <= found.eligible <= pool
        np.testing.assert_allclose(found.propensity[explored], 1 / found.eligible)
    assert (found.propensity[~found.is_explored] == 1).all()


@settings(max_examples=200)
@given(case=cases())
def test_without_diversity_the_list_stands_in_order_of_score(case):
    lawful, k, alike = case
    plain = Lawful(score=lawful.score, is_must=np.zeros(len(lawful.score), np.bool_))
    found = arrange(plain, k, diversity=0.0, similarity=lambda row: alike[row])
    assert found.row.tolist() == np.argsort(-lawful.score, kind="stable")[:k].tolist()


@settings(max_examples=200)
@given(case=cases(), diversity=st.floats(0, 1))
def test_a_list_is_the_one_that_a_loop_over_the_formula_gives(case, diversity):
    lawful, k, alike = case
    spread = lawful.score.std() if len(lawful.score) and lawful.score.std() > 1e-12 else 1.0
    left = sorted(range(len(lawful.score)), key=lambda row: (-lawful.score[row], row))
    listed: list[int] = []
    while left and len(listed) < k:
        musts = [row for row in left if lawful.is_must[row]]
        may = musts if len(musts) == k - len(listed) else left
        free = []
        for row in may:
            promised = np.array([*listed, *(m for m in musts if m != row), row], np.int64)
            if all(most_of_a_value(cap, promised) <= cap.most for cap in lawful.caps):
                free.append(row)
        if not free:
            break

        def worth(row: int) -> float:
            nearest = max((alike[other, row] for other in listed), default=0.0)
            return (1 - diversity) * (lawful.score[row] - lawful.score.max()) / spread - diversity * nearest

        best = max(free, key=worth)
        listed.append(best)
        left.remove(best)
    found = arrange(lawful, k, diversity=diversity, similarity=lambda row: alike[row])
    assert found.row.tolist() == listed


def test_full_diversity_takes_another_kind_where_score_would_not():
    score = np.array([3.0, 2.9, 2.8, -5.0])
    category = np.array([[0], [1], [2], [2], [2], [3]])
    items = np.array([2, 3, 4, 5])
    similarity = ItemSimilarity(category=category)
    lawful = Lawful(score=score, is_must=np.zeros(4, np.bool_))
    by_score = arrange(lawful, 2, diversity=0.0, similarity=lambda row: similarity.to(int(items[row]), items))
    spread = arrange(lawful, 2, diversity=1.0, similarity=lambda row: similarity.to(int(items[row]), items))
    assert by_score.row.tolist() == [0, 1]
    assert spread.row.tolist() == [0, 3]


def test_at_one_half_a_standard_deviation_weighs_as_much_as_being_wholly_alike():
    for gap, expected in ((0.9, 2), (1.1, 1)):  # gap between second and third, in standard deviations
        score = np.array([5.0, 0.0, -gap])
        score = np.append(score, 0.0)
        spread = score.std()
        score[2] = score[1] - gap * spread
        for _ in range(50):  # the third moves the spread: settle it
            score[2] = score[1] - gap * score.std()
        alike = np.zeros((4, 4))
        alike[0, 1] = alike[1, 0] = alike[0, 3] = alike[3, 0] = 1.0  # second and fourth are as the first
        found = arrange(
            Lawful(score=score, is_must=np.zeros(4, np.bool_)), 2, diversity=0.5, similarity=lambda row, a=alike: a[row]
        )
        assert found.row.tolist() == [0, expected]


def test_what_must_be_included_stands_where_it_ranks_or_last():
    score = np.array([4.0, 3.0, 2.0, 1.0])
    high, low = np.zeros(4, np.bool_), np.zeros(4, np.bool_)
    high[1], low[3] = True, True
    assert arrange(Lawful(score=score, is_must=high), 2).row.tolist() == [0, 1]
    assert arrange(Lawful(score=score, is_must=low), 2).row.tolist() == [0, 3]


def test_rules_that_contradict_each_other_are_refused():
    must = np.ones(3, np.bool_)
    with pytest.raises(RequestError, match="must_include must fit the list of 2, it has 3"):
        arrange(Lawful(score=np.zeros(3), is_must=must), 2)
    cap = Cap(name="kind", value=np.array([4, 4, 0]), most=1)
    with pytest.raises(RequestError, match="more than 1 items of one kind"):
        arrange(Lawful(score=np.zeros(3), is_must=must, caps=[cap]), 3)
    cap = Cap(name="kind", value=np.array([0, 1, 0]), most=1)  # missing and unknown are no value
    assert len(arrange(Lawful(score=np.zeros(3), is_must=must, caps=[cap]), 3).row) == 3


@pytest.mark.parametrize("seed", [0, 1])
def test_propensities_are_the_frequencies_of_the_draws(seed):
    rng = np.random.default_rng(seed)
    score = rng.normal(size=12)
    cap = Cap(name="kind", value=rng.integers(0, 4, 12), most=2)
    must = np.zeros(12, np.bool_)
    must[int(np.argmin(np.where(cap.value == 0, score, np.inf)))] = True
    lawful = Lawful(score=score, is_must=must, caps=[cap])
    exploration = Exploration(positions=(2, 4), pool=6)
    draws = 6_000
    lists = Counter()
    at_place: dict[int, Counter[int]] = {1: Counter(), 3: Counter()}
    first = None
    for n in range(draws):
        found = arrange(lawful, 5, exploration=exploration, draw=np.random.default_rng([seed, n]))
        settled = found.row[~found.is_explored].tolist()
        first = settled if first is None else first
        assert settled == first  # deterministic but for the two places
        lists[tuple(found.row[[1, 3]].tolist())] += 1
        for place in (1, 3):
            at_place[place][int(found.row[place])] += 1
            probability = found.propensity[place]
        whole = found.list_propensity
        eligible = found.eligible
    assert eligible >= 2
    for counts in at_place.values():
        assert len(counts) == eligible  # what is drawn at all has the same chance
        assert chisquare(list(counts.values())).pvalue > 1e-3
        assert probability * len(counts) == pytest.approx(1.0)
    pairs = list(itertools.permutations(at_place[1], 2))
    assert len(pairs) * whole == pytest.approx(1.0)  # chances of all lists sum to one
    assert chisquare([lists[pair] for pair in pairs]).pvalue > 1e-3


@settings(max_examples=60)
@given(case=cases(), positions=st.sets(st.integers(1, 8), min_size=1, max_size=3), pool=st.integers(1, 5))
def test_the_chances_of_all_lists_sum_to_one(case, positions, pool):
    lawful, k, _ = case
    exploration = Exploration(positions=tuple(positions), pool=pool)
    seen: dict[tuple[int, ...], float] = {}
    for seed in range(400):
        found = arrange(lawful, k, exploration=exploration, draw=np.random.default_rng(seed))
        seen[tuple(found.row.tolist())] = found.list_propensity
        if sum(seen.values()) > 1 - 1e-9:
            break
    assert sum(seen.values()) == pytest.approx(1.0)


def test_a_place_with_nobody_to_draw_from_does_not_explore():
    lawful = Lawful(score=np.arange(3.0), is_must=np.zeros(3, np.bool_))
    exploration = Exploration(positions=(1, 2))
    draw = np.random.default_rng(0)
    whole = arrange(lawful, 3, exploration=exploration, draw=draw)
    assert sorted(whole.row.tolist()) == [0, 1, 2]
    assert whole.row[2] == 2  # the best of what is not drawn
    assert whole.propensity.tolist() == [0.5, 0.5, 1.0]
    empty = Lawful(score=np.zeros(0), is_must=np.zeros(0, np.bool_))
    assert len(arrange(empty, 3, exploration=exploration, draw=draw).row) == 0


@pytest.mark.parametrize("positions", [(0,), (2, 2)])
def test_positions_that_are_none_are_refused(positions):
    with pytest.raises(ValueError, match="must be distinct and count from 1"):
        Exploration(positions=positions)


def test_similarity_is_shared_levels_and_cosine():
    category = np.array([[0, 0], [1, 1], [2, 2], [2, 3], [2, 2], [3, 2], [2, 1], [2, 1]])
    items = np.arange(2, 8)
    by_path = ItemSimilarity(category=category)
    assert by_path.to(2, items).tolist() == [1.0, 0.5, 1.0, 0.0, 0.5, 0.5]
    assert by_path.to(6, items)[-1] == 0.5  # unknown is shared with nobody
    vectors = np.zeros((6, 2), np.float32)
    vectors[2], vectors[3], vectors[4] = (1, 0), (0.6, 0.8), (-1, 0)
    both = ItemSimilarity(category=category, vectors=vectors)
    np.testing.assert_allclose(both.to(2, items), [1.0, 0.25 + 0.3, 0.5, 0.0, 0.25, 0.25], atol=1e-6)
    alone = ItemSimilarity(category=np.zeros((8, 0)), vectors=vectors)
    np.testing.assert_allclose(alone.to(2, items), [1.0, 0.6, 0.0, 0.0, 0.0, 0.0], atol=1e-6)
    assert ItemSimilarity(category=np.zeros((8, 0))).to(2, items).tolist() == [0.0] * 6
    assert both.to(999, items).tolist() == [0.0] * 6  # an item that the bundle does not know
    assert both.to(2, np.array([999, 2])).tolist() == pytest.approx([0.0, 1.0])
