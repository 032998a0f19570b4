"""Ranking of the catalogue against brute force over all items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.features.small_prepared import write_small
from tests.training.toy_prepared import write_toy

from sostenuto.baselines.popularity import Popularity, PopularityConfig
from sostenuto.data.prepared import PreparedData, write_arrays
from sostenuto.evaluation import catalogue as module
from sostenuto.evaluation.catalogue import catalogue_ranking, rank_catalogue
from sostenuto.evaluation.full_ranking import full_ranking, ranked_items, ranking_truth
from sostenuto.features.collation import Collator
from sostenuto.features.view import HistoryView
from sostenuto.models.table import build, default_config

KS = (1, 3, 10)


@pytest.fixture
def data(tmp_path) -> PreparedData:
    return write_small(tmp_path / "small")


def retriever(data, *, rounded=None, name="sasrec"):
    """Return a retriever with parameters of size; `rounded` makes equal scores by rounding what it asks for."""
    collator = Collator(data, HistoryView(match=False))
    ranker = build(name, default_config(name), collator.features, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    ranker.eval()
    if rounded is not None:
        query, vectors = ranker.query, ranker.item_vectors
        ranker.query = lambda state, context: (query(state, context) * rounded).round()
        ranker.item_vectors = lambda candidates: (vectors(candidates) * rounded).round()
    return ranker, collator


def scores_one_by_one(ranker, collator, split, rows):
    """Score every item for each request with `score`, (R, I)."""
    items = collator.assembler.items(ranked_items(collator.data))
    table = []
    for row in rows:
        batch = collator.batch(collator.data.requests(split), np.array([row]))
        with torch.no_grad():
            state = ranker.encode(batch.histories)
            table.append((ranker.query(state, batch.context) @ ranker.item_vectors(items).T)[0].double().numpy())
    return np.array(table)


def expected_over_orders(scores, positive, extra, generator, draws=400):
    """Measure one request as a mean over random orders of equal scores; `extra` true items cannot be found."""
    found = {f"{kind}@{k}": [] for kind in ("recall", "ndcg", "hr") for k in KS} | {"mrr": []}
    total = int(positive.sum()) + extra
    for _ in range(draws):
        order = np.lexsort((generator.random(len(scores)), -scores))
        hits = np.flatnonzero(positive[order])
        hits = hits[np.isfinite(scores[order][hits])]
        found["mrr"].append(1 / (hits[0] + 1) if len(hits) else 0.0)
        for k in KS:
            first = hits[hits < k]
            found[f"recall@{k}"].append(len(first) / total)
            found[f"hr@{k}"].append(float(len(first) > 0))
            ideal = (1 / np.log2(np.arange(min(total, k)) + 2)).sum()
            found[f"ndcg@{k}"].append((1 / np.log2(first + 2)).sum() / ideal)
    return {name: float(np.mean(values)) for name, values in found.items()}


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("rounded", [None, 1.0], ids=["distinct", "ties"])
def test_every_measure_equals_brute_force(data, rounded, exclude_seen):
    ranker, collator = retriever(data, rounded=rounded)
    answer = catalogue_ranking(ranker, collator, "test", ks=KS, draws=2, exclude_seen=exclude_seen)
    rows, truth = ranking_truth(data, "test", 10**6, 0)
    items, requests = ranked_items(data), data.requests("test")
    scores = scores_one_by_one(ranker, collator, "test", rows)
    assert (rounded is None) == all(len(set(row)) == len(row) for row in scores.tolist())
    generator, each = np.random.default_rng(0), []
    for row, true_items, score in zip(rows, truth, scores, strict=True):
        if exclude_seen:
            low = int(data.behaviours.offsets[requests.user[row]])
            met = data.behaviours.item[low : low + int(requests.prefix[row])]
            score[np.isin(items, met)] = -np.inf
        extra = len(np.setdiff1d(true_items, items))
        each.append(expected_over_orders(score, np.isin(items, true_items), extra, generator))
    for name, value in answer["metrics"].items():
        if not name.startswith("coverage"):
            wanted = np.mean([one[name] for one in each])
            assert value["value"] == pytest.approx(wanted, abs=1e-6 if rounded is None else 0.02), name


def test_a_ranker_that_cannot_search_is_ranked_alike(data):
    """The way item by item gives what the full ranking of all scores gives, where every true item is ranked."""
    write_arrays(data.folder / "pools", {"candidate_items": np.arange(2, data.features.num_items)})
    collator = Collator(data, HistoryView())
    ranker = Popularity(PopularityConfig(), collator.features)
    ours = catalogue_ranking(ranker, collator, "test", ks=(10, 20), draws=2)["metrics"]
    slow = full_ranking(ranker, collator, "test", requests=10**6, ks=(10, 20), draws=2)["metrics"]
    for name in ("recall@10", "ndcg@10", "hr@10", "recall@20", "ndcg@20"):
        assert ours[name]["value"] == pytest.approx(slow[name]["value"], abs=1e-9), name


def test_how_many_requests_go_at_once_changes_nothing(data, monkeypatch):
    ranker, collator = retriever(data, name="hstu")
    whole = catalogue_ranking(ranker, collator, "test", draws=20)
    monkeypatch.setattr(module, "REQUESTS_AT_ONCE", 3)
    monkeypatch.setattr(module, "ITEMS_AT_ONCE", 4)
    again = catalogue_ranking(ranker, collator, "test", draws=20)
    for name, value in whole["metrics"].items():
        assert again["metrics"][name]["value"] == pytest.approx(value["value"], abs=1e-12), name


def test_a_true_item_outside_of_the_catalogue_is_a_miss(data):
    ranker, collator = retriever(data)
    write_arrays(
        data.folder / "pools",
        {
            "candidate_items": np.arange(2, 6),
            "ranking.rows": np.array([0, 1]),
            "ranking.offsets": np.array([0, 1, 2]),
            "ranking.item": np.array([3, 35]),
        },
    )
    answer = catalogue_ranking(ranker, collator, "test", ks=(4,), draws=2)
    assert answer["requests"] == 2
    assert answer["candidates"] == 4
    assert answer["metrics"]["recall@4"]["value"] == 0.5  # the whole catalogue is shown, one of two is in it
    assert answer["metrics"]["mrr"]["value"] <= 0.5


def test_a_seen_item_is_not_shown_and_counts_as_a_miss(data):
    ranker, collator = retriever(data)
    standing = rank_catalogue(ranker, collator, "test", exclude_seen=True, most=10)
    requests, behaviours = data.requests("test"), data.behaviours
    for row in np.unique(standing.top_request):
        low = int(behaviours.offsets[requests.user[row]])
        met = behaviours.item[low : low + int(requests.prefix[row])]
        shown = standing.top_item[standing.top_request == row]
        assert not set(shown.tolist()) & set(met.tolist())
    terms = standing.terms("recall", 10).terms
    assert terms.denominator.sum() == len(standing.request)  # requests without a place for their truth still count


def test_coverage_is_of_the_first_places_of_all_requests(data):
    ranker, collator = retriever(data)
    answer = catalogue_ranking(ranker, collator, "test", ks=(2,), draws=2)
    rows, _ = ranking_truth(data, "test", 10**6, 0)
    scores = scores_one_by_one(ranker, collator, "test", rows)
    shown = np.unique(np.argsort(-scores, 1)[:, :2])
    assert answer["metrics"]["coverage@2"]["value"] == pytest.approx(len(shown) / len(ranked_items(data)))


def test_intervals_hold_the_value_and_a_module_keeps_its_mode(data):
    ranker, collator = retriever(data)
    ranker.train()
    answer = catalogue_ranking(ranker, collator, "valid", draws=200)
    assert ranker.training
    for name, value in answer["metrics"].items():
        if "low" in value:
            assert value["low"] <= value["value"] <= value["high"], name


def test_a_larger_k_than_was_kept_is_refused(data):
    standing = rank_catalogue(*retriever(data), "test", most=5)
    with pytest.raises(Exception, match="at most 5"):
        standing.terms("ndcg", 10)


def test_long_histories_and_large_catalogues_are_ranked_in_pieces(monkeypatch, tmp_path):
    data = write_toy(tmp_path / "toy")
    ranker, collator = retriever(data)
    whole = rank_catalogue(ranker, collator, "valid")
    seen = []
    encode = ranker.encode
    ranker.encode = lambda histories: seen.append(histories.lengths.tolist()) or encode(histories)
    monkeypatch.setattr(module, "SCORED_EVENTS", 40)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 3 * len(whole.items))
    pieces = rank_catalogue(ranker, collator, "valid")
    assert [len(lengths) for lengths in seen] != [len(whole.request)]
    assert all(len(lengths) <= 3 and (sum(lengths) <= 40 or len(lengths) == 1) for lengths in seen)
    assert np.allclose(whole.reciprocal, pieces.reciprocal)
    assert np.array_equal(whole.top_item, pieces.top_item)
