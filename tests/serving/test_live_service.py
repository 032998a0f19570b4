"""The service in one process and in two: traffic, users who come and go, and what it answers."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving.small_bundles import exported, trained_on, write_whole

from sostenuto.data.prepared import PreparedData
from sostenuto.schema.errors import Conflict, NotFound, NotReady, RequestError, StoreGone
from sostenuto.schema.events import Event
from sostenuto.serving.bundle import open_bundle
from sostenuto.serving.deployed import Deployed
from sostenuto.serving.exporting import export_bundle
from sostenuto.serving.live_service import LiveService, ServiceSettings, share_of
from sostenuto.serving.popularity import Followed
from sostenuto.serving.service import ExplainRequest, ItemRecord, RankRequest, RecommendRequest, Traffic
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.stores.store import CompactionPolicy
from sostenuto.serving.warming import warm_up

NOW_MS = 1_506_900_000_000
USER = "household-7"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_whole(Path(tmp_path_factory.mktemp("whole")) / "prepared")


@pytest.fixture(scope="module")
def bundles(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and one of them trained otherwise."""
    folder = Path(tmp_path_factory.mktemp("bundles"))
    exported(data, "sdim", folder / "sdim")
    exported(data, "repeat", folder / "repeat")
    export_bundle(trained_on(data, "sdim", seed=2), data, folder / "sdim-again")
    return folder


@pytest.fixture(scope="module")
def filled(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("store")) / "store"
    with open_store(folder, RecordLayout.of(data.features.behaviour_fields)) as store:
        warm_up(store, data)
    return folder


@pytest.fixture
def service(data: PreparedData, bundles: Path, filled: Path, tmp_path: Path) -> Iterator[LiveService]:
    shutil.copytree(filled, tmp_path / "store")
    settings = ServiceSettings(bundles=bundles, control=tmp_path / "control", follow_every_s=0.0)
    made = LiveService(open_store(tmp_path / "store"), settings)
    yield made
    made.close()


def serving(service: LiveService, *names: str) -> list[str]:
    versions = [service.load_model(name).version for name in names]
    service.set_traffic(Traffic(main=versions[0]))
    return versions


def asked(data: PreparedData, **changes: Any) -> RankRequest:
    items = data.vocabulary("item")[2:12]
    return dataclasses.replace(
        RankRequest(request_id="r", user_id=USER, time_ms=NOW_MS, candidates=items, place="hill"), **changes
    )


def bought(data: PreparedData, n: int, *, user: str = USER, item: int = 5, at: int = NOW_MS - 5_000) -> Event:
    fields = {f.name: 1.0 if f.kind == "numeric" else "a" for f in data.features.behaviour_fields}
    return Event(
        event_id=f"e{n}", user_id=user, item_id=data.vocabulary("item")[item], time_ms=at, action="", fields=fields
    )


def test_without_a_model_nothing_is_ranked(service, data):
    assert not service.readiness().ready
    with pytest.raises(NotReady):
        service.rank(asked(data))


def test_an_event_changes_the_next_ranking_and_a_deletion_takes_it_back(service, data):
    serving(service, "repeat")
    service.delete_user(USER)
    cold = service.rank(asked(data))
    assert cold.served.state == "cold"
    assert cold.served.history_length == 0
    receipts = service.append([bought(data, n) for n in range(3)] + [bought(data, 2)])
    assert [receipt.outcome for receipt in receipts] == ["new", "new", "new", "duplicate"]
    warm = service.rank(asked(data))
    assert warm.served.history_length == 3
    assert warm.order[0] == 3  # item 5 stands there
    assert warm.scores != cold.scores
    gone = service.delete_user(USER)
    assert gone.existed
    assert gone.events == 3
    again = service.rank(asked(data))
    assert again.served.state == "cold"
    assert again.scores == cold.scores  # her events are in no popularity either
    assert again.order == cold.order
    assert service.timeline(USER, limit=10) is None
    assert list(service.export_user(USER)) == []


def caches(service: LiveService, version: str) -> list[Any]:
    deployed = service._deployed[version]
    return [deployed.states.cache, deployed.recommender.pasts.cache]


