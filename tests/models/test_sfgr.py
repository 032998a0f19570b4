"""The single flow, and its published time bias that no cache survives."""

from dataclasses import replace

import pytest
import torch
from tests.contract.batches import make_batch, split_history, take_history
from tests.models.flows import SPEC, VARIANTS, ranker_of
from tests.reference.slow_flows import dense_blocks

from sostenuto.models.sfgr_published import next_times
from sostenuto.models.table import MODELS
from sostenuto.ops.causal_attention import masks
from sostenuto.schema.errors import SpecError

variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def logits(ranker, batch):
    with torch.no_grad():
        return ranker(batch.histories, batch.candidates, batch.context).logits


@variants
def test_history_and_candidates_are_one_dense_masked_sequence(changes):
    ranker, batch = ranker_of("sfgr", **changes), make_batch(SPEC, [(7, 3)], 4)
    past, tokens = batch.histories, ranker.tokens
    with torch.no_grad():
        state = ranker.encode(past)
        parts = tokens.of_events(past, state.timeline.position, tokens.distinct(past))
        asked = tokens.of_candidates(batch.candidates, batch.context, torch.full((3,), 7), None)
        seen = masks("sfgr", torch.tensor([7]), sessions=past.time_ms[None], num_history=7, num_candidates=3)[0]
        position = torch.cat([state.timeline.position, torch.full((3,), 7)])
        time_s = torch.cat([past.time_ms, batch.context.time_ms.repeat(3)]) // 1000
        token = dense_blocks(ranker.blocks, torch.cat([parts.item + parts.action, asked]), seen, position, time_s)[7:]
        wanted = ranker.head(token, tokens.items, state.taste, batch.candidates, batch.context).logits
    torch.testing.assert_close(logits(ranker, batch), wanted, rtol=1e-5, atol=1e-5)


def test_the_dual_flow_is_this_network_at_inference():
    single, dual, batch = ranker_of("sfgr"), ranker_of("dfgr"), make_batch(SPEC, [(7, 3), (0, 2)], 4)
    dual.flow.load_state_dict(single.state_dict())
    assert torch.equal(logits(single, batch), logits(dual, batch))


def test_a_token_that_is_kept_never_changes():
    ranker, batch = ranker_of("sfgr"), make_batch(SPEC, [(9, 3)], 4)
    early, _ = split_history(batch.histories, 0.5)
    kept = len(early.item)
    with torch.no_grad():
        whole, part = ranker.encode(batch.histories), ranker.encode(early)
    for a, b in zip(whole.layers, part.layers, strict=True):
        torch.testing.assert_close(a.key[:kept], b.key, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a.value[:kept], b.value, rtol=1e-5, atol=1e-5)


def test_next_times_are_those_of_the_next_moment_and_then_the_request():
    offsets, time_ms = torch.tensor([0, 4, 4, 6]), torch.tensor([5, 5, 8, 9, 3, 3])
    assert next_times(offsets, time_ms, torch.tensor([20, 30, 40])).tolist() == [8, 8, 9, 20, 40, 40]
    assert next_times(torch.tensor([0, 1]), torch.tensor([5]), torch.tensor([7])).tolist() == [7]
    assert next_times(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([7])).tolist() == []


def test_under_the_published_bias_the_flow_itself_depends_on_the_request():
    """Why it cannot be cached: the time of the request, and every later event, change what the newest tokens are."""
    assert MODELS["sfgr_published"].update == "none"
    ranker = ranker_of("sfgr_published", pure=True)
    batch = make_batch(SPEC, [(7, 3)], 4)
    state = ranker.encode(batch.histories)
    flows = []
    for later in (0, 10**9):
        past = state.histories
        times = next_times(past.offsets, past.time_ms, batch.context.time_ms + later)
        with torch.no_grad():
            flows.append(ranker.flow.extended(None, past, state.distinct, None, times).layers[1].key)
    assert not torch.allclose(flows[0], flows[1], atol=1e-6)
    with torch.no_grad():
        cacheable = ranker_of("sfgr", pure=True)
        first = cacheable.encode(batch.histories).layers[1].key
        cut = take_history(batch.histories, torch.arange(3), torch.tensor([3]))
        torch.testing.assert_close(cacheable.encode(cut).layers[1].key, first[:3], rtol=1e-5, atol=1e-5)


def test_the_published_bias_needs_a_bias():
    for changes in ({"relative_bias": False}, {"time_bias": False}):
        with pytest.raises(SpecError, match="relative_bias and time_bias of sfgr_published must be on"):
            ranker_of("sfgr_published", **changes)


def test_the_placeholder_and_the_action_are_told_apart():
    ranker, batch = ranker_of("sfgr"), make_batch(SPEC, [(7, 3)], 4)
    other = replace(batch, histories=replace(batch.histories, action=(batch.histories.action + 1) % 4))
    assert not torch.allclose(logits(ranker, batch), logits(ranker, other), atol=1e-6)
