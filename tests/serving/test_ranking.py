"""HistoryRanker: the same scores as offline, nothing of the future, and reasons that hold when checked by hand."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.features.small_prepared import DAY_MS, write_small

from sostenuto.data.prepared import PreparedData, Requests, write_behaviours
from sostenuto.data.vocabularies import write_vocabulary
from sostenuto.data.worlds import world_prepared
from sostenuto.features.assembly import Asked
from sostenuto.features.collation import Collator
from sostenuto.features.missing import missing_column
from sostenuto.features.view import HistoryView
from sostenuto.models.table import build, default_config
from sostenuto.schema.errors import DataError
from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.serving import explaining
from sostenuto.serving import ranking as module
from sostenuto.serving.ranking import HistoryRanker, Ranked, near_words

NOW_MS = 1_500_000_000_000 + 30 * DAY_MS


def with_users(data: PreparedData) -> PreparedData:
    """Give the small folder a user vocabulary: u2, u3 ... by index."""
    count = len(data.behaviours.offsets) - 1
    write_vocabulary(data.folder, "user", pl.Series(["", "?", *(f"u{n}" for n in range(FIRST_KNOWN, count))]))
    return data


def opened(data: PreparedData, model: str, *, recent: int | None = None) -> HistoryRanker:
    """Open an untrained ranker whose parameters are large enough that histories move the score."""
    config = default_config(model)
    if model == "din":
        config = dataclasses.replace(config, item_dim=8, table_std=0.7, field_std=0.7, tower_units=(16,))
    collator = Collator(data, HistoryView(recent=recent))
    return HistoryRanker(data, collator, build(model, config, collator.features, seed=3))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return with_users(write_small(Path(tmp_path_factory.mktemp("small"))))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return world_prepared("stable_taste", Path(tmp_path_factory.mktemp("world")), events=3_000, users=20, requests=400)


@pytest.fixture(scope="session")
def rankers(small: PreparedData, world: PreparedData) -> dict[tuple[str, str], HistoryRanker]:
    return {
        (name, model): opened(data, model)
        for name, data in (("small", small), ("world", world))
        for model in ("repeat", "din")
    }


PAIRS = list(itertools.product(("small", "world"), ("repeat", "din")))
pairs = pytest.mark.parametrize("which", PAIRS, ids=["-".join(pair) for pair in PAIRS])


def users_of(data: PreparedData) -> list[str]:
    return data.vocabulary("user")[FIRST_KNOWN:]


def middle_ms(data: PreparedData) -> int:
    return int(np.median(data.behaviours.time_ms))


def offline_logits(ranker: HistoryRanker, user: int, time_ms: int, item: np.ndarray) -> np.ndarray:
    """Score one request the way of training and evaluation: a `Requests` row through `Collator.batch`."""
    behaviours, features = ranker.data.behaviours, ranker.data.features
    a, b = behaviours.offsets[user : user + 2]
    prefix = int((behaviours.time_ms[a:b] < time_ms).sum())
    requests = Requests(
        user=np.array([user], np.int32),
        time_ms=np.array([time_ms], np.int64),
        prefix=np.array([prefix], np.int32),
        place=np.array([behaviours.place[a + prefix - 1] if prefix else 0], np.int32),
        offsets=np.array([0, len(item)], np.int64),
        item=item.astype(np.int32),
        label=np.zeros(len(item), np.float32),
        list_id=np.zeros(len(item), np.uint8),
        candidate={f.name: missing_column(f, len(item)) for f in features.candidate_fields},
        context={f.name: missing_column(f, 1) for f in features.context_fields},
    )
    batch = ranker.collator.batch(requests, np.array([0]))
    with torch.inference_mode():
        state = ranker.ranker.encode(batch.histories)
        return ranker.ranker.score(state, batch.candidates, batch.context).logits.double().numpy()


def logit_without(ranker: HistoryRanker, request: Any, gone: set[str], item_id: str) -> float:
    """Take behaviours out by hand, in a loop over the user's events, and score the one candidate again."""
    data = ranker.data
    ids, b = data.vocabulary("item"), data.behaviours
    rows = [int(row) for row in request.past if ids[b.item[row]] not in gone]
    item = np.array([ids.index(item_id)])
    asked = Asked(
        offsets=np.array([0, 1]),
        item=item,
        candidate_fields={f.name: missing_column(f, 1) for f in data.features.candidate_fields},
        user=np.array([request.user]),
        time_ms=np.array([request.time_ms]),
        place=np.array([request.place]),
        context_fields={},
    )
    one = ranker.collator.assembler.batch(
        np.array([0, len(rows)]),
        {name: np.asarray(getattr(b, name))[rows] for name in ("item", "time_ms", "action", "value", "place")},
        {f.name: np.asarray(b.fields[f.name])[rows] for f in data.features.behaviour_fields},
        asked,
    )
    with torch.inference_mode():
        state = ranker.ranker.encode(one.histories)
        return float(ranker.ranker.score(state, one.candidates, one.context).logits[0])


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pairs
def test_a_live_request_scores_as_the_same_request_offline(rankers, which):
    ranker = rankers[which]
    for user_id in users_of(ranker.data)[:6]:
        ranking = ranker.rank(user_id, time_ms=middle_ms(ranker.data), k=10**6, explain=False)
        item = ranker.item_indices(entry.item_id for entry in ranking.items)
        user = ranker.data.vocabulary("user").index(user_id)
        logits = offline_logits(ranker, user, ranking.time_ms, item)
        close([entry.logit for entry in ranking.items], logits)
        assert ranking.num_candidates == len(item) == ranker.data.features.num_item_rows - FIRST_KNOWN
        assert [entry.rank for entry in ranking.items] == list(range(1, len(item) + 1))
        assert (np.diff([entry.logit for entry in ranking.items]) <= 0).all()
        close([entry.probability for entry in ranking.items], 1 / (1 + np.exp(-logits)))


