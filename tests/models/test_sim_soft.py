"""muse.md, B1 and property 1: SIM with soft search."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import batches, make_batch
from tests.models.searching import (
    SPEC,
    VARIANTS,
    check_kept_items,
    check_laws,
    check_long_range,
    check_trains,
    ranker_of,
)

from sostenuto.schema.errors import SpecError


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=8, deadline=None)
@given(batch=batches(SPEC), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_variant_keeps_the_laws(changes, batch, share, seed):
    check_laws(ranker_of("sim_soft", **changes), batch, share, seed)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_trains(changes):
    check_trains(ranker_of("sim_soft", **changes), make_batch(SPEC, [(5, 3), (0, 2)], 0))


def test_what_is_kept_of_items_changes_no_score():
    check_kept_items(ranker_of("sim_soft"), make_batch(SPEC, [(7, 4), (0, 2)], 1))


def test_1_the_search_is_that_of_all_learned_products():
    ranker, batch = ranker_of("sim_soft", kept=3), make_batch(SPEC, [(40, 5), (2, 2)], 2)
    history, candidates = batch.histories, batch.candidates
    with torch.no_grad():
        state = ranker.encode(history)
        target = ranker.two_stage.of_items(state.past, candidates)["target"]
        found = ranker.selector.select(ranker._asked(target)["asked"], candidates.offsets, state.index).taken
        key = state.past.history.key
        for c in range(len(target)):
            b = int(candidates.row[c])
            mine = range(int(history.offsets[b]), int(history.offsets[b + 1]))
            products = {j: float(ranker.of_behaviour(key[j]) @ ranker.of_candidate(target[c])) for j in mine}
            row = found.positions[int(found.offsets[c]) : int(found.offsets[c + 1])].tolist()
            least = sorted(products.values(), reverse=True)[: len(row)][-1]
            assert len(row) >= min(3, len(mine))
            assert all(products[j] >= least - 1e-5 for j in row)


def test_the_auxiliary_model_reads_the_history_summed_with_the_products():
    """U_r of a loop over behaviours equals the one that looks at no pair."""
    ranker, batch = ranker_of("sim_soft").train(), make_batch(SPEC, [(9, 3), (0, 2), (4, 1)], 4)
    state = ranker.encode(batch.histories)
    columns = ranker.two_stage.of_items(state.past, batch.candidates, ranker._asked)
    seen = {}
    handle = ranker.scale.register_forward_pre_hook(lambda _, args: seen.update(pooled=args[0]))
    ranker.search_logits(state, batch.candidates, columns["target"], columns["asked"])
    handle.remove()
    key, offsets = state.past.history.key, batch.histories.offsets.tolist()
    for c, b in enumerate(batch.candidates.row.tolist()):
        total = torch.zeros(key.shape[1])
        for j in range(offsets[b], offsets[b + 1]):
            total = total + (ranker.of_behaviour(key[j]) @ columns["asked"][c]) * key[j]
        mean = total / max(offsets[b + 1] - offsets[b], 1)
        torch.testing.assert_close(seen["pooled"][c], mean, rtol=1e-4, atol=1e-5)


def test_only_the_auxiliary_model_teaches_the_search():
    ranker, batch = ranker_of("sim_soft").train(), make_batch(SPEC, [(9, 3), (5, 2)], 4)
    output = ranker(batch.histories, batch.candidates, batch.context)
    searched = [ranker.of_behaviour.weight, ranker.of_candidate.weight]
    found = torch.autograd.grad(output.logits.sum(), searched, retain_graph=True, allow_unused=True)
    assert found == (None, None)
    taught = torch.autograd.grad(output.aux_heads["search"].logits.sum(), searched)
    assert all(gradient.abs().sum() > 0 for gradient in taught)
    assert output.aux_heads["search"].weight == 1.0
    assert not ranker.eval()(batch.histories, batch.candidates, batch.context).aux_heads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search_weight": 0.0}, "search_weight must be above 0, got 0.0; nothing else teaches the search"),
        ({"search_units": ()}, "search_units must be one or more widths"),
        ({"search_dim": 0}, "SIMSoftConfig.search_dim must be at least 1"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        ranker_of("sim_soft", **changes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_signal_behind_the_newest_50_is_found(seed, tmp_path):
    check_long_range("sim_soft", tmp_path, seed)
