"""Timelines: what a request reads along one is what it would read alone."""

from __future__ import annotations

import itertools
from dataclasses import fields

import numpy as np
import pytest
import torch
from tests.training.toy_prepared import write_toy

from sostenuto.data.prepared import PreparedData
from sostenuto.features.batch_parts import batch_parts
from sostenuto.features.collation import Collator
from sostenuto.features.loading import sample_rows
from sostenuto.features.negatives import NegativeSampler
from sostenuto.features.sequences import SequenceLoader
from sostenuto.features.view import HistoryView
from sostenuto.models.table import build, default_config
from sostenuto.schema.errors import SpecError
from sostenuto.schema.histories import Candidates, SequenceBatch
from sostenuto.training.losses import objective_named


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_toy(tmp_path_factory.mktemp("sequences") / "toy")


def loader_of(toy: PreparedData, *, recent: int | None = None, **options: object) -> SequenceLoader:
    requests = toy.requests("train")
    collator = Collator(toy, HistoryView(recent=recent))
    return SequenceLoader(collator, requests, sample_rows(requests, None, 0), batch_requests=20, **options)  # type: ignore[arg-type]


def test_every_request_stands_once_in_an_epoch_and_epochs_differ_in_order(toy: PreparedData) -> None:
    loader = loader_of(toy, requests_per_pass=2)
    epochs = [[b.request.tolist() for b in loader.epoch(number)] for number in range(2)]
    assert [len(epoch) for epoch in epochs] == [len(loader)] * 2
    for epoch in epochs:
        assert sorted(itertools.chain.from_iterable(epoch)) == list(range(len(toy.requests("train"))))
    assert epochs[0] != epochs[1]
    assert [b.request.tolist() for b in loader.epoch(1, start_batch=2)] == epochs[1][2:]