@pairs
def test_events_at_or_after_the_asked_time_change_nothing(rankers, which, tmp_path):
    ranker = rankers[which]
    moment = int(np.sort(ranker.data.behaviours.time_ms)[len(ranker.data.behaviours.time_ms) // 2])  # has ties
    b = ranker.data.behaviours
    late = np.asarray(b.time_ms) >= moment
    rng = np.random.default_rng(0)

    def other(column: np.ndarray, low: int, high: int) -> np.ndarray:
        return np.where(late, rng.integers(low, high, len(column)), column).astype(column.dtype)

    changed = dataclasses.replace(
        b,
        item=other(b.item, FIRST_KNOWN, ranker.data.features.num_items),
        action=other(b.action, 0, ranker.data.features.num_actions),
        place=other(b.place, 0, ranker.data.features.num_places),
        value=np.where(late, 1e6, b.value).astype(np.float32),
        time_ms=np.where(late, np.asarray(b.time_ms) + 90 * DAY_MS, b.time_ms),
    )
    for name in ("manifest.json", "items.parquet", "vocab", "behaviours"):
        source, target = ranker.data.folder / name, tmp_path / name
        if source.is_dir():
            target.mkdir()
            for path in source.iterdir():
                (target / path.name).write_bytes(path.read_bytes())
        else:
            target.write_bytes(source.read_bytes())
    write_behaviours(tmp_path, changed)
    data = PreparedData(tmp_path)
    again = HistoryRanker(data, Collator(data, ranker.collator.view), ranker.ranker)
    for user_id in users_of(data)[:4]:
        assert again.rank(user_id, time_ms=moment, k=5) == ranker.rank(user_id, time_ms=moment, k=5)


@pairs
def test_scoring_in_pieces_changes_nothing(rankers, which, monkeypatch):
    ranker = rankers[which]
    user_id, moment = users_of(ranker.data)[3], middle_ms(ranker.data)
    whole = ranker.rank(user_id, time_ms=moment, k=8)
    monkeypatch.setattr(module, "SCORED_AT_ONCE", 7)
    monkeypatch.setattr(explaining, "BEHAVIOURS_AT_ONCE", 1)
    monkeypatch.setattr(explaining, "CANDIDATES_AT_ONCE", 1)
    pieces = ranker.rank(user_id, time_ms=moment, k=8)
    assert [entry.item_id for entry in pieces.items] == [entry.item_id for entry in whole.items]
    for a, b in zip(pieces.items, whole.items, strict=True):
        close([a.logit, a.joint_drop], [b.logit, b.joint_drop])
        assert [reason.item_id for reason in a.reasons] == [reason.item_id for reason in b.reasons]


@pytest.mark.parametrize("model", ["repeat", "din"])
def test_a_recent_view_ranks_and_explains_by_the_newest_behaviours_only(small, model):
    ranker = opened(small, model, recent=5)
    for user_id in users_of(small)[1:6]:
        request = ranker.request(user_id, NOW_MS)
        whole = opened(small, "repeat").request(user_id, NOW_MS).past
        assert request.past.tolist() == whole[-5:].tolist()
        ranking = ranker.rank(user_id, time_ms=NOW_MS, k=6)
        assert ranking.history_length == len(request.past) <= 5
        item = ranker.item_indices(entry.item_id for entry in ranking.items)
        close([entry.logit for entry in ranking.items], offline_logits(ranker, request.user, NOW_MS, item))
        seen = {small.vocabulary("item")[k] for k in small.behaviours.item[request.past]}
        assert {reason.item_id for entry in ranking.items for reason in entry.reasons} <= seen


@pairs
def test_what_is_named_lowers_the_score_when_it_is_taken_out(rankers, which):
    ranker, explained = rankers[which], 0
    for user_id in users_of(ranker.data)[1:6]:
        ranking = ranker.rank(user_id, time_ms=middle_ms(ranker.data), k=4)
        request = ranker.request(user_id, middle_ms(ranker.data))
        for entry in ranking.items:
            for reason in entry.reasons:
                left = logit_without(ranker, request, {reason.item_id}, entry.item_id)
                assert left < entry.logit
                close(reason.drop, entry.logit - left)
            if entry.reasons:
                explained += 1
                left = logit_without(ranker, request, {r.item_id for r in entry.reasons}, entry.item_id)
                assert left < entry.logit
                close(entry.joint_drop, entry.logit - left)
            else:
                assert entry.joint_drop == 0.0
    assert explained > 5


@pairs
def test_reasons_say_how_often_and_when(rankers, which):
    ranker = rankers[which]
    b, ids = ranker.data.behaviours, ranker.data.vocabulary("item")
    for user_id in users_of(ranker.data)[:5]:
        request = ranker.request(user_id)
        for entry in ranker.rank(user_id, k=3).items:
            assert [r.drop for r in entry.reasons] == sorted((r.drop for r in entry.reasons), reverse=True)
            assert len(entry.reasons) <= explaining.REASONS
            for reason in entry.reasons:
                rows = [row for row in request.past if ids[b.item[row]] == reason.item_id]
                assert reason.count == len(rows) > 0
                assert reason.last_time_ms == max(b.time_ms[row] for row in rows) < request.time_ms


@pairs
def test_an_empty_history_has_a_ranking_and_no_reasons(rankers, which):
    ranker = rankers[which]
    ranking = ranker.rank(users_of(ranker.data)[0], time_ms=int(ranker.data.behaviours.time_ms.min()), k=3)
    assert ranking.history_length == 0
    assert ranking.place == ""
    assert [(entry.reasons, entry.joint_drop) for entry in ranking.items] == [((), 0.0)] * 3
    assert np.isfinite([entry.logit for entry in ranking.items]).all()


@pairs
def test_the_same_question_has_the_same_answer(rankers, which):
    ranker = rankers[which]
    user_id = users_of(ranker.data)[2]
    first = ranker.rank(user_id, k=5)
    torch.manual_seed(1234)
    assert ranker.rank(user_id, k=5) == first
    bare = ranker.rank(user_id, k=5, explain=False)
    assert [dataclasses.replace(entry, reasons=(), joint_drop=0.0) for entry in first.items] == list(bare.items)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), k=st.integers(1, 15))
