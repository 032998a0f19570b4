from dataclasses import replace

import pytest
import torch
from tests.baselines.planted_requests import FEATURES, planted_batch, planted_batches, subset

from sostenuto.baselines.mean_pool import MeanPool, MeanPoolConfig
from sostenuto.schema.errors import SpecError
from sostenuto.schema.histories import History

CONFIG = MeanPoolConfig(item_dim=4, category_dim=2, field_dim=2, tower_units=(16,), table_std=0.5)


@pytest.fixture
def ranker():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MeanPool(CONFIG, FEATURES).eval()


def logits(ranker, batch):
    with torch.no_grad():
        return ranker(batch.histories, batch.candidates, batch.context).logits


def cut(history: History, keep: torch.Tensor) -> History:
    """Return the behaviours of `history` where `keep` is True."""
    row = torch.repeat_interleave(torch.arange(history.num_rows), history.lengths)
    lengths = torch.bincount(row[keep], minlength=history.num_rows)
    return History(
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        **{n: getattr(history, n)[keep] for n in ("item", "category", "time_ms", "action", "value", "place")},
    )


def test_the_order_of_the_history_changes_no_score(ranker):
    batch = planted_batch(1)
    h = batch.histories
    turned = [torch.arange(int(a), int(b)).flip(0) for a, b in zip(h.offsets[:-1], h.offsets[1:], strict=True)]
    at = torch.cat(turned)
    other = replace(h, item=h.item[at], category=h.category[at])
    torch.testing.assert_close(logits(ranker, replace(batch, histories=other)), logits(ranker, batch))


def test_the_history_matters(ranker):
    batch = planted_batch(1)
    other = replace(batch.histories, item=(batch.histories.item + 7) % 48 + 2)
    assert not torch.allclose(logits(ranker, replace(batch, histories=other)), logits(ranker, batch))


def test_folding_later_events_in_equals_encoding_all(ranker):
    batch = planted_batch(2)
    h = batch.histories
    row = torch.repeat_interleave(torch.arange(h.num_rows), h.lengths)
    early = (torch.arange(len(row)) - h.offsets[row]) < h.lengths[row] // 2
    with torch.no_grad():
        state = ranker.append(ranker.encode(cut(h, early)), cut(h, ~early))
        whole = ranker.encode(h)
    torch.testing.assert_close(state.total, whole.total)
    assert torch.equal(state.length, whole.length)


def test_neighbours_and_order_of_candidates_change_no_score(ranker):
    batch = planted_batch(3)
    smaller, at = subset(batch, [4, 0, 2], torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(ranker, smaller), logits(ranker, batch)[at], rtol=1e-5, atol=1e-5)


def test_an_empty_history_gives_finite_scores_and_gradients(ranker):
    batch = planted_batch(4, long=0)
    output = ranker(batch.histories, batch.candidates, batch.context).logits
    output.sum().backward()
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(p.grad.to_dense()).all() for p in ranker.parameters() if p.grad is not None)


def test_it_learns_the_planted_rule():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ranker = MeanPool(CONFIG, FEATURES)
    # tables give sparse gradients; the rule that is planted needs none of them
    optimiser = torch.optim.Adam([*ranker.tower.parameters(), *ranker.wide.parameters()], lr=1e-2)
    losses = []
    for batch in planted_batches(0, 60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            ranker(batch.histories, batch.candidates, batch.context).logits, batch.labels
        )
        ranker.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_nonsense_configurations_are_refused():
    with pytest.raises(SpecError, match=r"MeanPoolConfig\.dropout must be in"):
        MeanPoolConfig(dropout=1.0)
