"""Ranking all items: every item once, the truth is the basket, pieces change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from tests.features.small_prepared import NUM_ITEMS, write_small

from sostenuto.baselines.repeat import Repeat, RepeatConfig
from sostenuto.data.prepared import PreparedData, write_arrays
from sostenuto.evaluation import full_ranking as module
from sostenuto.evaluation.full_ranking import full_ranking, ranked_items, ranking_truth, score_all_items
from sostenuto.features.collation import Collator
from sostenuto.features.view import HistoryView


@pytest.fixture
def data(tmp_path) -> PreparedData:
    return write_small(tmp_path / "small")


def ranker_of(data: PreparedData) -> tuple[Repeat, Collator]:
    collator = Collator(data, HistoryView())
    return Repeat(RepeatConfig(), collator.features), collator


def test_without_a_pool_every_item_with_a_row_is_ranked_once(data):
    scored = score_all_items(*ranker_of(data), "test", requests=5, seed=0)
    for request in np.unique(scored.request):
        items = scored.item[scored.request == request]
        assert len(np.unique(items)) == len(items)
        assert set(ranked_items(data)) <= set(items.tolist())


def test_the_truth_is_what_the_split_labels_one(data):
    requests = data.requests("test")
    rows, truth = ranking_truth(data, "test", 100, 0)
    scored = score_all_items(*ranker_of(data), "test", requests=100, seed=0)
    for row, items in zip(rows, truth, strict=True):
        a, b = requests.offsets[row], requests.offsets[row + 1]
        assert set(items) == set(requests.item[a:b][requests.label[a:b] > 0])
        mine = scored.request == row
        assert set(scored.item[mine & (scored.label > 0)]) == set(items)


def test_the_protocol_s_own_requests_and_truth_are_used_on_test(data):
    write_arrays(
        data.folder / "pools",
        {
            "candidate_items": np.arange(2, 20),
            "ranking.rows": np.array([3, 7]),
            "ranking.offsets": np.array([0, 2, 3]),
            "ranking.item": np.array([4, 35, 9]),
        },
    )
    scored = score_all_items(*ranker_of(data), "test", requests=200, seed=0)
    assert set(scored.request) == {3, 7}
    assert set(scored.item[(scored.request == 3) & (scored.label > 0)]) == {4, 35}
    assert set(scored.item[scored.request == 3]) == {*range(2, 20), 35}  # a true item outside the pool is added
    assert set(scored.item[scored.request == 7]) == set(range(2, 20))
    assert len(ranking_truth(data, "test", 1, 0)[0]) == 1


def test_the_size_of_the_pieces_changes_no_number(data, monkeypatch):
    whole = full_ranking(*ranker_of(data), "test", requests=6, draws=50)
    monkeypatch.setattr(module, "SCORED_AT_ONCE", 7)
    assert full_ranking(*ranker_of(data), "test", requests=6, draws=50) == whole


def test_scores_equal_those_of_the_same_candidates_in_a_request(data):
    """A ranker that reads no candidate field of the list gives an item one score, sampled or among all."""
    ranker, collator = ranker_of(data)
    scored = score_all_items(ranker, collator, "test", requests=100, seed=0)
    requests = data.requests("test")
    row = int(scored.request[0])
    batch = collator.batch(requests, np.array([row]))
    logits = ranker.score(ranker.encode(batch.histories), batch.candidates, batch.context).logits.numpy()
    mine = {int(i): float(s) for i, s, r in zip(scored.item, scored.logit, scored.request, strict=True) if r == row}
    for item, logit in zip(batch.candidates.item.tolist(), logits.tolist(), strict=True):
        if item in mine:
            assert mine[item] == pytest.approx(logit, abs=1e-5)


def test_the_answer_names_its_sizes(data):
    answer = full_ranking(*ranker_of(data), "valid", requests=4, draws=50, ks=(5,))
    assert answer["requests"] == 4
    assert answer["candidates"] == len(ranked_items(data)) < NUM_ITEMS
    assert set(answer["metrics"]) == {"gauc_request", "recall@5", "ndcg@5", "hr@5"}
