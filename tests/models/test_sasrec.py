"""SASRec: what its spec promises, each with its test."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import (
    PREPARED,
    batches,
    make_batch,
    make_sequences,
    one_by_one,
    shuffle_moments,
    split_history,
    take_history,
    view_of,
)

from sostenuto.models.sasrec import SASRec, SASRecConfig
from sostenuto.schema.errors import SpecError
from sostenuto.schema.histories import Candidates, History

SPEC = view_of(PREPARED, match=False)


def sasrec(seed=0, **changes):
    torch.manual_seed(seed)
    small = {"width": 8, "hidden": 8, "heads": 2, "blocks": 2, "max_length": 9, "table_std": 0.5}
    return SASRec(SASRecConfig(**{**small, **changes}), SPEC).eval()


def line(items, *, times=None):
    """Make one user's history of items at distinct times."""
    count = len(items)
    zeros = torch.zeros(count, dtype=torch.int64)
    return History(
        offsets=torch.tensor([0, count]),
        item=torch.tensor(items, dtype=torch.int64),
        category=torch.zeros(count, 2, dtype=torch.int64),
        time_ms=torch.arange(1, count + 1) * 1000 if times is None else torch.tensor(times),
        action=zeros,
        value=torch.zeros(count),
        place=zeros,
        fields={
            "brand": zeros,
            "tags": torch.zeros(count, 3, dtype=torch.int64),
            "shape": torch.zeros(count, 4),
            "channel": zeros,
            "discount": torch.zeros(count),
        },
    )


def query(ranker, histories):
    with torch.no_grad():
        return ranker.encode(histories).query


VARIANTS = {
    "as published": {"category_dim": 0, "field_dim": 0},
    "one block": {"blocks": 1, "heads": 1},
    "window of 3": {"max_length": 3},
    "window of 1": {"max_length": 1},
    "positions from the newest": {"positions": "last"},
    "idle places": {"idle_places": True},
    "positions from the newest, window of 3": {"positions": "last", "max_length": 3},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=10, deadline=None)
@given(batch=batches(SPEC), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_variant_keeps_the_laws(changes, batch, share, seed):
    ranker = sasrec(**changes)
    whole = query(ranker, batch.histories)
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(query(ranker, shuffle_moments(batch.histories, seed)), whole, rtol=1e-5, atol=1e-5)
    early, later = split_history(batch.histories, share)
    with torch.no_grad():
        folded = ranker.append(ranker.encode(early), later).query
    torch.testing.assert_close(folded, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3), seed=st.integers(0, 999))
def test_timelines_longer_than_the_window_are_read_as_each_request_would(changes, lengths, seed):
    ranker, along = sasrec(**changes), make_sequences(SPEC, lengths, seed)
    alone = one_by_one(along)
    with torch.no_grad():
        torch.testing.assert_close(ranker.queries_along(along), query(ranker, alone.histories), rtol=1e-5, atol=1e-5)


def test_nothing_later_reaches_a_query():
    """Causality: change every behaviour behind a request's prefix, and its query stays, bit for bit."""
    ranker, along = sasrec(), make_sequences(SPEC, [8], 4)
    first = int(along.prefix[1])
    later = torch.arange(8) >= first
    changed = replace(along.histories, item=torch.where(later, 3, along.histories.item))
    with torch.no_grad():
        before = ranker.queries_along(along)
        after = ranker.queries_along(replace(along, histories=changed))
    assert torch.equal(before[:2], after[:2])
    assert not torch.allclose(before[2:], after[2:])


def test_positions_from_the_newest_moment_shift_while_learning_alone():
    ranker, along = sasrec(positions="last", dropout=0.0), make_sequences(SPEC, [8], 4)
    alone = query(ranker, one_by_one(along).histories)
    with torch.no_grad():
        learning = ranker.train().queries_along(along)
    torch.testing.assert_close(learning[-1], alone[-1], rtol=1e-5, atol=1e-5)  # the longest prefix ends the row
    assert not torch.allclose(learning[1], alone[1])
    assert not torch.allclose(alone[-1], query(sasrec(positions="first"), one_by_one(along).histories)[-1])


def test_items_lose_numbers_while_learning_alone():
    ranker = sasrec(item_dropout=0.5, dropout=0.0)
    candidates = make_batch(SPEC, [(3, 4)], 0).candidates
    with torch.no_grad():
        whole, lost = ranker.item_vectors(candidates), ranker.train().item_vectors(candidates)
    gone = lost == 0
    assert 0 < int(gone.sum()) < gone.numel()
    torch.testing.assert_close(lost[~gone], 2 * whole[~gone])


def test_an_item_loses_the_same_numbers_wherever_a_step_meets_it():
    ranker, batch = sasrec(item_dropout=0.5, dropout=0.0).train(), make_batch(SPEC, [(3, 4)], 0)

    def gone_in_a_step():
        with torch.no_grad():
            ranker.encode(batch.histories)
            return [ranker.item_vectors(batch.candidates) == 0 for _ in range(2)]

    targets, negatives = gone_in_a_step()
    assert torch.equal(targets, negatives)
    assert not torch.equal(targets, gone_in_a_step()[0])


