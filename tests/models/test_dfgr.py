"""Properties of dfgr.md, section 6. Masks and the attention itself are in tests/ops/test_causal_attention.py."""

import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import one_by_one, shuffle_moments, take_candidates, take_history
from tests.models.flows import SPEC, VARIANTS, along, exposures, make_sequences, ranker_of, with_other_action
from tests.reference.slow_flows import dense_blocks

from sostenuto.evaluation.along_leaks import check_along
from sostenuto.layers.relative_bias import TokenPlaces
from sostenuto.models.dfgr import DFGR
from sostenuto.ops.causal_attention import masks
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec

variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))


@variants
@pytest.mark.parametrize("moments", [False, True], ids=["one by one", "sessions"])
def test_an_action_changes_no_logit_of_its_own_session_or_before_and_some_later(changes, moments):
    """Property 1, exact."""
    ranker, batch = ranker_of("dfgr", **changes), exposures([9, 7], moments=moments)
    before = along(ranker, batch)
    for event in (0, 3, 9):
        after = along(ranker, with_other_action(batch, event))
        later = (batch.row == batch.row[event]) & (batch.context.time_ms > batch.context.time_ms[event])
        assert torch.equal(after[~later], before[~later])
        assert (after[later] - before[later]).abs().max() > 1e-5


@variants
@settings(max_examples=10)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_training_and_inference_agree(changes, lengths, seed):
    """Property 2: for every request, alone and beside users of other lengths."""
    ranker = ranker_of("dfgr", **changes)
    for batch in (exposures([*lengths, 3], seed=seed, moments=True), make_sequences(SPEC, lengths, seed)):
        alone = one_by_one(batch)
        with torch.no_grad():
            wanted = ranker(alone.histories, alone.candidates, alone.context).logits
        close(along(ranker, batch), wanted)


def test_candidates_are_independent_of_each_other():
    """Property 3: along a timeline and at inference, removing some and turning the rest round changes nothing."""
    ranker, batch = ranker_of("dfgr"), make_sequences(SPEC, [9, 4], 3)
    first = batch.candidates.offsets[:-1]
    alone = replace(batch, candidates=take_candidates(one_by_one(batch), first).candidates)
    close(along(ranker, alone), along(ranker, batch)[first])


@pytest.mark.parametrize("name", ["dfgr", "metagr"])
def test_the_gradient_of_a_loss_reaches_earlier_actions_and_never_its_own(name):
    """Property 4."""
    spec = FeatureSpec(num_items=40, num_item_rows=40, num_actions=12)
    ranker, batch = ranker_of(name, spec), exposures([9], spec=spec)
    batch = replace(batch, histories=replace(batch.histories, action=torch.arange(9) + 2))
    table = next(m for n, m in ranker.named_modules() if n.endswith("histories.action")).weight
    logits = ranker.logits_along(batch).logits
    for request in range(9):
        (gradient,) = torch.autograd.grad(logits[request], table, retain_graph=True)
        reached = gradient.to_dense().abs().sum(1)[2:11] > 0
        assert reached.tolist() == [n < request for n in range(9)]


def test_fake_tokens_are_never_keys():
    """Property 5: another candidate moves only its own logit, and what is cached is made before any is known."""
    ranker, batch = ranker_of("dfgr"), make_sequences(SPEC, [9, 4], 3)
    item = batch.candidates.item.clone()
    item[4] = 2 + (item[4] - 1) % 20
    moved = along(ranker, batch) != along(ranker, replace(batch, candidates=replace(batch.candidates, item=item)))
    assert moved.nonzero().flatten().tolist() == [4]