def test_the_order_of_candidates_does_not_matter_and_k_cuts(rankers, seed, size, k):
    ranker = rankers["small", "din"]
    rng = np.random.default_rng(seed)
    ids = rng.choice(ranker.data.vocabulary("item")[FIRST_KNOWN:], size, replace=False).tolist()
    one = ranker.rank("u7", time_ms=NOW_MS, candidates=ids, k=size, explain=False).items
    other = ranker.rank("u7", time_ms=NOW_MS, candidates=sorted(ids), k=k, explain=False).items
    assert {entry.item_id for entry in one} == set(ids)
    assert [entry.item_id for entry in other] == [entry.item_id for entry in one][:k]


def test_items_without_an_embedding_row_are_ranked_when_named(small, rankers):
    rowless = small.vocabulary("item")[-1]
    (entry,) = rankers["small", "din"].rank("u5", candidates=[rowless]).items
    assert entry.item_id == rowless
    assert np.isfinite(entry.logit)


def test_the_candidates_of_the_protocol_come_first(tmp_path):
    data = with_users(write_small(tmp_path / "small"))
    (data.folder / "pools").mkdir()
    np.save(data.folder / "pools" / "candidate_items.npy", np.array([9, 4, 35], np.int32))
    ranking = opened(data, "repeat").rank("u4", explain=False)
    assert {entry.item_id for entry in ranking.items} == {"i4", "i9", "i35"}


