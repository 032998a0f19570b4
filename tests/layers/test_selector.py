"""The one selector: every search against sorting all pairs, and its index against indexing anew (muse.md 1, 2, 10)."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.shapes import offsets_of
from tests.reference.slow_selector import slow_selection

from sostenuto.layers.selector import (
    NOTHING,
    CategoryIndex,
    CategorySelector,
    HammingSelector,
    MaskSelector,
    ProductSelector,
    SearchIndex,
    finest_kind,
    searched_kind,
)
from sostenuto.native.library import available, using
from sostenuto.ops.top_k import pack_signatures
from sostenuto.schema.errors import SpecError

FORMS = {"plain": None, **available()}
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=4)
SELECTORS = {"category": CategorySelector, "product": ProductSelector, "signature": HammingSelector}


def rows_of(kind, count, rng):
    """Draw rows of few values, so that ties are many."""
    if kind == "category":
        return torch.from_numpy(rng.integers(0, 4, count))
    if kind == "product":
        return torch.from_numpy(rng.integers(-1, 2, (count, 3))).float()
    return pack_signatures(torch.from_numpy(rng.random((count, 3)) < 0.5))


def times_of(lengths, rng):
    """Draw times that rise inside a row and stand still often."""
    times = [100 + np.cumsum(rng.integers(0, 2, n)) for n in lengths]
    return torch.from_numpy(np.concatenate([*times, []])).long()


def drawn(kind, pairs, seed):
    rng = np.random.default_rng(seed)
    starts, ends = offsets_of([c for c, _ in pairs]), offsets_of([n for _, n in pairs])
    times = times_of([n for _, n in pairs], rng)
    index = SearchIndex(offsets=ends, time_ms=times, rows=rows_of(kind, int(ends[-1]), rng))
    return rows_of(kind, int(starts[-1]), rng), starts, index


def by_row(chosen):
    bounds = chosen.taken.offsets.tolist()
    return [chosen.taken.positions[a:b].tolist() for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", SELECTORS)
@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS, kept=st.integers(1, 6), seed=st.integers(0, 999))
def test_1_a_search_equals_sorting_every_pair(name, kind, pairs, kept, seed):
    query, starts, index = drawn(kind, pairs, seed)
    selector = SELECTORS[kind](kept)
    with using(FORMS[name]):
        chosen = selector.select(query, starts, index)
    found = by_row(chosen)
    assert chosen.query_offsets.tolist() == list(range(len(query) + 1))
    for b in range(len(pairs)):
        mine = slice(int(index.offsets[b]), int(index.offsets[b + 1]))
        asked = slice(int(starts[b]), int(starts[b + 1]))
        scores = selector.scores(query[asked], index.rows[mine]).tolist()
        for row, of_one in zip(found[asked], scores, strict=True):
            expected = slow_selection(of_one, index.time_ms[mine].tolist(), kept)
            assert row == [mine.start + j for j in expected]


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS, kept=st.integers(1, 6) | st.none(), seed=st.integers(0, 999))
def test_1_a_mask_takes_the_newest_that_it_holds_for_all_candidates_of_a_request(pairs, kept, seed):
    _, starts, index = drawn("category", pairs, seed)
    mask = index.rows > 1
    chosen = MaskSelector(kept).select(mask, starts, index)
    assert torch.equal(chosen.query_offsets, starts)
    for b, row in enumerate(by_row(chosen)):
        mine = slice(int(index.offsets[b]), int(index.offsets[b + 1]))
        (scores,) = MaskSelector(kept).scores(mask[mine], index.rows[mine]).tolist()
        assert row == sorted(mine.start + j for j in slow_selection(scores, index.time_ms[mine].tolist(), kept))


@pytest.mark.parametrize("kind", SELECTORS)
@settings(max_examples=40, deadline=None)
@given(pairs=PAIRS, kept=st.integers(1, 6), seed=st.integers(0, 999))
def test_the_order_inside_a_moment_changes_no_selection(kind, pairs, kept, seed):
    """What is selected are the same behaviours, by time and row: nothing else is known of them."""
    query, starts, index = drawn(kind, pairs, seed)
    row = np.repeat(np.arange(len(pairs)), [n for _, n in pairs])
    random = np.random.default_rng(seed + 1).random(len(row))
    order = torch.from_numpy(np.lexsort((random, index.time_ms.numpy(), row)))
    shuffled = replace(index, rows=index.rows[order])
    selector = SELECTORS[kind](kept)
    before = by_row(selector.select(query, starts, index))
    found = by_row(selector.select(query, starts, shuffled))
    after = [[int(order[j]) for j in chosen] for chosen in found]
    assert [sorted(chosen) for chosen in before] == [sorted(chosen) for chosen in after]


@pytest.mark.parametrize("kind", SELECTORS)
@settings(max_examples=40, deadline=None)
@given(pairs=PAIRS, kept=st.integers(1, 6), seed=st.integers(0, 999))
def test_2_what_other_users_did_changes_no_selection(kind, pairs, kept, seed):
    query, starts, index = drawn(kind, pairs, seed)
    together = by_row(SELECTORS[kind](kept).select(query, starts, index))
    for b in range(len(pairs)):
        mine = slice(int(index.offsets[b]), int(index.offsets[b + 1]))
        asked = slice(int(starts[b]), int(starts[b + 1]))
        own = SearchIndex(
            offsets=torch.tensor([0, mine.stop - mine.start]), time_ms=index.time_ms[mine], rows=index.rows[mine]
        )
        alone = SELECTORS[kind](kept).select(query[asked], torch.tensor([0, asked.stop - asked.start]), own)
        assert together[asked] == [[mine.start + j for j in row] for row in by_row(alone)]


@pytest.mark.parametrize("kind", SELECTORS)
@settings(max_examples=40, deadline=None)
@given(
    pairs=PAIRS,
    later=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    kept=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_an_index_folds_events_in_exactly(kind, pairs, later, kept, seed):
    query, starts, whole = drawn(kind, pairs, seed)
    cut = [max(n - m, 0) for (_, n), m in zip(pairs, later, strict=False)]
    parts = []
    for early in (True, False):
        positions, lengths = [], []
        for b, (_, n) in enumerate(pairs):
            span = range(cut[b]) if early else range(cut[b], n)
            positions += [int(whole.offsets[b]) + j for j in span]
            lengths.append(len(span))
        at = torch.tensor(positions, dtype=torch.int64)
        parts.append(SearchIndex(offsets=offsets_of(lengths), time_ms=whole.time_ms[at], rows=whole.rows[at]))
    joined = parts[0].joined(parts[1])
    assert torch.equal(joined.offsets, whole.offsets)
    assert torch.equal(joined.time_ms, whole.time_ms)
    assert torch.equal(joined.rows, whole.rows)
    if kind == "category":
        trees = [CategoryIndex.of(part) for part in (*parts, whole)]
        assert torch.equal(trees[0].joined(trees[1]).order, trees[2].order)
        chosen = CategorySelector(kept).select(query, starts, trees[0].joined(trees[1]))
        assert by_row(chosen) == by_row(CategorySelector(kept).select(query, starts, whole))


def test_ties_go_to_the_newer_and_the_moment_that_the_cut_would_split_stays_whole():
    times = torch.tensor([1, 2, 2, 2, 3])
    zero = pack_signatures(torch.zeros(5, 8, dtype=torch.bool))
    for selector, rows in (
        (CategorySelector(2), torch.full((5,), 7)),
        (ProductSelector(2), torch.ones(5, 1)),
        (HammingSelector(2), zero),
    ):
        index = SearchIndex(offsets=torch.tensor([0, 5]), time_ms=times, rows=rows)
        chosen = selector.select(rows[:1], torch.tensor([0, 1]), index)
        assert by_row(chosen) == [[4, 3, 2, 1]]
        chosen = selector.select(rows[:1], torch.tensor([0, 1]), replace(index, time_ms=torch.arange(5)))
        assert by_row(chosen) == [[4, 3]]


def test_what_scores_minus_infinity_is_never_taken():
    rows = torch.tensor([[1.0, 0.0], [2.0, -torch.inf], [3.0, 0.0]])
    index = SearchIndex(offsets=torch.tensor([0, 3]), time_ms=torch.arange(3), rows=rows)
    chosen = ProductSelector(3).select(torch.ones(1, 2), torch.tensor([0, 1]), index)
    assert by_row(chosen) == [[2, 0]]


def test_10_nothing_is_like_an_unknown_category():
    item = torch.tensor([0, 1, 5, 5, 1, 9])
    category = torch.tensor([[2, 0], [2, 1], [2, 0], [2, 3], [2, 3], [2, 1]])
    assert finest_kind(item, category, 4).tolist() == [4, 5, 9, 3, 3, 13]
    kinds = searched_kind(item, category, 4)
    assert kinds.tolist() == [NOTHING, NOTHING, 9, 3, 3, 13]
    assert searched_kind(item, category[:, :0], 0).tolist() == [NOTHING, NOTHING, 5, 5, NOTHING, 9]
    index = SearchIndex(offsets=torch.tensor([0, 6]), time_ms=torch.arange(6), rows=kinds)
    chosen = CategorySelector(9).select(kinds, torch.tensor([0, 6]), index)
    assert by_row(chosen) == [[], [], [2], [4, 3], [4, 3], [5]]


def test_no_gradient_flows_through_a_selection():
    query, rows = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    index = SearchIndex(offsets=torch.tensor([0, 4]), time_ms=torch.arange(4), rows=rows)
    selector = ProductSelector(2)
    assert not selector.select(query, torch.tensor([0, 2]), index).taken.positions.requires_grad
    assert not selector.scores(query, rows).requires_grad


@pytest.mark.parametrize("selector", [*SELECTORS.values(), MaskSelector])
def test_nothing_to_keep_is_refused(selector):
    with pytest.raises(SpecError, match="kept must be at least 1, got 0"):
        selector(0)
