"""Batches hold exactly what was strictly before the request, whatever else is in the log."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sostenuto.data.prepared import PreparedData
from sostenuto.features.collation import Collator
from sostenuto.features.loading import RequestLoader, sample_rows
from sostenuto.features.view import HistoryView
from sostenuto.schema.errors import SpecError


def test_a_history_is_what_came_strictly_before(small: PreparedData) -> None:
    requests = small.requests("train")
    batch = Collator(small, HistoryView()).batch(requests, np.arange(len(requests)))
    b = small.behaviours
    for r in range(len(requests)):
        a, z = batch.histories.offsets[r : r + 2].tolist()
        user, moment = int(requests.user[r]), int(requests.time_ms[r])
        own = slice(int(b.offsets[user]), int(b.offsets[user + 1]))
        before = b.time_ms[own] < moment
        np.testing.assert_array_equal(batch.histories.item[a:z].numpy(), b.item[own][before])
        assert (batch.histories.time_ms[a:z] < moment).all()


def test_recent_truncates_history_and_match_alike(small: PreparedData) -> None:
    requests = small.requests("train")
    rows = np.arange(len(requests))
    whole = Collator(small, HistoryView()).batch(requests, rows)
    recent = Collator(small, HistoryView(recent=3)).batch(requests, rows)
    for r in rows:
        a, z = whole.histories.offsets[r : r + 2].tolist()
        times = whole.histories.time_ms[a:z].tolist()
        kept = [t for t in times if len(times) <= 3 or t >= times[-3]]  # a moment is never split
        b, y = recent.histories.offsets[r : r + 2].tolist()
        assert recent.histories.time_ms[b:y].tolist() == kept
    names = Collator(small, HistoryView()).features.match
    length = recent.candidates.match[:, names.index("user.length")]
    per_candidate = recent.histories.lengths[recent.candidates.row]
    torch.testing.assert_close(length, torch.log1p(per_candidate.float()))


def test_a_request_alone_equals_the_request_in_a_batch(small: PreparedData) -> None:
    requests = small.requests("test")
    collator = Collator(small, HistoryView())
    together = collator.batch(requests, np.arange(len(requests)))
    for r in range(len(requests)):
        alone = collator.batch(requests, np.array([r]))
        a, z = together.candidates.offsets[r : r + 2].tolist()
        torch.testing.assert_close(alone.candidates.match, together.candidates.match[a:z], rtol=0, atol=0)
        for name, column in alone.candidates.fields.items():
            torch.testing.assert_close(column, together.candidates.fields[name][a:z], rtol=0, atol=0)


def test_without_match_no_match_columns_but_popularity_stays(small: PreparedData) -> None:
    collator = Collator(small, HistoryView(match=False))
    batch = collator.batch(small.requests("train"), np.arange(4))
    assert batch.candidates.match.shape == (24, 0)
    assert collator.features.match == ()
    assert {"popularity", "popularity_28d", "popularity_place", "brand", "display"} <= set(batch.candidates.fields)


def test_every_declared_feature_is_in_the_batch(small: PreparedData) -> None:
    collator = Collator(small, HistoryView())
    batch = collator.batch(small.requests("train"), np.arange(4))
    f = collator.features
    assert {x.name for x in (*f.behaviour_fields, *f.item_fields)} == set(batch.histories.fields)
    assert {x.name for x in (*f.candidate_fields, *f.item_fields)} == set(batch.candidates.fields)
    assert {x.name for x in f.context_fields} == set(batch.context.fields)  # `week` is a column, not a feature
    assert batch.candidates.match.shape[1] == len(f.match)
    assert torch.isfinite(batch.candidates.match).all()


def test_the_loader_goes_on_at_any_batch(small: PreparedData) -> None:
    requests = small.requests("train")
    loader = RequestLoader(Collator(small, HistoryView()), requests, np.arange(len(requests)), batch_requests=4, seed=7)
    whole = [batch.request.tolist() for batch in loader.epoch(2)]
    assert len(whole) == len(loader)
    assert sorted(row for rows in whole for row in rows) == list(range(len(requests)))
    assert [batch.request.tolist() for batch in loader.epoch(2, start_batch=2)] == whole[2:]
    assert [batch.request.tolist() for batch in loader.epoch(3)] != whole


def test_an_error_in_the_background_reaches_the_caller(small: PreparedData) -> None:
    requests = small.requests("train")
    loader = RequestLoader(Collator(small, HistoryView()), requests, np.array([10_000]), batch_requests=1)
    with pytest.raises(IndexError):
        list(loader.epoch(0))


def test_a_loader_left_early_leaves_no_thread(small: PreparedData) -> None:
    import threading

    requests = small.requests("train")
    loader = RequestLoader(Collator(small, HistoryView()), requests, np.arange(15), batch_requests=1)
    batches = loader.epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "sostenuto-collate"]


def test_a_budget_is_a_seeded_sample(small: PreparedData) -> None:
    requests = small.requests("train")
    rows = sample_rows(requests, 5, seed=1)
    assert len(rows) == 5
    assert rows.tolist() == sorted(set(rows.tolist())) == sample_rows(requests, 5, seed=1).tolist()
    assert sample_rows(requests, None, seed=1).tolist() == list(range(15))


def test_a_view_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"recent must be at least 1"):
        HistoryView(recent=0)
