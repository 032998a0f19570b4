"""Recommending from a bundle over a store: rules hold for every list, and scores are those of a ranking."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tests.serving.recommending.live_bundles import LATER_MS, deployed
from tests.serving.small_bundles import reseal, write_whole

from sostenuto.data.prepared import PreparedData
from sostenuto.schema.errors import BundleError, RequestError
from sostenuto.schema.events import Event
from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.serving.bundle import open_bundle
from sostenuto.serving.deployed import Deployed
from sostenuto.serving.recommending.arranging import Exploration
from sostenuto.serving.recommending.recommender import Recommender, RecommendSettings
from sostenuto.serving.recommending.together import TOGETHER, together_from
from sostenuto.serving.scoring import Question
from sostenuto.serving.service import RecommendAnswer, RecommendRequest
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.lmdb_store import LmdbStore
from sostenuto.serving.warming import warm_up

MODELS = ["din", "sasrec", "muse", "repeat"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_whole(Path(tmp_path_factory.mktemp("whole")) / "prepared")


@pytest.fixture(scope="module")
def live(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Deployed]]:
    folder = Path(tmp_path_factory.mktemp("live"))
    with LmdbStore(folder / "store", RecordLayout.of(data.features.behaviour_fields)) as store:
        warm_up(store, data)
        yield {name: deployed(data, name, folder / name, store) for name in MODELS}


@pytest.fixture(scope="module")
def recommenders(live: dict[str, Deployed]) -> dict[str, Recommender]:
    chosen = RecommendSettings(ranked=40, budgets={"popular": 15, "together": 15, "vectors": 15, "content": 15})
    return {name: Recommender.of(one.scorer, chosen, salt=b"fixed") for name, one in live.items()}


def asked(**changes: Any) -> RecommendRequest:
    return RecommendRequest(**{"request_id": "r", "user_id": "household-3", "time_ms": LATER_MS, "k": 6, **changes})


def ids_of(answer: RecommendAnswer) -> list[str]:
    return [item.item_id for item in answer.items]


def bought_by(data: PreparedData, user_id: str, before_ms: int = LATER_MS) -> set[str]:
    b, user = data.behaviours, data.vocabulary("user").index(user_id)
    rows = [r for r in range(*b.offsets[user : user + 2]) if b.time_ms[r] < before_ms]
    return {data.vocabulary("item")[b.item[r]] for r in rows}


def kind_of(data: PreparedData, item_id: str) -> int:
    ids = data.vocabulary("item")
    return int(data.item_category[ids.index(item_id), 0]) if item_id in ids else 0


def test_the_sources_are_those_that_a_bundle_has_parts_for(recommenders):
    assert list(recommenders["din"].sources) == ["repeat", "popular", "together", "vectors"]
    assert list(recommenders["sasrec"].sources) == ["repeat", "popular", "together", "vectors"]
    assert list(recommenders["muse"].sources) == ["repeat", "popular", "together", "content", "vectors"]
    assert list(recommenders["repeat"].sources) == ["repeat", "popular", "together"]


ITEM = st.one_of(st.integers(2, 59).map("i{}".format), st.sampled_from(["new one", "new two", "?", ""]))


@settings(max_examples=120)
@given(
    name=st.sampled_from(MODELS),
    user=st.integers(0, 42).map("household-{}".format),
    days=st.integers(0, 80),
    k=st.integers(1, 12),
    exclude=st.lists(ITEM, max_size=8),
    must=st.lists(ITEM, max_size=4),
    candidates=st.lists(ITEM, max_size=8),
    cap=st.one_of(st.none(), st.integers(1, 3)),
    already=st.sampled_from(["allow", "exclude", "only"]),
    diversity=st.sampled_from([None, 0.0, 0.4, 1.0]),
    slots=st.sampled_from([None, (2, 3), (1, 5, 9)]),
    sources=st.lists(st.sampled_from(["repeat", "popular", "together", "request"]), unique=True),
)
def test_every_rule_holds_for_every_list(
    live, data, name, user, days, k, exclude, must, candidates, cap, already, diversity, slots, sources
):
    exploration = None if slots is None else Exploration(positions=slots, pool=5)
    recommender = Recommender.of(
        live[name].scorer, RecommendSettings(ranked=25, exploration=exploration), salt=b"fixed"
    )
    time_ms = int(data.behaviours.time_ms.min()) + days * 86_400_000
    request = asked(
        user_id=user,
        time_ms=time_ms,
        k=k,
        exclude=exclude,
        must_include=must,
        candidates=candidates,
        caps={} if cap is None else {"kind": cap},
        already_bought=already,
        diversity=diversity,
        sources=sources,
    )
    bought = bought_by(data, user, time_ms) if user in data.vocabulary("user") else set()
    may = {"allow": lambda i: True, "exclude": lambda i: i not in bought, "only": lambda i: i in bought}[already]
    musts = {i for i in must if i not in exclude and may(i)}
    kinds = Counter(kind_of(data, i) for i in musts if kind_of(data, i) >= FIRST_KNOWN)
    if len(musts) > k or (cap is not None and max(kinds.values(), default=0) > cap):
        with pytest.raises(RequestError, match="must_include must fit"):
            recommender.recommend(request)
        return
    answer = recommender.recommend(request)
    found = ids_of(answer)
    assert len(set(found)) == len(found) <= k
    assert not set(found) & set(exclude)
    assert musts <= set(found)
    assert all(may(i) for i in found)
    assert set(found) <= set(answer.candidates)
    assert answer.num_candidates >= len(answer.candidates)
    if cap is not None:
        shown = Counter(kind_of(data, i) for i in found if kind_of(data, i) >= FIRST_KNOWN)
        assert max(shown.values(), default=0) <= cap
    for item in answer.items:
        assert np.isfinite(item.score)
        assert item.propensity == 1 or item.rule == "explored"
        assert (item.item_id in musts) == (item.rule == "must_include")
        assert item.sources
        if sources:
            assert set(item.sources) <= {*sources, "request", "must_include"}
    assert (answer.policy == "uniform_slots") == any(i.rule == "explored" for i in answer.items)
    if cap is None and len(found) < k:  # nobody else was there
        assert set(found) == set(answer.candidates)
    if not diversity and cap is None and not musts and answer.policy == "deterministic":
        scores = [item.score for item in answer.items]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_rank(recommenders, name):
    recommender = recommenders[name]
    answer = recommender.recommend(asked(k=20, place="hill", with_probabilities=True))
    question = Question(user_id="household-3", time_ms=LATER_MS, items=ids_of(answer), place="hill")
    logits = recommender.scorer.scores(question).logits
    np.testing.assert_allclose([item.score for item in answer.items], logits, rtol=1e-5, atol=1e-5)
    gives = recommender.scorer.model.bundle.entry.gives_probabilities
    for item in answer.items:
        wanted = pytest.approx(1 / (1 + np.exp(-item.score)), abs=1e-9) if gives else None
        assert item.probability == wanted


@pytest.mark.parametrize("name", MODELS)
def test_the_answer_says_who_answered_from_what(recommenders, data, name):
    served = recommenders[name].recommend(asked()).served
    user = data.vocabulary("user").index("household-3")
    start, end = data.behaviours.offsets[user : user + 2]
    assert served.history_length == end - start
    assert served.newest_ms == data.behaviours.time_ms[end - 1]
    assert served.version == recommenders[name].scorer.model.bundle.version
    assert set(served.stage_s) == {"store", "state", "features", "candidates", "score", "rerank"}
    stranger = recommenders[name].recommend(asked(user_id="nobody")).served
    assert (stranger.state, stranger.history_length, stranger.newest_ms) == ("cold", 0, None)


def test_a_stranger_gets_what_is_popular(recommenders):
    answer = recommenders["repeat"].recommend(asked(user_id="nobody", place="hill", k=5))
    assert len(answer.items) == 5
    assert all(item.sources == ("popular",) for item in answer.items)


def test_an_event_changes_the_next_list_and_a_deletion_takes_it_back(data, tmp_path):
    with LmdbStore(tmp_path / "store", RecordLayout.of(data.features.behaviour_fields)) as store:
        warm_up(store, data)
        one = deployed(data, "repeat", tmp_path / "bundle", store)
        recommender = Recommender.of(one.scorer)
        only = asked(user_id="guest", already_bought="only", candidates=["a new thing"])
        assert recommender.recommend(only).items == []
        for n, item_id in enumerate(["i9", "i9", "a new thing"]):
            store.append([Event(event_id=f"e{n}", user_id="guest", item_id=item_id, time_ms=LATER_MS - 10 + n)])
        found = recommender.recommend(only)
        assert ids_of(found) == ["i9", "a new thing"]
        assert found.items[0].sources[0] == "repeat"
        assert ids_of(recommender.recommend(asked(user_id="guest", time_ms=LATER_MS - 9, already_bought="only"))) == [
            "i9"
        ]
        without = recommender.recommend(asked(user_id="guest", already_bought="exclude", candidates=["a new thing"]))
        assert not {"i9", "a new thing"} & set(without.candidates)
        store.delete_user("guest")
        assert recommender.recommend(only).items == []
        cache = recommender.pasts.cache
        cache.forget("guest")
        users = [user for user in store.users() if cache.get(user) is not None]
        assert cache.num_bytes == sum(cache.get(user)[2].nbytes for user in users)


def test_only_some_actions_count_as_buying(tmp_path):
    data = write_whole(tmp_path / "prepared")
    with LmdbStore(tmp_path / "store", RecordLayout.of(data.features.behaviour_fields)) as store:
        one = deployed(data, "repeat", tmp_path / "bundle", store)
        recommender = Recommender.of(one.scorer, RecommendSettings(bought_actions=("buy",)))
        store.append(
            [
                Event(event_id=action, user_id="u", item_id=item_id, time_ms=LATER_MS - 5, action=action)
                for item_id, action in (("i7", "look"), ("i8", "buy"), ("i7", "like"))
            ]
        )
        assert ids_of(recommender.recommend(asked(user_id="u", already_bought="only"))) == ["i8"]
        assert "i7" in recommender.recommend(asked(user_id="u", already_bought="exclude")).candidates


def test_kept_pasts_stay_within_their_memory(live):
    recommender = Recommender.of(live["repeat"].scorer)
    recommender.pasts.cache.most_bytes = 4_000
    for n in range(30):
        recommender.recommend(asked(user_id=f"household-{n}"))
        assert recommender.pasts.cache.num_bytes <= 4_000
    assert 0 < len(recommender.pasts.cache) < 30


@pytest.mark.parametrize("name", ["din", "sasrec"])
def test_what_the_ranker_does_not_score_is_cut_by_the_cheap_stage_but_never_what_was_named(live, name):
    recommender = Recommender.of(live[name].scorer, RecommendSettings(ranked=5))
    named = ["i50", "i51", "i52", "i53", "i54", "i55", "stranger"]
    answer = recommender.recommend(asked(candidates=named, k=12))
    assert set(answer.candidates) == set(named)
    answer = recommender.recommend(asked(candidates=["i50"], k=12))
    assert len(answer.candidates) == 5
    assert "i50" in answer.candidates
    assert answer.num_candidates > 5


def test_a_retriever_proposes_what_its_own_search_ranks_first(recommenders):
    recommender = recommenders["sasrec"]
    answer = recommender.recommend(asked(sources=["vectors"], k=15))
    bundle = recommender.scorer.model.bundle
    ids = [bundle.vocabularies["item"].ids[i] for i in bundle.candidate_items]
    logits = recommender.scorer.scores(Question(user_id="household-3", time_ms=LATER_MS, items=ids)).logits
    assert ids_of(answer) == [ids[n] for n in np.argsort(-logits, kind="stable")[:15]]


def test_lists_are_the_same_for_the_same_request_and_drawn_anew_for_another(live):
    chosen = RecommendSettings(exploration=Exploration(positions=(2,), pool=10))
    recommender = Recommender.of(live["repeat"].scorer, chosen, salt=b"one")
    first = recommender.recommend(asked())
    assert ids_of(recommender.recommend(asked())) == ids_of(first)
    assert ids_of(Recommender.of(live["repeat"].scorer, chosen, salt=b"one").recommend(asked())) == ids_of(first)
    drawn = Counter(ids_of(recommender.recommend(asked(request_id=str(n))))[1] for n in range(600))
    assert len(drawn) == 10
    assert chisquare(list(drawn.values())).pvalue > 1e-3
    assert first.items[1].propensity == pytest.approx(0.1)
    bare = recommender.recommend(asked(explore=False))
    assert bare.policy == "deterministic"
    assert all(item.propensity == 1 and item.rule == "" for item in bare.items)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": ["repeats"]}, "sources must be among .* got 'repeats'.*Did you mean 'repeat'"),
        ({"caps": {"kinds": 2}}, "caps must name category levels .*kind.* got 'kinds'"),
        ({"caps": {"kind": 0}}, "caps.kind must be at least 1, got 0"),
        ({"diversity": 1.5}, "diversity must lie in 0 .. 1, got 1.5"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"context": {"weather": "wet"}}, "context must be fields of the model"),
        ({"must_include": ["i4", "i5", "i6"], "k": 2}, "must_include must fit the list of 2, it has 3"),
    ],
)
def test_what_cannot_be_is_refused_with_value_and_fix(recommenders, changes, said):
    with pytest.raises(RequestError, match=said):
        recommenders["din"].recommend(asked(**changes))


def test_excluded_comes_before_must_include(recommenders):
    answer = recommenders["repeat"].recommend(asked(exclude=["i9"], must_include=["i9", "i10"]))
    assert "i9" not in answer.candidates
    assert "i10" in ids_of(answer)


def test_without_any_candidate_the_list_is_empty(recommenders):
    answer = recommenders["din"].recommend(asked(sources=["request"]))
    assert (list(answer.items), answer.num_candidates, answer.policy) == ([], 0, "deterministic")
    assert answer.served.unknown_candidates == 0


def test_a_source_with_no_budget_is_left_out(live):
    chosen = RecommendSettings(budgets={"popular": 0, "content": 3})
    recommender = Recommender.of(live["muse"].scorer, chosen)
    assert "popular" not in recommender.sources
    answer = recommender.recommend(asked(sources=["content"], k=20))
    assert len(answer.items) == 3


def test_a_bundle_carries_the_table_of_items_that_go_together(live, data, tmp_path):
    table, wanted = live["din"].model.bundle.together, together_from(data)
    assert (table.item == wanted.item).all()
    assert (table.weight == wanted.weight).all()
    assert (table.item > 0).any()


def test_a_bundle_exported_without_the_table_has_no_such_source(live, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(live["repeat"].model.bundle.folder, copy)
    (copy / TOGETHER).unlink()
    reseal(copy, lambda said: said["files"].pop(TOGETHER))
    assert open_bundle(copy).together is None


@pytest.mark.parametrize("wrong", ["shape", "beyond", "negative", "nan", "padding", "missing"])
def test_a_table_that_is_none_is_refused(live, tmp_path, wrong):
    from safetensors.numpy import load_file, save_file

    copy = tmp_path / "bundle"
    shutil.copytree(live["repeat"].model.bundle.folder, copy)
    arrays = {name: array.copy() for name, array in load_file(copy / TOGETHER).items()}
    if wrong == "shape":
        arrays["weight"] = arrays["weight"][:, :-1].copy()
    elif wrong == "nan":
        arrays["weight"][3, 0] = np.nan
    elif wrong == "missing":
        del arrays["item"]
    else:
        arrays["item"][1 if wrong == "padding" else 3, 0] = {"beyond": 60, "negative": -1, "padding": 4}[wrong]
    save_file(arrays, copy / TOGETHER)
    reseal(copy)
    with pytest.raises(BundleError, match=r"together\.safetensors of a bundle must be as export wrote it"):
        open_bundle(copy)


def test_settings_that_cannot_be_are_refused():
    for changes in ({"ranked": 0}, {"diversity": 2.0}, {"budgets": {"repeat": -1}}):
        with pytest.raises(ValueError, match="RecommendSettings"):
            RecommendSettings(**changes)
    assert RecommendSettings(budgets={"content": 7}).budget("content.text") == 7