def test_a_deleted_user_leaves_the_memory_of_all_models_and_processes(service, data, monkeypatch):
    versions = serving(service, "sdim", "sdim-again")
    other = "household-9"

    def ask() -> None:
        for version in versions:
            for user in (USER, other):
                service.rank(asked(data, user_id=user, model=version))
                service.recommend(RecommendRequest(request_id="r", user_id=user, time_ms=NOW_MS, k=3, model=version))

    ask()
    with monkeypatch.context() as alone:  # the stream may come later
        alone.setattr(service._popularity, "follow", Followed)
        assert all(cache.get(USER) is not None for version in versions for cache in caches(service, version))
        service.delete_user(USER)
        assert all(cache.get(USER) is None for version in versions for cache in caches(service, version))
        assert all(cache.get(other) is not None for version in versions for cache in caches(service, version))
    ask()
    service.store.delete_user(other)  # as another process would
    service._follow_store()
    assert all(cache.get(other) is None for version in versions for cache in caches(service, version))


def test_when_the_stream_no_longer_tells_who_was_deleted_all_are_let_go(service, data):
    (version,) = serving(service, "sdim")
    service.rank(asked(data))
    (states, _) = caches(service, version)
    assert len(states)
    service._deployed[version].forget(Followed(changes=1, anew=True))
    assert (len(states), states.num_bytes) == (0, 0)


def test_an_unloaded_model_leaves_no_states_and_holds_no_changes_back(service, data):
    main, other = serving(service, "sdim", "sdim-again")
    service.rank(asked(data, model=other))
    until = time.monotonic() + 60
    while service.store.cursor(f"states-{other}") < service.store.last_sequence():  # the encoder has caught up
        assert time.monotonic() < until
        time.sleep(0.05)
    service.unload_model(other)
    assert service.store.state(other, USER) is None
    assert f"states-{other}" not in service.store.stats().cursors
    assert f"states-{main}" in service.store.stats().cursors


def test_a_ranking_at_a_moment_sees_nothing_of_it_or_after_it(service, data):
    serving(service, "sdim")
    before = service.rank(asked(data))
    service.append([bought(data, 1, at=NOW_MS), bought(data, 2, at=NOW_MS + 5)])
    after = service.rank(asked(data))
    np.testing.assert_allclose(after.scores, before.scores, rtol=1e-6)
    assert after.order == before.order
    assert service.rank(asked(data, time_ms=NOW_MS + 1)).served.history_length == before.served.history_length + 1


def test_unknown_users_items_and_places_are_ranked(service, data):
    serving(service, "sdim")
    answer = service.rank(asked(data, user_id="nobody", candidates=["new thing", "item-nowhere"], place="moon"))
    assert sorted(answer.order) == [0, 1]
    assert np.isfinite(answer.scores).all()
    assert answer.served.unknown_candidates == 2
    assert service.rank(asked(data, candidates=["", "x" * 600])).served.unknown_candidates == 2


def test_equal_scores_keep_the_order_of_the_request(service, data):
    serving(service, "repeat")
    assert list(service.rank(asked(data, candidates=["x", "y", "z"])).order) == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"candidate_fields": {"colour": ["red"] * 10}}, "colour"),
        ({"context": {"weather": "wet"}}, "weather"),
        ({"candidate_fields": {"price": ["cheap"] * 10}}, "price"),
    ],
)
def test_a_field_that_is_none_is_named(service, data, changes, says):
    serving(service, "sdim")
    with pytest.raises(RequestError, match=says):
        service.rank(asked(data, **changes))


def test_a_canary_gets_its_share_of_users_and_keeps_them(service, data):
    main, canary = serving(service, "sdim", "sdim-again")
    assert main != canary
    service.set_traffic(Traffic(main=main, canary=canary, canary_share=0.25))
    users = [f"user-{n}" for n in range(400)]
    answered = {user: service.rank(asked(data, user_id=user)).served for user in users}
    assert {served.version for served in answered.values()} == {main, canary}
    share = np.mean([served.arm == "canary" for served in answered.values()])
    assert abs(share - 0.25) < 0.06
    assert all((share_of(user) < 0.25) == (answered[user].arm == "canary") for user in users)
    assert service.rank(asked(data, model=canary)).served.arm == "forced"


def test_traffic_can_be_rolled_back_and_models_unloaded(service, data):
    first, second = serving(service, "sdim", "repeat")
    with pytest.raises(Conflict):
        service.roll_back()
    service.set_traffic(Traffic(main=second))
    assert service.rank(asked(data)).served.version == second
    with pytest.raises(Conflict):
        service.unload_model(first)  # a roll back would need it
    assert service.roll_back().traffic == Traffic(main=first)
    assert service.rank(asked(data)).served.version == first
    service.set_traffic(Traffic(main=first))
    service.unload_model(second)
    with pytest.raises(NotFound):
        service.rank(asked(data, model=second))
    with pytest.raises(NotFound):
        service.load_model("../sdim")
    assert {one.bundle: one.loaded for one in service.models().models} == {
        "sdim": True,
        "repeat": False,
        "sdim-again": False,
    }