@pytest.mark.parametrize("recent", [None, 8])
def test_a_request_along_a_timeline_is_the_request_alone(toy: PreparedData, recent: int | None) -> None:
    """Candidates, context and labels are equal, and so are match features where the same behaviours are seen."""
    loader = loader_of(toy, recent=recent)
    whole = 0
    for batch in loader:
        alone = loader.collator.batch(loader.requests, batch.request.numpy())
        assert torch.equal(alone.labels, batch.labels)
        assert torch.equal(alone.candidates.item, batch.candidates.item)
        assert torch.equal(alone.context.time_ms, batch.context.time_ms)
        assert torch.equal(alone.user, batch.user)
        for r, end in enumerate(batch.ends.tolist()):
            start = end - int(batch.prefix[r])
            low, high = int(alone.histories.offsets[r]), int(alone.histories.offsets[r + 1])
            seen, expected = batch.histories.item[start:end], alone.histories.item[low:high]
            shorter = min(len(seen), len(expected))
            assert shorter >= min(len(expected), (recent or 0) // 2)
            assert torch.equal(seen[len(seen) - shorter :], expected[len(expected) - shorter :])
            if len(seen) == len(expected):
                rows = slice(int(batch.candidates.offsets[r]), int(batch.candidates.offsets[r + 1]))
                torch.testing.assert_close(batch.candidates.match[rows], alone.candidates.match[rows])
                whole += 1
            assert bool((batch.histories.time_ms[start:end] < batch.context.time_ms[r]).all())
    assert whole > 20


def test_timelines_fit_the_view(toy: PreparedData) -> None:
    for batch in loader_of(toy, recent=8):
        longest = torch.zeros(batch.histories.num_rows, dtype=torch.int64).scatter_reduce(
            0, batch.row, batch.prefix, "amax"
        )
        assert torch.equal(longest, batch.histories.lengths)
        assert int(longest.max()) <= 8 + 5  # a moment of the toy holds a few behaviours


def test_parts_of_a_sequence_batch_hold_all_of_it(toy: PreparedData) -> None:
    for batch in loader_of(toy):
        parts = list(batch_parts(batch, 60))
        assert len(parts) > 1
        assert sum(p.share for p in parts) == pytest.approx(1)
        for name in ("labels", "request", "user", "prefix"):
            assert torch.equal(torch.cat([getattr(p.batch, name) for p in parts]), getattr(batch, name))
        for part in parts:
            assert torch.equal(part.batch.labels, batch.labels[part.candidates])
            ends = part.batch.ends
            assert bool((ends <= part.batch.histories.offsets[part.batch.row + 1]).all())


def test_next_item_batches_hold_targets_and_shared_negatives(toy: PreparedData) -> None:
    counts = np.bincount(toy.behaviours.item, minlength=toy.features.num_items)
    counts[5] = 0
    sampler = NegativeSampler(counts, count=20_000, power=0.5, log_q=True)
    batch = loader_of(toy, negatives=sampler, prefetch=0).batch_of(np.arange(30))
    assert bool((batch.labels == 1).all())
    assert bool((batch.candidates.lengths >= 1).all())
    assert batch.candidates.match.shape[1] == 0
    assert isinstance(batch.negatives, Candidates)
    assert batch.log_q is not None
    drawn = np.bincount(batch.negatives.item.numpy(), minlength=len(counts))
    assert drawn[[0, 1, 5]].sum() == 0
    expected = batch.log_q.exp().numpy()[np.unique(batch.negatives.item.numpy(), return_index=True)[1]]
    np.testing.assert_allclose(drawn[drawn > 0].sum(), expected.sum(), rtol=0.02)
    assert np.corrcoef(drawn[drawn > 0], expected)[0, 1] > 0.8
    again, other = (loader_of(toy, negatives=sampler).batch_of(np.arange(30), (0, n)) for n in (0, 1))
    assert again.negatives is not None
    assert torch.equal(again.negatives.item, batch.negatives.item)
    assert other.negatives is not None
    assert not torch.equal(other.negatives.item, batch.negatives.item)


def test_several_draws_are_held_against_requests_in_turn(toy: PreparedData) -> None:
    torch.manual_seed(0)
    sampler = NegativeSampler(np.ones(toy.features.num_items), count=6, power=0, log_q=True, draws=3)
    batch = loader_of(toy, negatives=sampler, prefetch=0).batch_of(np.arange(30))
    ranker = build("sasrec", default_config("sasrec"), toy.features).eval()
    assert batch.negatives is not None
    assert batch.log_q is not None
    assert batch.negatives.lengths.tolist() == [6, 6, 6]
    assert len({tuple(row) for row in batch.negatives.item.view(3, 6).tolist()}) == 3
    with torch.no_grad():
        found = objective_named("next_item").output(ranker, batch).logits
        queries = ranker.queries_along(batch)
        targets, negatives = ranker.item_vectors(batch.candidates), ranker.item_vectors(batch.negatives)
    items, rows = batch.candidates.item.tolist(), batch.candidates.row.tolist()
    for n, row in enumerate(rows):
        mine = [item for item, other in zip(items, rows, strict=True) if other == row]
        drawn = [m for m in range(6 * (row % 3), 6 * (row % 3) + 6) if int(batch.negatives.item[m]) not in mine]
        against = queries[row] @ negatives[drawn].T - batch.log_q[drawn]
        target = queries[row] @ targets[n]
        expected = target - torch.logsumexp(torch.cat([target[None], against]), 0)
        torch.testing.assert_close(found[n], expected, rtol=1e-4, atol=1e-5)


def test_moving_a_batch_moves_all_of_it(toy: PreparedData) -> None:
    sampler = NegativeSampler(np.ones(toy.features.num_items), count=4, power=0, log_q=False)
    batch = loader_of(toy, negatives=sampler).batch_of(np.arange(5)).to("meta")
    assert isinstance(batch, SequenceBatch)
    for f in fields(batch):
        value = getattr(batch, f.name)
        if isinstance(value, torch.Tensor):
            assert value.device.type == "meta", f.name


def test_nonsense_is_refused(toy: PreparedData) -> None:
    with pytest.raises(SpecError, match="requests_per_pass must be at least 1"):
        loader_of(toy, requests_per_pass=0)
    with pytest.raises(SpecError, match="negative_draws must be 1 where items have groups"):
        NegativeSampler(np.ones(5), count=1, power=0, log_q=False, draws=0)
    with pytest.raises(SpecError, match="negatives must be at least 1"):
        NegativeSampler(np.ones(5), count=0, power=0, log_q=False)
