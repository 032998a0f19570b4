"""dare.md section 4.1, the hard variant: the category first, then what is newest, against sorting all pairs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.layers.test_selector import PAIRS, by_row, drawn
from tests.reference.slow_selector import slow_selection

from sostenuto.layers.category_first import CategoryFirstSelector
from sostenuto.layers.selector import CategoryIndex


@settings(max_examples=60)
@given(pairs=PAIRS, kept=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_the_selection_is_that_of_sorting_all_pairs(pairs, kept, seed):
    query, starts, index = drawn("category", pairs, seed)
    selector = CategoryFirstSelector(kept)
    found = [sorted(row) for row in by_row(selector.select(query, starts, index))]
    expected = []
    past = itertools.pairwise(index.offsets.tolist())
    for (a, b), (low, high) in zip(itertools.pairwise(starts.tolist()), past, strict=True):
        scores = selector.scores(query[a:b], index.rows[low:high])
        times = index.time_ms[low:high].tolist()
        expected += [sorted(low + j for j in slow_selection(row, times, kept)) for row in scores.tolist()]
    assert found == expected
    assert [sorted(row) for row in by_row(selector.select(query, starts, CategoryIndex.of(index)))] == expected


@pytest.mark.parametrize("kept", [1, 4, 9])
def test_where_a_history_has_so_many_exactly_that_many_are_found(kept):
    rng = np.random.default_rng(0)
    query, starts, index = drawn("category", [(20, 12)], 3)
    index.time_ms.copy_(torch.arange(12))
    index.rows.copy_(torch.from_numpy(rng.integers(0, 6, 12)))
    chosen = CategoryFirstSelector(kept).select(query, starts, index)
    assert (chosen.taken.offsets.diff() == kept).all()