def test_pages_of_a_timeline_are_the_whole_history_backwards(service, data):
    whole = list(service.export_user(USER))
    assert whole
    seen, before = [], None
    while True:
        page = service.timeline(USER, limit=4, before=before)
        assert page is not None
        assert page.count == len(whole)
        seen += page.events
        if (before := page.older) is None:
            break
    assert seen == whole[::-1]


def test_items_come_back_as_they_were_told(service):
    record = ItemRecord(item_id="new", categories=("food", "tea"), fields={"brand": "leaf", "weight": 2.5})
    service.put_items([record])
    found = service.items(["new", "other"])
    assert found[0] is not None
    assert (list(found[0].categories), dict(found[0].fields)) == (["food", "tea"], {"brand": "leaf", "weight": 2.5})
    assert found[1] is None


def test_states_of_the_encoder_are_found_by_another_process_of_the_service(service, data):
    version = serving(service, "sdim")[0]
    until_encoded(service, version)
    assert service.store.state(version, USER) is not None
    assert service.rank(asked(data)).served.state == "cached"


def until_encoded(service: LiveService, version: str) -> None:
    until = time.monotonic() + 120
    while service._deployed[version].encoder.lag:
        assert time.monotonic() < until
        time.sleep(0.02)


def told(service: LiveService) -> dict[str, float]:
    return {reading.name: reading.value for reading in service.readings()}


def test_lag_is_that_of_the_encoder_wherever_it_runs(data, bundles, filled, tmp_path):
    """Another process encodes: here one that is told to, and one that must see how far it is."""
    shutil.copytree(filled, tmp_path / "store")
    settings = ServiceSettings(bundles=bundles, control=tmp_path / "control", encode=False)
    with contextlib.closing(LiveService(open_store(tmp_path / "store"), settings)) as service:
        version = serving(service, "sdim")[0]
        events = service.store.last_sequence()
        assert told(service)["encoder_lag_events"] == events
        time.sleep(0.05)
        assert told(service)["encoder_lag_seconds"] >= 0.05
        encoder = Deployed.of(open_bundle(bundles / "sdim"), service.store).encoder
        while encoder.run_once():
            pass
        assert service._deployed[version].encoder.lag == events  # what it knows of itself is not the truth
        assert (told(service)["encoder_lag_events"], told(service)["encoder_lag_seconds"]) == (0, 0.0)


def test_a_process_that_a_compaction_overtakes_counts_anew(service, data):
    version = serving(service, "repeat")[0]
    until_encoded(service, version)
    deployed, events = service._deployed[version], service.store.last_sequence()
    expected = service.rank(asked(data))
    assert len(deployed.states.cache)
    counted = service._popularity._counted
    assert counted is not None
    # as a process that was held up is, while another one runs the encoder
    service._popularity._counted = dataclasses.replace(counted, sequence=0)
    assert service.store.compact(CompactionPolicy(), now_ms=NOW_MS).changes > 0
    again = service.rank(asked(data))
    assert deployed.model.followed == events
    assert (again.order, again.scores) == (expected.order, expected.scores)
    service.append([bought(data, 1)])
    assert service.rank(asked(data)).served.history_length == expected.served.history_length + 1
    assert told(service)["popularity_lag_events"] == 0


def test_a_model_that_was_unloaded_keeps_no_stream(service):
    first, second, third = serving(service, "sdim", "repeat", "sdim-again")
    for version in (first, second, third):
        until_encoded(service, version)
    service.unload_model(third)
    states = {name for name in service.store.stats().cursors if name.startswith("states-")}
    assert states == {f"states-{first}", f"states-{second}"}


def test_a_store_that_is_gone_is_said_and_hides_nothing_else(service, monkeypatch):
    serving(service, "repeat")
    assert told(service)["store_gone"] == 0
    assert told(service)["store_bytes"] > 0

    def gone(*_: Any) -> Any:
        raise StoreGone("the server of the store does not answer")

    monkeypatch.setattr(service.store, "stats", gone)
    found = told(service)
    assert found["store_gone"] == 1
    assert "state_cache_bytes" in found
    assert "encoder_lag_events" not in found


def _other(folder: Path, bundles: Path, answers: Any, orders: Any) -> None:
    service = LiveService(open_store(folder / "store"), ServiceSettings(bundles=bundles, control=folder / "control"))
    answers.put("ready")
    orders.get()
    models = service.models()
    answers.put((models.traffic, sorted(one.version for one in models.models if one.loaded)))
    orders.get()
    service.close()


