"""Reasons from a store are those from prepared data, and hold when the behaviours are taken out of the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.recommending.live_bundles import LATER_MS, deployed
from tests.serving.small_bundles import write_whole

from sostenuto.data.prepared import PreparedData
from sostenuto.features.collation import Collator
from sostenuto.features.view import HistoryView
from sostenuto.schema.errors import RequestError
from sostenuto.schema.events import Event
from sostenuto.serving import explaining
from sostenuto.serving.deployed import Deployed
from sostenuto.serving.explaining import explain_by_deletion
from sostenuto.serving.live_explaining import LiveExplainer
from sostenuto.serving.ranking import HistoryRanker
from sostenuto.serving.scoring import Question
from sostenuto.serving.service import ExplainRequest
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.lmdb_store import LmdbStore
from sostenuto.serving.warming import RawEvents, warm_up

MODELS = ["din", "sdim", "repeat"]
RECENT = HistoryView(recent=6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_whole(Path(tmp_path_factory.mktemp("whole")) / "prepared")


@pytest.fixture(scope="module")
def live(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Deployed]]:
    folder = Path(tmp_path_factory.mktemp("live"))
    with LmdbStore(folder / "store", RecordLayout.of(data.features.behaviour_fields)) as store:
        warm_up(store, data)
        found = {name: deployed(data, name, folder / name, store) for name in MODELS}
        found["din recent"] = deployed(data, "din", folder / "recent", store, RECENT)
        yield found


def asked(items: list[str], **changes: Any) -> ExplainRequest:
    return ExplainRequest(
        **{"request_id": "r", "user_id": "household-3", "time_ms": LATER_MS, "items": items, **changes}
    )


@pytest.mark.parametrize("name", [*MODELS, "din recent"])
def test_reasons_are_those_of_prepared_data(live, data, name):
    one, view = live[name], RECENT if "recent" in name else HistoryView()
    bundle = one.model.bundle
    offline = HistoryRanker(data, Collator(data, view), bundle.ranker)
    explained = 0
    for n in (1, 3, 7):
        user_id, moment = f"household-{n}", int(np.median(data.behaviours.time_ms))
        request = offline.request(user_id, moment)
        place = data.vocabulary("place")[request.place] if request.place > 1 else ""
        if request.place == 1:
            place = "a place that nobody knows"
        ranking = offline.rank(user_id, time_ms=moment, k=5)
        answer = LiveExplainer(one.scorer).explain(
            asked([i.item_id for i in ranking.items], user_id=user_id, time_ms=moment, place=place)
        )
        assert answer.served.history_length == ranking.history_length
        for live_item, item in zip(answer.items, ranking.items, strict=True):
            assert (live_item.item_id, live_item.label) == (item.item_id, item.label)
            numbers = [item.logit, item.joint_drop, *(r.drop for r in item.reasons)]
            found = [live_item.score, live_item.joint_drop, *(r.drop for r in live_item.reasons)]
            np.testing.assert_allclose(found, numbers, rtol=1e-5, atol=1e-5)
            for mine, theirs in zip(live_item.reasons, item.reasons, strict=True):
                for part in ("item_id", "label", "count", "last_time_ms"):
                    assert getattr(mine, part) == getattr(theirs, part)
            explained += bool(item.reasons)
    assert explained > 3


@pytest.mark.parametrize("name", MODELS)
def test_the_score_falls_by_what_is_said_when_the_behaviours_never_happened(live, data, name):
    one, raw = live[name], RawEvents(data)
    user = data.vocabulary("user").index("household-3")
    events = raw.of(user, raw.rows(user))
    items = [*dict.fromkeys(e.item_id for e in events)][:4]
    answer = LiveExplainer(one.scorer).explain(asked(items, place="hill"))
    assert any(item.reasons for item in answer.items)
    for item in answer.items:
        gone = {reason.item_id for reason in item.reasons}
        twin = f"{name} twin without {item.item_id}"  # did the same, but for what is named
        one.model.store.set_user_fields(twin, raw.user_fields(user))
        one.model.store.append([dataclasses.replace(e, user_id=twin) for e in events if e.item_id not in gone])
        question = Question(user_id=twin, time_ms=LATER_MS, items=[item.item_id], place="hill")
        left = float(one.scorer.scores(question).logits[0])  # the popularity of before: nothing was followed
        np.testing.assert_allclose(item.score - left, item.joint_drop, rtol=1e-4, atol=2e-5)
        assert left < item.score or not item.reasons
        for reason in item.reasons:
            assert reason.count == sum(e.item_id == reason.item_id for e in events)


@pytest.mark.parametrize("name", MODELS)
def test_the_explained_score_is_that_of_a_ranking(live, name):
    items = ["i5", "a stranger", "i40"]
    answer = LiveExplainer(live[name].scorer).explain(asked(items, place="hill"))
    logits = (
        live[name].scorer.scores(Question(user_id="household-3", time_ms=LATER_MS, items=items, place="hill")).logits
    )
    np.testing.assert_allclose([item.score for item in answer.items], logits, rtol=1e-5, atol=1e-5)
    assert [item.label for item in answer.items][1] == "a stranger"
    assert answer.served.unknown_candidates == 1


def test_a_stranger_has_scores_and_no_reasons(live):
    answer = LiveExplainer(live["din"].scorer).explain(asked(["i5", "i6"], user_id="nobody"))
    assert (answer.served.state, answer.served.history_length, answer.served.newest_ms) == ("cold", 0, None)
    assert all(np.isfinite(item.score) and not item.reasons for item in answer.items)


def test_what_happens_later_explains_nothing(live):
    explainer, store = LiveExplainer(live["repeat"].scorer), live["repeat"].model.store
    store.append([Event(event_id="late", user_id="late", item_id="i9", time_ms=LATER_MS + 5)])
    (before,) = explainer.explain(asked(["i9"], user_id="late", time_ms=LATER_MS + 5)).items
    (after,) = explainer.explain(asked(["i9"], user_id="late", time_ms=LATER_MS + 6)).items
    assert not before.reasons
    (reason,) = after.reasons
    assert (reason.item_id, reason.count, reason.last_time_ms) == ("i9", 1, LATER_MS + 5)
    assert reason.drop == pytest.approx(after.joint_drop)


def test_a_field_that_is_none_is_refused(live):
    with pytest.raises(RequestError, match="context must be fields of the model"):
        LiveExplainer(live["din"].scorer).explain(asked(["i5"], context={"weather": "wet"}))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), at_once=st.integers(1, 40))
def test_reasons_of_a_sum_are_its_largest_parts(seed, at_once):
    rng = np.random.default_rng(seed)
    past_item, items = rng.integers(0, 8, 20), np.array([3, 5])
    worth = rng.normal(size=(8, 2))  # of one behaviour with an item, for each candidate

    def ask(versions: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        return np.array([worth[past_item[kept]].sum(0)[candidates] for kept in versions])

    logits = ask([np.arange(20)], np.arange(2))[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explaining, "BEHAVIOURS_AT_ONCE", at_once)
        found = explain_by_deletion(ask, past_item, np.arange(20), items, logits, np.zeros((8, 0)))
    for c, why in enumerate(found):
        drops = {i: worth[i, c] * (past_item == i).sum() for i in set(past_item.tolist()) if i >= 2}
        best = sorted((i for i in drops if drops[i] > 1e-4 * max(1, abs(logits[c]))), key=lambda i: -drops[i])[:3]
        assert [carrier.item for carrier in why.carriers] == best
        np.testing.assert_allclose([carrier.drop for carrier in why.carriers], [drops[i] for i in best])
        assert why.joint_drop == pytest.approx(sum(drops[i] for i in best))


def test_groups_that_cancel_each_other_are_not_named_together():
    past_item = np.array([2, 3])

    def ask(versions: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        table = {(): 5.0, (0,): 0.0, (1,): 1.0, (0, 1): 2.0}
        return np.array([[table[tuple(kept.tolist())]] for kept in versions])

    (why,) = explain_by_deletion(ask, past_item, np.array([7, 8]), np.array([2]), np.array([2.0]), np.zeros((4, 0)))
    assert [carrier.item for carrier in why.carriers] == [3]  # without it 2 falls to 0; without both it rises to 5
    assert why.joint_drop == pytest.approx(2.0)