def test_by_default_the_request_comes_just_after_the_log(small, rankers):
    ranking = rankers["small", "repeat"].rank("u4", k=1)
    assert ranking.time_ms == small.behaviours.time_ms.max() + 1
    assert ranking.history_length == np.diff(small.behaviours.offsets)[4]


def test_the_repeat_rule_is_explained_by_the_item_itself(world, rankers):
    for entry in rankers["world", "repeat"].rank(users_of(world)[1], k=3).items:
        assert [reason.item_id for reason in entry.reasons] == [entry.item_id]


def test_rounding_is_no_reason(small):
    collator = Collator(small, HistoryView())
    ranker = HistoryRanker(small, collator, build("popularity", default_config("popularity"), collator.features))
    assert all(entry.reasons == () for entry in ranker.rank("u6", k=20).items)  # the history does not matter to it


@pytest.mark.parametrize("model", ["din", "sdim"])
def test_what_depends_on_the_item_alone_is_kept_when_a_ranker_is_opened(small, world, model):
    for data in (small, world):
        ranker = opened(data, model)
        request = ranker.request(users_of(data)[1])
        items = ranker._default_candidates
        kept = ranker.ranker.kept
        batch = ranker._assemble(request, [request.past], items)
        with torch.no_grad():
            assert kept.rows(batch.candidates) is not None
        found = ranker.logits(request, [request.past], items)
        assert kept.num_bytes > 0
        kept.empty()
        np.testing.assert_array_equal(ranker.logits(request, [request.past], items), found)


def test_a_network_is_opened_in_evaluation_mode(small):
    collator = Collator(small, HistoryView())
    din = build("din", default_config("din"), collator.features)
    din.train()
    HistoryRanker(small, collator, din)
    assert not din.training


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            {"user_id": "u99"},
            ["one of the 14 users", "got 'u99'", "name one of them", "Did you mean 'u9'?"],
        ),
        ({"user_id": "?"}, ["got '?'"]),
        ({"user_id": 4711}, ["got '4711'", "for example u2, u3, u4"]),
        ({"candidates": ["i4", "i99", "x"]}, ["'i99' is not (2 of 3 unknown)", "leave them out", "Did you mean 'i"]),
        ({"candidates": [""]}, ["'' is not (1 of 1 unknown)"]),
        ({"candidates": ["i4", "i5", "i4"]}, ["distinct, got 'i4' more than once"]),
        ({"candidates": []}, ["at least one item", "got none"]),
    ],
)
def test_what_the_data_do_not_know_is_refused_with_value_and_fix(rankers, words, said):
    with pytest.raises(DataError) as raised:
        rankers["small", "repeat"].rank(**{"user_id": "u4", **words})
    assert all(text in str(raised.value) for text in said), raised.value


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one_is_refused(rankers, k):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}; ask for"):
        rankers["small", "repeat"].rank("u4", k=k)


@settings(max_examples=50)
@given(word=st.text("abc0123", min_size=4, max_size=9), at=st.integers(0, 8), seed=st.integers(0, 1000))
def test_one_wrong_character_leaves_the_word_among_the_near_ones(word, at, seed):
    known = {str(n) for n in np.random.default_rng(seed).integers(10**6, 10**7, 300)} | {word}
    at %= len(word)
    assert word in near_words(word[:at] + "x" + word[at + 1 :], known, each=300)
    assert len(near_words(word, known, each=3)) <= 12


def test_a_hint_compares_few_words_of_a_large_catalogue():
    known = [str(n) for n in range(1_000_000, 1_100_000)]
    near = near_words("105o000", known)
    assert "1050000" in near
    assert len(near) <= 400


def test_very_large_scores_give_probabilities_without_a_warning(small):
    collator = Collator(small, HistoryView())
    config = dataclasses.replace(default_config("repeat"), count_weight=1e6, popularity_weight=1e6)
    ranking = HistoryRanker(small, collator, build("repeat", config, collator.features)).rank("u6", k=40)
    assert all(0.0 <= entry.probability <= 1.0 for entry in ranking.items)
    assert isinstance(ranking.items[0], Ranked)
