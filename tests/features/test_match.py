"""The match index against a slow loop, and its laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.features import match
from sostenuto.features.match import DAY_MS, HALF_LIVES_DAYS, MatchIndex, match_features, match_names
from sostenuto.native.library import available, using
from sostenuto.ops import native_match

LIBRARIES = available()

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
def test_joining_later_events_equals_building_anew(
    drawn: tuple[list[list[tuple[int, int]]], np.ndarray[Any, Any]], data: st.DataObject
) -> None:
    rows, moments = drawn
    later = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), max_size=4)
    new = [sorted((k, MOMENT + (17 + d) * DAY_MS) for k, d in data.draw(later)) for _ in rows]
    new = [sorted(events, key=lambda event: event[1]) for events in new]
    joined = built(rows).joined(built(new))
    anew = built([[*row, *events] for row, events in zip(rows, new, strict=True)])
    row = np.repeat(np.arange(len(rows)), 9)
    asked = np.tile(np.arange(9), len(rows))
    moments = np.full(len(rows), MOMENT + 21 * DAY_MS)
    np.testing.assert_allclose(
        joined.features(row, moments, [asked]), anew.features(row, moments, [asked]), rtol=1e-6, atol=1e-7
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


@st.composite
def batches(draw: st.DrawFn) -> tuple[Any, ...]:
    """Offsets, times, keys per level, offsets of the candidates, moments and asked keys per level."""
    lengths = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=4))
    offsets, starts = (np.cumsum([0, *(pair[k] for pair in lengths)], dtype=np.int64) for k in range(2))
    most = draw(st.sampled_from([3, 30, 2**40]))  # keys
    span = draw(st.sampled_from([1, 1000 * DAY_MS]))  # 1: all at one time
    seed = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    time = [np.sort(MOMENT + seed.integers(0, span, length)) for length, _ in lengths]
    kind = draw(st.sampled_from([np.int16, np.int32, np.int64])) if most < 2**15 else np.int64
    seen = seed.integers(0, most, (offsets[-1], 3)).astype(kind)
    asked = seed.integers(0, most, (starts[-1], 3)).astype(kind)
    if offsets[-1] and starts[-1]:
        picked = seed.random(asked.shape) < 0.5
        asked[picked] = seed.choice(seen.reshape(-1), int(picked.sum()))
    moment = MOMENT + span + seed.integers(0, 100 * DAY_MS, len(lengths))
    times = np.concatenate(time) if time else np.zeros(0, np.int64)
    count = draw(st.integers(0, 3))
    return offsets, times, list(seen.T[:count]), starts, moment, list(asked.T[:count])


@pytest.mark.parametrize("name", LIBRARIES)
@given(batches())
def test_the_compiled_twin_equals_the_index(name: str, batch: tuple[Any, ...]) -> None:
    with using(None):
        want = match_features(*batch)
    with using(LIBRARIES[name]):
        got = match_features(*batch)
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("name", LIBRARIES)
@given(batches())
def test_the_compiled_look_up_in_an_index_equals_the_plain_one(name: str, batch: tuple[Any, ...]) -> None:
    offsets, time, keys, starts, moment, asked = batch
    index = MatchIndex.build(offsets, time, keys)
    row = np.repeat(np.arange(len(moment)), np.diff(starts))
    with using(None):
        want = index.features(row, moment, asked)
    with using(LIBRARIES[name]):
        got = index.features(row, moment, asked)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("name", LIBRARIES)
@given(batches())
def test_a_request_of_the_compiled_twin_does_not_depend_on_the_batch(name: str, batch: tuple[Any, ...]) -> None:
    offsets, time, keys, starts, moment, asked = batch
    with using(LIBRARIES[name]):
        together = match_features(*batch)
        for b in range(len(moment)):
            low, high, first, last = offsets[b], offsets[b + 1], starts[b], starts[b + 1]
            alone = match_features(
                np.array([0, high - low]),
                time[low:high],
                [key[low:high] for key in keys],
                np.array([0, last - first]),
                moment[b : b + 1],
                [key[first:last] for key in asked],
            )
            np.testing.assert_array_equal(alone, together[first:last])


WRONG_LEVELS = {
    "a row beyond the users": {"row": np.array([0, 1])},
    "offsets beyond the keys": {"offsets": np.array([0, 3])},
    "offsets that do not start at 0": {"offsets": np.array([1, 2])},
    "a missing count": {"count": np.array([1])},
    "columns of another type": {"columns": np.zeros((2, 5))},
    "columns that lie apart": {"columns": np.zeros((2, 10), np.float32)[:, ::2]},
}


@pytest.mark.parametrize("wrong", WRONG_LEVELS)
@pytest.mark.skipif(not available(), reason="the compiled library is not there")
def test_a_look_up_never_reads_or_writes_beyond_an_array(wrong: str) -> None:
    level = {
        "offsets": np.array([0, 2]),
        "key": np.array([3, 5]),
        "count": np.array([1, 2]),
        "last_ms": np.array([MOMENT, MOMENT]),
        "decayed": np.ones((2, 2)),
        "row": np.array([0, 0]),
        "asked": np.array([5, 7]),
        "columns": np.zeros((2, 5), np.float32),
        "moment": np.array([MOMENT]),
        "length": np.array([3]),
    } | WRONG_LEVELS[wrong]
    with pytest.raises(ValueError, match="must"):
        native_match.met_columns(**level, rates=(0.1, 0.2), day_ms=DAY_MS, first_known=2)


WRONG = {
    "offsets that fall": {"offsets": np.array([0, 3, 2])},
    "offsets beyond the behaviours": {"offsets": np.array([0, 1, 3])},
    "offsets beyond the candidates": {"candidate_offsets": np.array([0, 1, 2])},
    "a missing offset": {"offsets": np.array([0, 2])},
    "a missing key": {"keys": [np.array([5])]},
    "a missing level": {"keys": []},
    "a missing time": {"time_ms": np.array([MOMENT])},
}


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("wrong", WRONG)
def test_arrays_that_do_not_belong_together_are_refused(name: str, wrong: str) -> None:
    good: dict[str, Any] = {
        "offsets": np.array([0, 1, 2]),
        "time_ms": np.array([MOMENT, MOMENT]),
        "keys": [np.array([5, 6])],
        "candidate_offsets": np.array([0, 0, 1]),
        "moment": np.array([MOMENT + 1, MOMENT + 1]),
        "asked": [np.array([6])],
    }
    with using(LIBRARIES[name]):
        assert match_features(**good)[0, 0] == np.float32(math.log(2.0))
        with pytest.raises(ValueError, match="must"):
            match_features(**good | WRONG[wrong])
