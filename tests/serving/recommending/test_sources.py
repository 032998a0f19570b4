"""Candidate sources propose what their description says, from what was strictly before, and never too much."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.features.popularity import WINDOW_MS, PopularityIndex
from sostenuto.schema.content import ItemContent
from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.serving.recommending.cheap import COLUMNS, CheapWeights, cheap_columns, cheap_scores, cut
from sostenuto.serving.recommending.company import TogetherSource
from sostenuto.serving.recommending.nearest import NearestSource, VectorIndex, content_vectors
from sostenuto.serving.recommending.past import HALF_LIFE_MS, NO_PAST, UserPast
from sostenuto.serving.recommending.popular import REFRESH_MS, PopularSource
from sostenuto.serving.recommending.repeat import RepeatSource
from sostenuto.serving.recommending.source import Merged, Proposal, Seeker
from sostenuto.serving.recommending.together import TogetherConfig, occasions, together_of

DAY_MS = 86_400_000
NOW_MS = 1_500_000_000_000 // REFRESH_MS * REFRESH_MS
ITEMS = 20
EVENTS = st.lists(st.tuples(st.integers(0, ITEMS - 1), st.integers(0, 90)), max_size=40)


def seeker_of(past: UserPast, popularity: PopularityIndex | None = None, place: int = 0, **more: Any) -> Seeker:
    popularity = PopularityIndex(num_items=ITEMS) if popularity is None else popularity
    return Seeker(past=past, time_ms=NOW_MS, place=place, popularity=popularity, **more)


def past_of(events: list[tuple[int, int]]) -> UserPast:
    """Return the past of (item, days ago)."""
    item = np.array([i for i, _ in events], np.int64)
    return UserPast.of(item, NOW_MS - 1 - np.array([d for _, d in events], np.int64) * DAY_MS)


@settings(max_examples=100)
@given(events=EVENTS, seed=st.integers(0, 99))
def test_a_past_is_what_a_loop_counts(events, seed):
    rng = np.random.default_rng(seed)
    bought = rng.random(len(events)) < 0.5
    item = np.array([i for i, _ in events], np.int64)
    time_ms = NOW_MS - 1 - np.array([d for _, d in events], np.int64) * DAY_MS
    past = UserPast.of(item, time_ms, bought)
    known = sorted({i for i in item.tolist() if i >= FIRST_KNOWN})
    assert past.item.tolist() == known
    assert past.length == len(events)
    decayed = past.decayed_at(NOW_MS)
    for n, one in enumerate(known):
        own = [row for row in range(len(item)) if item[row] == one]
        assert past.count[n] == len(own)
        assert past.last_ms[n] == max(time_ms[row] for row in own)
        assert past.is_bought[n] == any(bought[row] for row in own)
        slow = sum(2.0 ** (-(NOW_MS - time_ms[row]) / HALF_LIFE_MS) for row in own)
        assert math.isclose(decayed[n], slow, rel_tol=1e-9)
    assert past.by_recency.tolist() == sorted(
        range(len(known)), key=lambda n: (-past.last_ms[n], -past.count[n], past.item[n])
    )
    found, at = past.find(np.arange(ITEMS))
    assert [known[a] for a in at[found]] == known


def test_repeat_puts_often_and_lately_first():
    past = past_of([(5, 80)] * 3 + [(6, 1)] * 3 + [(7, 1)])
    lately = RepeatSource(count_weight=0.1)  # 1 + .1 log 2 of yesterday against .41 + .1 log 4 of long ago
    assert lately.propose(seeker_of(past), 10).item.tolist() == [6, 7, 5]
    assert lately.propose(seeker_of(past), 2).item.tolist() == [6, 7]
    assert RepeatSource().propose(seeker_of(past), 10).item.tolist() == [6, 5, 7]  # an old habit outweighs once
    assert not len(RepeatSource().propose(seeker_of(NO_PAST), 10))


@settings(max_examples=100)
@given(score=st.lists(st.integers(0, 5), max_size=30), budget=st.integers(0, 12))
def test_the_best_are_those_of_a_full_sort(score, budget):
    item = np.random.default_rng(0).permutation(len(score)) + 2
    found = Proposal.best(item, np.array(score, np.float64), budget)
    order = sorted(range(len(score)), key=lambda n: (-score[n], item[n]))[:budget]
    assert found.item.tolist() == [item[n] for n in order]
    assert (np.diff(found.score) <= 0).all()


def popularity_of(events: list[tuple[int, int, int]]) -> PopularityIndex:
    """Return the popularity of (item, ms before the hour that now begins, place)."""
    columns = np.array(events, np.int64).reshape(-1, 3)
    return PopularityIndex(num_items=ITEMS).joined(columns[:, 0], NOW_MS - columns[:, 1], columns[:, 2])


def test_popular_counts_the_last_four_weeks_and_the_place():
    old = [(2, WINDOW_MS + DAY_MS, 3)] * 50
    recent = [(4, DAY_MS, 2)] * 9 + [(5, DAY_MS, 3)] * 6
    popularity = popularity_of(old + recent)
    source = PopularSource(np.arange(2, ITEMS), prior=1.0)
    assert source.propose(seeker_of(NO_PAST, popularity), 2).item.tolist() == [4, 5]
    assert source.propose(seeker_of(NO_PAST, popularity, place=3), 2).item.tolist() == [5, 4]
    assert source.propose(seeker_of(NO_PAST, popularity, place=1), 2).item.tolist() == [4, 5]  # an unknown place
    assert len(source.propose(seeker_of(NO_PAST, popularity), 100)) == ITEMS - 2


def test_popular_sees_nothing_at_or_after_the_hour_that_began():
    popularity = popularity_of([(4, 1, 2), (5, 0, 2), (5, 0, 2), (5, -5, 2)])
    found = PopularSource(np.arange(2, ITEMS)).propose(seeker_of(NO_PAST, popularity), 1)
    assert found.item.tolist() == [4]


def test_popular_is_counted_anew_when_the_log_has_grown():
    source = PopularSource(np.arange(2, ITEMS))
    first = popularity_of([(4, DAY_MS, 2)] * 3)
    assert source.propose(seeker_of(NO_PAST, first), 1).item.tolist() == [4]
    grown = first.joined(np.full(9, 7), np.full(9, NOW_MS - DAY_MS), np.full(9, 2))
    assert source.propose(seeker_of(NO_PAST, grown), 1).item.tolist() == [7]


def test_without_any_event_popular_goes_by_training_frequency():
    assert PopularSource(np.arange(2, ITEMS)).propose(seeker_of(NO_PAST), 3).item.tolist() == [2, 3, 4]


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), least=st.integers(1, 2), kept=st.integers(1, 5))
def test_together_is_what_a_loop_over_pairs_counts(seed, least, kept):
    rng = np.random.default_rng(seed)
    occasion = np.sort(rng.integers(0, 12, 50))
    item = rng.integers(0, 10, 50)
    config = TogetherConfig(least_occasions=least, neighbours=kept, shrink=2.0)
    table = together_of(occasion, item, 9, config)
    baskets = [{i for i, o in zip(item.tolist(), occasion.tolist(), strict=True) if o == b} for b in range(12)]
    for one in range(9):
        slow = []
        for other in range(2, 9):
            both = sum(one in b and other in b for b in baskets)
            if one < 2 or one == other or both < least:
                continue
            times = [sum(x in b for b in baskets) for x in (one, other)]
            slow.append((-np.float32(both / (math.sqrt(times[0] * times[1]) + 2.0)), other))
        slow = sorted(slow)[:kept]
        assert [i for i in table.item[one].tolist() if i] == [other for _, other in slow]
        np.testing.assert_allclose(table.weight[one][: len(slow)], [-w for w, _ in slow], rtol=1e-6)


def test_occasions_end_with_the_user_and_with_a_long_gap():
    offsets, hour = np.array([0, 0, 4, 8]), 3_600_000
    time_ms = np.array([0, hour, 2 * hour, 99 * hour, 99 * hour, 99 * hour, 99 * hour, 100 * hour])
    assert occasions(offsets, time_ms).tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    cut_short = TogetherConfig(most_events=2)
    assert occasions(offsets, time_ms, cut_short).tolist() == [0, 0, 1, 2, 3, 3, 4, 4]


def test_where_events_stand_alone_occasions_are_blocks_of_a_user():
    offsets, time_ms = np.array([0, 5, 8]), np.arange(8) * 40 * DAY_MS
    assert occasions(offsets, time_ms, TogetherConfig(block=3)).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert len(occasions(np.array([0, 0]), np.zeros(0, np.int64))) == 0


def test_together_proposes_the_company_of_the_newest_items():
    baskets = [[5, 6], [5, 6], [5, 6], [7, 8], [7, 8], [7, 8], [8, 9], [8, 9], [8, 9]]
    occasion = np.repeat(np.arange(len(baskets)), 2)
    table = together_of(occasion, np.concatenate(baskets), ITEMS)
    allowed = np.ones(ITEMS, np.bool_)
    source = TogetherSource(table=table, items=allowed)
    assert source.propose(seeker_of(past_of([(5, 1)])), 5).item.tolist() == [6]
    assert source.propose(seeker_of(past_of([(5, 1), (9, 60)])), 5).item.tolist() == [6, 8]
    assert TogetherSource(table=table, items=allowed, recent=1).propose(
        seeker_of(past_of([(5, 1), (9, 60)])), 5
    ).item.tolist() == [6]
    allowed[6] = False
    assert source.propose(seeker_of(past_of([(5, 1), (9, 60)])), 5).item.tolist() == [8]
    assert not len(source.propose(seeker_of(past_of([(19, 1)])), 5))  # a row without neighbours
    assert not len(source.propose(seeker_of(NO_PAST), 5))


def test_nearest_proposes_by_the_best_cosine_and_not_what_was_asked_with():
    vectors = np.zeros((10, 2))
    vectors[2], vectors[3], vectors[4], vectors[5] = (5, 0), (0.1, 0.01), (0, 1), (-1, 0)
    vectors[1] = (1, 0)  # the unknown item has no vector, whatever the table holds
    source = NearestSource(name="content", index=VectorIndex.of(np.arange(2, 12), vectors))
    assert source.propose(seeker_of(past_of([(2, 1)])), 5).item.tolist() == [3]
    assert source.propose(seeker_of(past_of([(3, 1)])), 5).item.tolist() == [2, 4]
    assert not len(source.propose(seeker_of(past_of([(9, 1)])), 5))
    assert not len(source.propose(seeker_of(past_of([(15, 1)])), 5))  # beyond the table


def test_content_vectors_are_decoded_and_absent_where_nothing_is_known():
    content = ItemContent(
        name="text",
        arrays_hash="",
        known=torch.tensor([False, False, True, False]),
        vectors=torch.tensor([[0, 0], [0, 0], [3, 4], [9, 9]], dtype=torch.int8),
        scale=torch.tensor([0.0, 0.0, 0.5, 1.0]),
    )
    assert content_vectors(content).tolist() == [[0, 0], [0, 0], [1.5, 2.0], [0, 0]]


@settings(max_examples=100)
@given(lists=st.lists(st.lists(st.integers(2, 15), unique=True, max_size=8), max_size=4))
def test_merging_keeps_every_item_once_and_who_proposed_it(lists):
    merged = Merged.of([(f"s{n}", np.array(items, np.int64)) for n, items in enumerate(lists)])
    assert merged.item.tolist() == list(dict.fromkeys(i for items in lists for i in items))
    for row, item in enumerate(merged.item.tolist()):
        assert merged.sources(row) == tuple(f"s{n}" for n, items in enumerate(lists) if item in items)
        assert merged.rank[row].tolist() == [items.index(item) if item in items else -1 for items in lists]


def test_the_cheap_score_is_the_documented_sum():
    past = past_of([(5, 10), (5, 3), (6, 1)])
    popularity = popularity_of([(5, DAY_MS, 2)] * 3 + [(8, DAY_MS, 2)])
    seeker = seeker_of(past, popularity, place=2)
    merged = Merged.of([("a", np.array([5, 8])), ("b", np.array([7, 5]))])
    columns = cheap_columns(merged, seeker)
    ages = [10, 3]
    own = [
        math.log1p(sum(2 ** (-(a * DAY_MS + 1) / HALF_LIFE_MS) for a in ages)),
        math.log1p(2),
        1 / (1 + (3 * DAY_MS + 1) / DAY_MS),
        math.log1p(1e6 * 3 / 4) / 10,
        math.log1p(1e6 * 3 / 4) / 10,
        1 + 1 / (1 + 1 / 25),
    ]
    np.testing.assert_allclose(columns[0], own, rtol=1e-6)
    assert columns[2].tolist() == [0, 0, 0, 0, 0, 1]  # item 7: neither met nor popular
    weights = CheapWeights(decayed=1, count=2, recency=3, popular=4, at_place=5, proposed=6)
    np.testing.assert_allclose(cheap_scores(merged, seeker, weights), columns @ np.arange(1, 7), rtol=1e-12)
    assert len(COLUMNS) == 6
    with pytest.raises(ValueError, match=r"CheapWeights\.count must be finite"):
        CheapWeights(count=math.nan)


@settings(max_examples=100)
@given(seed=st.integers(0, 999), count=st.integers(0, 20), most=st.integers(1, 12))
def test_the_cut_keeps_what_was_named_and_then_the_best(seed, count, most):
    rng = np.random.default_rng(seed)
    scores, named = rng.integers(0, 6, count).astype(np.float64), rng.random(count) < 0.2
    kept = cut(scores, named, most)
    assert (np.diff(kept) > 0).all()
    assert len(kept) == min(count, max(most, named.sum()))
    assert set(np.flatnonzero(named)) <= set(kept.tolist())
    rest = sorted((n for n in range(count) if not named[n]), key=lambda n: (-scores[n], n))
    assert set(kept.tolist()) - set(np.flatnonzero(named)) == set(rest[: max(most - int(named.sum()), 0)])
