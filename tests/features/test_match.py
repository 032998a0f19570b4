"""The match index against a slow loop, and its laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.features import match
from sostenuto.features.match import DAY_MS, HALF_LIVES_DAYS, MatchIndex, match_names

MOMENT = 1_600_000_000_000


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[tuple[int, int]]], np.ndarray[Any, Any]]:
    """Per row a list of (key, time_ms), times rising; and the request times."""
    rows = draw(
        st.lists(
            st.lists(st.tuples(st.integers(0, 6), st.integers(0, 50)), max_size=12),
            min_size=1,
            max_size=4,
        )
    )
    made = [sorted(((k, MOMENT + d * DAY_MS // 3) for k, d in row), key=lambda e: e[1]) for row in rows]
    return made, np.array([MOMENT + 20 * DAY_MS] * len(rows))


def built(rows: list[list[tuple[int, int]]]) -> MatchIndex:
    offsets = np.concatenate(([0], np.cumsum([len(r) for r in rows]))).astype(np.int64)
    flat = [event for row in rows for event in row]
    key = np.array([k for k, _ in flat], np.int64)
    time = np.array([t for _, t in flat], np.int64)
    return MatchIndex.build(offsets, time, [key])


def slow_features(events: list[tuple[int, int]], key: int, moment: int) -> list[float]:
    times = [t for k, t in events if k == key and key >= 2]
    decayed = [sum(0.5 ** ((moment - t) / DAY_MS / half) for t in times) for half in HALF_LIVES_DAYS]
    recency = 1 / (1 + (moment - max(times)) / DAY_MS) if times else 0.0
    idle = 1 / (1 + (moment - events[-1][1]) / DAY_MS) if events else 0.0
    share = len(times) / max(len(events), 1)
    return [math.log1p(len(times)), *map(math.log1p, decayed), recency, share, math.log1p(len(events)), idle]


@given(histories(), st.lists(st.integers(0, 8), min_size=1, max_size=5))
@settings(deadline=None)
def test_features_equal_a_loop_over_the_history(
    drawn: tuple[list[list[tuple[int, int]]], np.ndarray[Any, Any]], keys: list[int]
) -> None:
    rows, moments = drawn
    index = built(rows)
    row = np.repeat(np.arange(len(rows)), len(keys))
    asked = np.tile(np.array(keys, np.int64), len(rows))
    got = index.features(row, moments, [asked])
    assert got.shape == (len(row), len(match_names(("item",))))
    want = [slow_features(rows[r], int(k), int(moments[r])) for r, k in zip(row, asked, strict=True)]
    np.testing.assert_allclose(got, np.array(want), rtol=1e-5, atol=1e-6)


@given(histories(), st.lists(st.integers(0, 8), min_size=1, max_size=5), st.booleans())
@settings(deadline=None)
def test_an_index_of_what_is_asked_gives_the_same_answers(
    drawn: tuple[list[list[tuple[int, int]]], np.ndarray[Any, Any]], keys: list[int], marked: bool
) -> None:
    rows, moments = drawn
    row = np.repeat(np.arange(len(rows)), len(keys))
    asked = np.tile(np.array(keys, np.int64), len(rows))
    whole = built(rows)
    flat = [event for part in rows for event in part]
    key, time = (np.array([event[k] for event in flat], np.int64) for k in range(2))
    offsets = np.concatenate(([0], np.cumsum([len(r) for r in rows]))).astype(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        if not marked:
            patch.setattr(match, "MARKS_AT_MOST", 0)
        part = MatchIndex.build(offsets, time, [key], (row, [asked]))
    np.testing.assert_array_equal(part.features(row, moments, [asked]), whole.features(row, moments, [asked]))


@given(histories(), st.data())
@settings(deadline=None)
def test_appending_an_event_equals_building_anew(
    drawn: tuple[list[list[tuple[int, int]]], np.ndarray[Any, Any]], data: st.DataObject
) -> None:
    rows, moments = drawn
    new = [(data.draw(st.integers(0, 8)), MOMENT + 18 * DAY_MS) for _ in rows]
    appended = built(rows).append(np.array([t for _, t in new]), [np.array([k for k, _ in new])])
    anew = built([[*row, event] for row, event in zip(rows, new, strict=True)])
    row = np.repeat(np.arange(len(rows)), 9)
    asked = np.tile(np.arange(9), len(rows))
    np.testing.assert_allclose(
        appended.features(row, moments, [asked]), anew.features(row, moments, [asked]), rtol=1e-6, atol=1e-7
    )


@given(histories())
@settings(deadline=None)
def test_a_users_features_do_not_depend_on_the_batch(
    drawn: tuple[list[list[tuple[int, int]]], np.ndarray[Any, Any]],
) -> None:
    rows, moments = drawn
    keys = np.arange(8)
    together = built(rows).features(np.repeat(np.arange(len(rows)), 8), moments, [np.tile(keys, len(rows))])
    for r, row in enumerate(rows):
        alone = built([row]).features(np.zeros(8, np.int64), moments[r : r + 1], [keys])
        np.testing.assert_array_equal(alone, together[r * 8 : (r + 1) * 8])