def test_pairs_looked_at_are_half_of_the_interleaved_form():
    """Property 6, on the plans that the rankers run."""
    counted = {}
    for name in ("dfgr", "metagr"):
        ranker, batch, pairs = ranker_of(name, layers=2), exposures([12]), []
        blocks = ranker.flow.blocks if name == "dfgr" else ranker.blocks
        for block in blocks:
            attend = block.attend
            block.attend = lambda q, s, plan, attend=attend, pairs=pairs, **o: (
                pairs.append(plan.num_pairs),
                attend(q, s, plan, **o),
            )[1]
        along(ranker, batch)
        counted[name] = pairs
    n = 12
    # own keys apart: N real and N fake ones; per behaviour one of the item's and two of the action's
    assert counted["dfgr"] == [n * n + n - 2 * n, n * (n + 1) // 2 - n]
    assert counted["metagr"] == [2 * n * n + n - 3 * n, n * n - n]


@variants
@pytest.mark.parametrize("moments", [False, True], ids=["one by one", "sessions"])
def test_two_calls_are_one_dense_masked_sequence(changes, moments):
    """Property 7: real and fake tokens behind one another under the mask of `masks`, every block in full."""
    ranker, batch = ranker_of("dfgr", **changes), exposures([9], moments=moments)
    flow, past = ranker.flow, batch.histories
    with torch.no_grad():
        parts = flow.tokens.of_events(past, batch.prefix, flow.tokens.distinct(past))
        fake = flow.tokens.of_candidates(batch.candidates, batch.context, batch.prefix, None)
        seen = masks("dfgr", torch.tensor([9]), sessions=past.time_ms[None], num_history=9)[0]
        at = TokenPlaces.at(batch.prefix.repeat(2), past.time_ms.repeat(2))
        token = torch.cat([parts.item + parts.action, fake])
        token = dense_blocks(flow.blocks, token, seen, at.position, at.time_s)[9:]
        taste = flow.head.taste_along(flow.tokens.items, past, flow.tokens.distinct(past), batch.row, batch.prefix)
        wanted = flow.head(token, flow.tokens.items, taste, batch.candidates, batch.context).logits
    close(along(ranker, batch), wanted)


@variants
def test_chunks_of_candidates_share_a_cache_that_grows_event_by_event(changes):
    """Property 8: one event at a time, even inside a moment, equals encoding at once; chunks equal the whole."""
    ranker = ranker_of("dfgr", **changes)
    batch = one_by_one(make_sequences(SPEC, [9], 5))
    history = take_history(batch.histories, torch.arange(9) + batch.histories.offsets[-2], torch.tensor([9]))
    last = len(batch.user) - 1
    candidates, context = batch.candidates.part(last, last + 1), batch.context.part(last, last + 1)
    with torch.no_grad():
        whole = ranker.encode(history)
        wanted = ranker.score(whole, candidates, context).logits
        state = ranker.encode(take_history(history, torch.arange(0), torch.tensor([0])))
        for event in range(9):
            state = ranker.append(state, take_history(history, torch.tensor([event]), torch.tensor([1])))
        close(ranker.score(state, candidates, context).logits, wanted)
        for one, other in zip(state.layers, whole.layers, strict=True):
            close(one.key, other.key)
        requests = replace(batch, candidates=candidates, user=batch.user[last:])
        parts = [take_candidates(requests, torch.tensor([n])).candidates for n in range(len(candidates.item))]
        close(torch.cat([ranker.score(whole, part, context).logits for part in parts]), wanted)


def test_a_normaliser_that_follows_the_length_breaks_the_law():
    """Property 9, the trap: dividing by the length of what is in the batch makes a score depend on what comes later."""
    batch = exposures([9])
    alone = one_by_one(batch)
    along_all = along(ranker_of("dfgr", normaliser=9.0, variant="stu", relative_bias=False), batch)[6]
    with torch.no_grad():
        by_length = ranker_of("dfgr", normaliser=6.0, variant="stu", relative_bias=False)
        at_six = by_length(alone.histories, alone.candidates, alone.context).logits[6]
        constant = ranker_of("dfgr", normaliser=9.0, variant="stu", relative_bias=False)
        right = constant(alone.histories, alone.candidates, alone.context).logits[6]
    close(along_all, right)
    assert abs(float(along_all - at_six)) > 1e-3


class SeesItself(DFGR):
    """The planted leak: a fake token sees the real tokens of its own moment, actions and all."""

    def visible(self, batch):
        starts = batch.histories.offsets[batch.row]
        row = torch.repeat_interleave(torch.arange(batch.histories.num_rows), batch.histories.lengths)
        same = (row[None, :] == batch.row[:, None]) & (batch.histories.time_ms[None] <= batch.context.time_ms[:, None])
        return torch.where(same, torch.arange(len(row)) + 1, 0).amax(1).clamp(min=starts) - starts


def leaking(ranker):
    """Return the same ranker with the broken mask."""
    broken = SeesItself.__new__(SeesItself)
    broken.__dict__.update(ranker.__dict__)
    return broken


@pytest.mark.parametrize("moments", [False, True])
def test_a_planted_leak_is_caught(moments):
    """Property 11, the detector: it is silent about a right mask and names a wrong one."""
    ranker, batch = ranker_of("dfgr"), exposures([7, 5], moments=moments)
    clean = check_along(ranker, batch)
    assert clean.is_clean
    assert clean.candidates == 12
    assert "sees what inference sees" in str(clean)
    found = check_along(leaking(ranker), batch)
    assert not found.is_clean
    assert min(found.leaking, found.differing) >= 10
    assert "check the mask" in str(found)


def test_a_leak_of_one_request_is_caught_and_named():
    class SeesOne(SeesItself):
        def visible(self, batch):
            right, wrong = batch.prefix, super().visible(batch)
            return torch.where(batch.request == 8, wrong, right)

    ranker, batch = ranker_of("dfgr"), exposures([7, 5])
    broken = SeesOne.__new__(SeesOne)
    broken.__dict__.update(ranker.__dict__)
    found = check_along(broken, batch)
    assert (found.leaking, found.request) == (1, 8)
    assert not ranker.training


def test_moments_have_no_order():
    ranker, batch = ranker_of("dfgr"), exposures([9, 5], moments=True)
    shuffled = replace(batch, histories=shuffle_moments(batch.histories, 3))
    close(along(ranker, shuffled), along(ranker, batch))


def test_every_part_of_a_real_token_matters_and_so_does_the_request():
    ranker, batch = ranker_of("dfgr"), exposures([9])
    before, past = along(ranker, batch), batch.histories
    for name in ("item", "category", "action", "place", "value", "time_ms"):
        column = getattr(past, name).clone()
        if name == "time_ms":
            column[2] += 30_000_000
        elif name == "value":
            column[2] = 7.0
        else:
            column[2] = (column[2] + 1) % 4
        after = along(ranker, replace(batch, histories=replace(past, **{name: column})))
        close(after[:2], before[:2])  # other distinct items, other sums: not bit for bit
        assert (after[3:] - before[3:]).abs().max() > 1e-5, name
    for name in ("time_ms", "place"):
        column = getattr(batch.context, name) + (10**9 if name == "time_ms" else 0)
        column = column if name == "time_ms" else (column + 1) % 5
        after = along(ranker, replace(batch, context=replace(batch.context, **{name: column})))
        assert (after - before).abs().max() > 1e-5, name


def test_the_pure_form_reads_the_flow_alone():
    ranker, batch = ranker_of("dfgr", pure=True), exposures([9])
    other = replace(batch, candidates=replace(batch.candidates, match=batch.candidates.match + 1))
    assert torch.equal(along(ranker, batch), along(ranker, other))
    assert ranker.flow.head.requests is None
    assert ranker.flow.head.wide is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"heads": 3}, "dim must be a multiple of heads, got 8 and 3; set it to 6"),
        ({"normaliser": 0.0}, "normaliser must be above 0"),
        ({"variant": "large"}, "variant must be one of research, stu"),
        ({"block_dropout": 1.0}, r"block_dropout must be in \[0, 1\)"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        ranker_of("dfgr", **changes)


@pytest.mark.slow
@pytest.mark.parametrize("length", [256, 512])
def test_a_training_step_costs_less_than_the_interleaved_one(length):
    """Property 12; benchmarks/flows.py measures it at 1,000 and 4,000."""
    batch, seconds = exposures([length] * 4), {}
    rankers = {name: ranker_of(name, dim=64, pure=True).train() for name in ("dfgr", "metagr")}
    for _ in range(5):
        for name, ranker in rankers.items():
            start = time.process_time()
            ranker.logits_along(batch).logits.sum().backward()
            seconds[name] = min(seconds.get(name, 1e9), time.process_time() - start)
    assert seconds["dfgr"] < 0.9 * seconds["metagr"]
