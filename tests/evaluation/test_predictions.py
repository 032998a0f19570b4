"""Predictions: what `predict` reads off a batch, what the log adds, and files."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from tests.evaluation.rows import make_predictions
from tests.features.small_prepared import write_small
from torch import nn

from sostenuto.evaluation.evaluate import evaluate
from sostenuto.evaluation.predictions import (
    Predictions,
    concatenate,
    count_in_history,
    load_predictions,
    predict,
    training_counts,
    with_log_facts,
)
from sostenuto.features.collation import Collator
from sostenuto.features.cooccurrence import training_events
from sostenuto.features.view import HistoryView
from sostenuto.schema.errors import DataError, RunError
from sostenuto.schema.histories import RankerOutput


class LastItem(nn.Module):
    """Scores by whether the candidate is the user's newest item; drops out in training mode."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)
        self.modes = []

    def encode(self, histories):
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        newest = torch.full((histories.num_rows,), -1)
        has = histories.lengths > 0
        newest[has] = histories.item[histories.offsets[1:][has] - 1]
        return newest

    def score(self, state, candidates, context):
        same = (state[candidates.row] == candidates.item).float()
        return RankerOutput(logits=self.dropout(2 * same - 1))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("prepared"))


def batches(prepared, view, *, size=4):
    collator, requests = Collator(prepared, view), prepared.requests("test")
    for start in range(0, len(requests), size):
        yield collator.batch(requests, np.arange(start, min(start + size, len(requests))))


def test_predict_runs_in_evaluation_mode_without_gradients_and_restores_training(prepared):
    ranker = LastItem().train()
    predict(ranker, batches(prepared, HistoryView()))
    assert set(ranker.modes) == {(False, True)}
    assert ranker.training
    ranker.eval()
    predict(ranker, batches(prepared, HistoryView()))
    assert not ranker.training


def test_predict_restores_training_after_an_error(prepared):
    ranker = LastItem().train()
    ranker.score = None
    with pytest.raises(TypeError):
        predict(ranker, batches(prepared, HistoryView()))
    assert ranker.training


def test_predictions_do_not_depend_on_batching(prepared):
    one = predict(LastItem(), batches(prepared, HistoryView(), size=1))
    all_at_once = predict(LastItem(), batches(prepared, HistoryView(), size=100))
    for f in fields(Predictions):
        assert np.array_equal(getattr(one, f.name), getattr(all_at_once, f.name)), f.name


def slow_facts(prepared, p):
    behaviours, requests = prepared.behaviours, prepared.requests("test")
    for row in range(len(p)):
        request = p.request[row]
        start = behaviours.offsets[requests.user[request]]
        items = behaviours.item[start : start + requests.prefix[request]]
        yield len(items), int((items == p.item[row]).sum())


def test_facts_of_the_log_equal_a_slow_loop_whatever_the_view(prepared):
    p = predict(LastItem(), batches(prepared, HistoryView(recent=3)))
    assert p.seen_length.max() < 10  # the newest 3, with the rest of a moment that the cut would split
    whole = with_log_facts(p, prepared, "test")
    assert [(int(a), int(b)) for a, b in zip(whole.history_length, whole.prior_count, strict=True)] == list(
        slow_facts(prepared, p)
    )
    full = predict(LastItem(), batches(prepared, HistoryView()), item_counts=training_counts(prepared))
    for name in ("history_length", "prior_count", "item_count", "is_new_item"):
        assert np.array_equal(getattr(whole, name), getattr(full, name)), name
    assert whole.prior_count.any()


def test_facts_survive_another_row_order_and_a_subset_of_requests(prepared):
    p = predict(LastItem(), batches(prepared, HistoryView()))
    order = np.random.default_rng(0).permutation(len(p))[:40]
    assert np.array_equal(with_log_facts(p.take(order), prepared, "test").prior_count, p.prior_count[order])


def test_training_counts_use_no_event_that_training_could_not_know(prepared):
    counts = training_counts(prepared)
    b = prepared.behaviours
    mask = training_events(prepared)
    owner = np.repeat(np.arange(len(b.offsets) - 1), np.diff(b.offsets))
    for requests in (prepared.requests(s) for s in ("valid", "test")):
        for user, time in zip(requests.user, requests.time_ms, strict=True):
            assert not mask[(owner == user) & (np.asarray(b.time_ms) >= time)].any()
    assert counts.sum() == mask.sum()
    assert len(counts) == prepared.features.num_items


def test_counts_in_history_of_nothing_are_nothing():
    none = np.zeros(0, int)
    assert count_in_history(none, none, none, none).shape == (0,)
    assert count_in_history(np.array([3]), np.array([0]), none, none).tolist() == [0]


def test_saved_predictions_come_back_equal_and_evaluate_alike(tmp_path):
    p = make_predictions()
    p.save(tmp_path / "predictions" / "test.npz")
    back = load_predictions(tmp_path / "predictions" / "test.npz")
    for f in fields(Predictions):
        assert getattr(back, f.name).dtype == getattr(p, f.name).dtype
        assert np.array_equal(getattr(back, f.name), getattr(p, f.name))
    assert evaluate(back, lists=["a", "b"], draws=20) == evaluate(p, lists=["a", "b"], draws=20)
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["test.npz"]


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(RunError, match="sostenuto evaluate"):
        load_predictions(tmp_path / "none.npz")
    np.savez(tmp_path / "foreign.npz", request=np.zeros(2))
    with pytest.raises(RunError, match="must hold"):
        load_predictions(tmp_path / "foreign.npz")


def test_columns_of_unequal_length_are_refused():
    p = make_predictions()
    columns = {f.name: getattr(p, f.name) for f in fields(Predictions)}
    with pytest.raises(DataError, match="logit"):
        Predictions(**(columns | {"logit": p.logit[:-1]}))


def test_joining_nothing_gives_no_rows():
    assert len(concatenate([])) == 0