def test_what_is_set_in_one_process_holds_in_the_others(service, bundles, tmp_path):
    context = multiprocessing.get_context("spawn")
    answers, orders = context.Queue(), context.Queue()
    other = context.Process(target=_other, args=(tmp_path, bundles, answers, orders))
    other.start()
    assert answers.get(timeout=60) == "ready"
    versions = serving(service, "sdim", "repeat")
    orders.put("say")
    assert answers.get(timeout=60) == (Traffic(main=versions[0]), sorted(versions))
    orders.put("end")
    other.join(60)
    assert other.exitcode == 0


def test_a_list_and_its_reasons_come_from_what_the_user_did(service, data):
    serving(service, "sdim")
    answer = service.recommend(RecommendRequest(request_id="r", user_id=USER, time_ms=NOW_MS, k=5, place="hill"))
    assert len(answer.items) == 5
    assert {"repeat", "popular"} & {source for item in answer.items for source in item.sources}
    shown = [item.item_id for item in answer.items]
    ranked = service.rank(asked(data, candidates=shown))
    np.testing.assert_allclose(
        [ranked.scores[list(ranked.order).index(n)] for n in range(5)], [item.score for item in answer.items], rtol=1e-5
    )
    why = service.explain(ExplainRequest(request_id="r", user_id=USER, time_ms=NOW_MS, items=shown, place="hill"))
    np.testing.assert_allclose([one.score for one in why.items], [item.score for item in answer.items], rtol=1e-5)
    assert any(one.reasons for one in why.items)


def test_what_is_told_of_a_new_item_enters_its_score(service, data):
    serving(service, "sdim")
    request = asked(data, candidates=["brand new", data.vocabulary("item")[6]])
    before = service.rank(request)
    level = data.features.categories[-1].name
    service.put_items([ItemRecord(item_id="brand new", categories=(data.vocabulary(level)[3],))])
    after = service.rank(request)
    score = [dict(zip(answer.order, answer.scores, strict=True)) for answer in (before, after)]
    assert score[0][0] != score[1][0]
    assert score[0][1] == pytest.approx(score[1][1], rel=1e-6)
    model = next(iter(service._deployed.values())).model
    told = model.about(request.candidates, model.item_indices(request.candidates))
    assert told.category[:, -1].tolist() == [3, data.item_category[6, -1]]
    why = service.explain(
        ExplainRequest(request_id="r", user_id=USER, time_ms=NOW_MS, items=request.candidates, place="hill")
    )
    np.testing.assert_allclose([one.score for one in why.items], [score[1][0], score[1][1]], rtol=1e-5)
    with pytest.raises(RequestError, match="colour"):
        service.put_items([ItemRecord(item_id="brand new", fields={"colour": "red"})])


def test_a_shadow_scores_what_was_answered_and_is_only_compared(service, data):
    main, other = serving(service, "sdim", "sdim-again")
    plain = service.rank(asked(data))
    service.set_traffic(Traffic(main=main, shadow=other))
    for _ in range(3):
        answer = service.rank(asked(data))
        assert answer.served.version == main
        assert answer.order == plain.order
    service._shadow.wait()
    compared = told(service)
    assert (compared["shadow_requests"], compared["shadow_requests_failed"]) == (3, 0)
    theirs = service.rank(asked(data, model=other))
    score = dict(zip(theirs.order, theirs.scores, strict=True))
    difference = np.mean([abs(s - score[n]) for n, s in zip(plain.order, plain.scores, strict=True)])
    assert compared["shadow_logit_difference"] == pytest.approx(difference, rel=1e-4)
    service.set_traffic(Traffic(main=main, shadow=main))
    service.rank(asked(data))
    service._shadow.wait()
    compared = told(service)
    assert (compared["shadow_requests"], compared["shadow_top10_overlap"]) == (1, 1.0)


def test_threads_that_apply_at_once_do_not_meet(service):
    serving(service, "repeat")
    failed = []

    def apply() -> None:
        try:
            for _ in range(30):
                service.control.change(lambda wanted: wanted)
                service.apply()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=apply) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert service.readiness().ready
    assert service.control.wait(service.control.wanted().generation, at_most_s=10) == ""


def test_a_stored_state_that_cannot_be_read_is_made_anew(service, data):
    version = serving(service, "sdim")[0]
    expected = service.rank(asked(data))
    head = service.store.head(USER)
    assert service.store.put_state(
        version, USER, revision=head.revision, newest_ms=head.last_ms, blob=b"of another version"
    )
    service._deployed[version].states.cache.forget(USER)
    again = service.rank(asked(data))
    assert again.served.state == "encoded"
    np.testing.assert_allclose(again.scores, expected.scores, rtol=1e-5)