def test_the_order_of_moments_matters():
    ranker = sasrec()
    assert not torch.allclose(query(ranker, line([2, 3, 4])), query(ranker, line([3, 2, 4])))
    assert not torch.allclose(query(ranker, line([2, 3, 4])), query(ranker, line([2, 4, 3])))


def test_only_the_order_of_times_matters_not_their_distance():
    ranker = sasrec()
    far = line([2, 3, 4], times=[5, 10**9, 10**12])
    torch.testing.assert_close(query(ranker, line([2, 3, 4])), query(ranker, far))


def test_behaviours_before_the_window_change_nothing():
    ranker = sasrec(max_length=3)
    torch.testing.assert_close(query(ranker, line([9, 8, 2, 3, 4])), query(ranker, line([2, 3, 4])))


def test_a_moment_that_the_window_would_split_is_kept_whole():
    ranker = sasrec(max_length=2)
    together = line([2, 3, 4, 5], times=[1, 2, 2, 3])
    torch.testing.assert_close(query(ranker, together), query(ranker, line([3, 4, 5], times=[2, 2, 3])))


def test_one_table_reads_and_is_searched():
    """An item's vector as input is its vector as target: the paper's shared embedding."""
    ranker = sasrec(category_dim=0, field_dim=0)
    batch = make_batch(SPEC, [(1, 4)], 0)
    with torch.no_grad():
        vectors = ranker.item_vectors(batch.candidates)
        rows = batch.candidates.item.where(batch.candidates.item < SPEC.num_item_rows, 1)
        assert torch.equal(vectors, ranker.items.items.item.weight[rows])
    state = ranker.encode(batch.histories)
    own = ranker.items(batch.histories.item, batch.histories.category, batch.histories.fields)
    assert torch.equal(state.window.vectors, own)


def test_a_query_depends_on_neither_candidate_nor_request():
    ranker, batch = sasrec(), make_batch(SPEC, [(5, 2), (3, 2)], 1)
    later = replace(batch.context, time_ms=batch.context.time_ms + 10**9, place=batch.context.place * 0)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        assert torch.equal(ranker.query(state, batch.context), ranker.query(state, later))


def test_an_empty_history_asks_for_the_learnt_start():
    ranker = sasrec()
    empty = take_history(make_batch(SPEC, [(3, 1)], 0).histories, torch.zeros(0, dtype=torch.int64), torch.tensor([0]))
    assert torch.equal(query(ranker, empty)[0], ranker.start.detach())


def test_the_state_is_bounded_by_the_window():
    ranker = sasrec(max_length=4)
    state = ranker.encode(line(list(range(2, 20))))
    assert len(state.window.vectors) == 4


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"heads": 3}, {"max_length": 0}, {"dropout": 1.0}, {"blocks": 0}, {"hidden": 0}]
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(SpecError, match="SASRecConfig"):
        SASRecConfig(**wrong)


def test_the_next_item_of_a_cycle_is_learnt():
    """Users walk round a ring of items: after training, the next one stands first among all."""
    from sostenuto.training.losses import objective_named

    ring, length = 12, 9
    torch.manual_seed(0)
    ranker = SASRec(SASRecConfig(width=16, hidden=16, max_length=12, category_dim=0, field_dim=0, dropout=0.1), SPEC)
    optimiser = [
        torch.optim.SparseAdam([ranker.items.items.item.weight], lr=0.02),
        torch.optim.Adam([p for n, p in ranker.named_parameters() if not n.startswith("items")], lr=0.01),
    ]
    walks = [[2 + (start + step) % ring for step in range(length)] for start in range(ring)]
    batch = _walks(walks)
    for _ in range(60):
        for one in optimiser:
            one.zero_grad()
        (-objective_named("next_item").output(ranker, batch).logits.mean()).backward()
        for one in optimiser:
            one.step()
    ranker.eval()
    with torch.no_grad():
        vectors = ranker.item_vectors(_items(range(2, 2 + ring)))
        best = (ranker.queries_along(batch) @ vectors.T).argmax(1) + 2
    assert best[batch.prefix > 0].tolist() == batch.candidates.item[batch.prefix > 0].tolist()


def _items(items) -> Candidates:
    item = torch.tensor(list(items))
    count = len(item)
    return Candidates(
        offsets=torch.tensor([0, count]),
        item=item,
        category=torch.zeros(count, 2, dtype=torch.int64),
        match=torch.zeros(count, 0),
        fields=line([2] * count).fields,
    )


def _walks(walks):
    """Make timelines whose every position is a request for the item there; all items are negatives."""
    whole = line(list(itertools.chain(*walks)))
    lengths = [len(walk) for walk in walks]
    like = make_sequences(SPEC, [1], 0)
    row = torch.repeat_interleave(torch.arange(len(walks)), torch.tensor(lengths))
    prefix = torch.cat([torch.arange(n) for n in lengths])
    targets = _items(itertools.chain(*walks))
    return replace(
        like,
        histories=replace(whole, offsets=torch.tensor([0, *itertools.accumulate(lengths)])),
        row=row,
        prefix=prefix,
        candidates=replace(targets, offsets=torch.arange(len(row) + 1)),
        labels=torch.ones(len(row)),
        negatives=_items(range(2, 14)),
    )
