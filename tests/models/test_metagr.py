"""The interleaved form: property 10 of dfgr.md, and that losses at own item tokens are scores of candidates."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import one_by_one, shuffle_moments
from tests.models.flows import SPEC, VARIANTS, along, exposures, make_sequences, ranker_of, with_other_action
from tests.reference.slow_flows import dense_blocks

from sostenuto.evaluation.along_leaks import check_along
from sostenuto.ops.causal_attention import masks

variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))


@variants
@pytest.mark.parametrize("moments", [False, True], ids=["one by one", "sessions"])
def test_an_action_token_is_visible_to_later_sessions_only(changes, moments):
    """Property 10."""
    ranker, batch = ranker_of("metagr", **changes), exposures([9, 7], moments=moments)
    before = along(ranker, batch)
    for event in (0, 3, 9):
        after = along(ranker, with_other_action(batch, event))
        later = (batch.row == batch.row[event]) & (batch.context.time_ms > batch.context.time_ms[event])
        assert torch.equal(after[~later], before[~later])
        assert (after[later] - before[later]).abs().max() > 1e-5


@variants
def test_the_flow_is_one_dense_masked_sequence_read_at_its_items(changes):
    """Property 10: logits of behaviours are those of their own item tokens, in the sequence item, action, item ..."""
    ranker, batch = ranker_of("metagr", **changes), exposures([8], moments=True)
    past, tokens = batch.histories, ranker.tokens
    with torch.no_grad():
        parts = tokens.of_events(past, batch.prefix, tokens.distinct(past))
        seen = masks("metagr", torch.tensor([8]), sessions=past.time_ms[None], num_history=8)[0]
        token = torch.stack([parts.item, parts.action], 1).flatten(0, 1)
        position = torch.stack([2 * batch.prefix, 2 * batch.prefix + 1], 1).flatten()
        time_s = (past.time_ms // 1000).repeat_interleave(2)
        token = dense_blocks(ranker.blocks, token, seen, position, time_s)[::2]
        taste = ranker.head.taste_along(tokens.items, past, tokens.distinct(past), batch.row, batch.prefix)
        wanted = ranker.head(token, tokens.items, taste, batch.candidates, batch.context).logits
    close(along(ranker, batch), wanted)


@variants
@settings(max_examples=10)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_training_and_inference_agree(changes, lengths, seed):
    ranker = ranker_of("metagr", **changes)
    for batch in (exposures([*lengths, 3], seed=seed, moments=True), make_sequences(SPEC, lengths, seed)):
        alone = one_by_one(batch)
        with torch.no_grad():
            wanted = ranker(alone.histories, alone.candidates, alone.context).logits
        close(along(ranker, batch), wanted)


def test_a_behaviour_that_is_a_candidate_needs_no_token_of_its_own(monkeypatch):
    ranker, batch = ranker_of("metagr"), exposures([9, 5], moments=True)
    found = ranker.happened_at(ranker.encode(batch.histories).timeline, batch.histories, batch)
    assert torch.equal(batch.histories.item[found], batch.candidates.item)
    reused = along(ranker, batch)
    monkeypatch.setattr(ranker, "happened_at", lambda *_: torch.full((14,), -1))
    close(reused, along(ranker, batch))


@pytest.mark.parametrize("column", ["time_ms", "place", "item"])
def test_a_candidate_of_another_time_place_or_item_did_not_happen(column):
    ranker, batch = ranker_of("metagr"), exposures([9])
    if column == "item":
        other = replace(batch, candidates=replace(batch.candidates, item=(batch.candidates.item + 17) % 40))
    else:
        other = replace(batch, context=replace(batch.context, **{column: getattr(batch.context, column) + 1}))
    timeline = ranker.encode(batch.histories).timeline
    found = ranker.happened_at(timeline, other.histories, other)
    assert (found == -1).all() if column != "item" else (found == -1).sum() >= 8


def test_moments_have_no_order():
    ranker, batch = ranker_of("metagr"), exposures([9, 5], moments=True)
    shuffled = replace(batch, histories=shuffle_moments(batch.histories, 3))
    close(along(ranker, shuffled), along(ranker, batch))


def test_the_leak_detector_finds_nothing():
    assert check_along(ranker_of("metagr"), exposures([7, 5], moments=True)).is_clean
    assert check_along(ranker_of("metagr"), make_sequences(SPEC, [7, 5], 0)).is_clean
