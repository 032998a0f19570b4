"""muse.md, B3, B4 and properties 12 and 13: TWIN, and the clusters of TWIN-V2."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import batches, make_batch
from tests.models.searching import (
    SPEC,
    check_kept_items,
    check_laws,
    check_long_range,
    check_trains,
    logits,
    ranker_of,
)
from tests.models.searching import (
    VARIANTS as OF_ALL,
)

from sostenuto.models.twin import TWINState
from sostenuto.ops.jagged import Taken, lengths_to_offsets, row_index
from sostenuto.ops.top_k import Selected
from sostenuto.schema.errors import SpecError

VARIANTS = {**OF_ALL, "clusters": {"cluster_size": 2, "cluster_days": 20.0, "kept": 4}}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=8, deadline=None)
@given(batch=batches(SPEC), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_variant_keeps_the_laws(changes, batch, share, seed):
    check_laws(ranker_of("twin", **changes), batch, share, seed)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_trains(changes):
    check_trains(ranker_of("twin", **changes), make_batch(SPEC, [(5, 3), (0, 2)], 0))


def test_what_is_kept_of_items_changes_no_score():
    check_kept_items(ranker_of("twin"), make_batch(SPEC, [(7, 4), (0, 2)], 1))


def searches(ranker, state, batch):
    """Yield per head the queries, the index, the selection."""
    columns = ranker.two_stage.of_items(state.past, batch.candidates, ranker._asked)
    query = columns["asked"].view(-1, ranker.config.heads, ranker.config.head_dim)
    for head, index in enumerate(ranker.searched(state, batch.context)):
        asked = ranker.asked(query[:, head], index)
        yield query, head, asked, index, ranker.selector.select(asked, batch.candidates.offsets, index)


@pytest.mark.parametrize("gaps", [True, False])
def test_12_the_search_scores_are_the_logits_of_the_exact_attention(gaps):
    ranker, batch = ranker_of("twin", kept=3, gaps=gaps), make_batch(SPEC, [(30, 4), (5, 2), (0, 1)], 2)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        for query, head, asked, index, chosen in searches(ranker, state, batch):
            picked = ranker.two_stage.long.picked(state.past.history, batch.context, chosen.taken)
            candidate = row_index(chosen.taken.offsets)
            key = state.index.rows.view(-1, 2, 4)[picked.first[picked.place], head]
            exact = (query[candidate, head] * key).sum(1) + picked.bias[picked.place, head]
            rows = index.rows[chosen.taken.positions]
            search = [float(ranker.selector.scores(asked[c : c + 1], rows[m : m + 1])) for m, c in enumerate(candidate)]
            torch.testing.assert_close(torch.tensor(search), exact, rtol=1e-5, atol=1e-5)
            read = ranker.attend(state, batch.context, query, head, chosen)
            weights = torch.cat([part.softmax(0) for part in exact.split(chosen.taken.offsets.diff().tolist())])
            values = torch.cat([picked.key, picked.value], 1)[picked.place]
            by_hand = torch.zeros(len(asked), values.shape[1]).index_add(0, candidate, weights[:, None] * values)
            torch.testing.assert_close(read[:, 0], by_hand, rtol=1e-4, atol=1e-5)


def test_12_cached_projections_are_those_made_in_line():
    ranker, batch = ranker_of("twin"), make_batch(SPEC, [(9, 2), (4, 2)], 2)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        exact = ranker.two_stage.long.exact
        torch.testing.assert_close(state.index.rows, exact.keys(state.past.history.key).flatten(1))
        target = ranker.two_stage.of_items(state.past, batch.candidates)["target"]
        in_line = torch.einsum("nhk,mk->nhm", exact.folded(target), state.past.history.key)
        cached = torch.einsum("nhd,mhd->nhm", exact.queries(target), state.index.rows.view(-1, 2, 4))
    torch.testing.assert_close(cached, in_line, rtol=1e-4, atol=1e-4)


def test_12_with_all_kept_it_is_full_target_attention():
    ranker, batch = ranker_of("twin", kept=1000), make_batch(SPEC, [(30, 4), (5, 2), (0, 1)], 2)
    lengths = batch.histories.lengths[batch.candidates.row]
    first = batch.histories.offsets[batch.candidates.row]
    positions = torch.cat([torch.arange(int(a), int(a + n)) for a, n in zip(first, lengths, strict=True)])
    everything = Selected(torch.arange(8), Taken(positions, lengths_to_offsets(lengths)))
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        target = ranker.two_stage.of_items(state.past, batch.candidates)["target"]
        full, _ = ranker.two_stage.attend(state.past, batch.context, target, everything)
        for query, head, _, _, chosen in searches(ranker, state, batch):
            assert chosen.taken.positions.sort().values.tolist() == positions.sort().values.tolist()
            read = ranker.attend(state, batch.context, query, head, chosen)
            torch.testing.assert_close(read[:, 0], full[:, head], rtol=1e-4, atol=1e-5)


def test_the_search_reads_what_only_a_behaviour_has():
    """Cross features are in the first stage too: action and time of an old behaviour decide whether it is found."""
    ranker, batch = ranker_of("twin", kept=1, heads=1), make_batch(SPEC, [(30, 3)], 2)
    with torch.no_grad():
        found = [next(searches(ranker, ranker.encode(batch.histories), batch))[4]]
        ranker.two_stage.long.bias.side.weight.mul_(-50.0)
        ranker.two_stage.long.bias.gap.weight.mul_(-50.0)
        found.append(next(searches(ranker, ranker.encode(batch.histories), batch))[4])
    assert found[0].taken.positions.tolist() != found[1].taken.positions.tolist()


CLUSTERED = {"cluster_size": 3, "cluster_days": 20.0}


def test_13_clusters_hold_at_most_so_many_and_every_behaviour_once():
    ranker, batch = ranker_of("twin", **CLUSTERED), make_batch(SPEC, [(80, 2), (0, 1), (1, 1), (40, 2)], 2)
    with torch.no_grad():
        ranker.clusters.build(torch.randn(SPEC.num_vector_items, 5, generator=torch.Generator().manual_seed(0)))
        state = ranker.encode(batch.histories)
    history = state.past.history
    assert int(state.size.max()) == 3
    total = torch.zeros(4, dtype=torch.int64).index_add(0, row_index(history.offsets), state.size)
    assert torch.equal(total, batch.histories.lengths)
    assert len(state.size) < 100  # of 121
    for b in range(4):
        times = history.time_ms[int(history.offsets[b]) : int(history.offsets[b + 1])]
        assert (times.diff() >= 0).all()
        opened = int(times[-1]) // ranker.clusters.period_ms if len(times) else 0
        mine = batch.histories.time_ms[int(batch.histories.offsets[b]) : int(batch.histories.offsets[b + 1])]
        alone = state.size[int(history.offsets[b]) : int(history.offsets[b + 1])][
            times // ranker.clusters.period_ms == opened
        ]
        assert (alone == 1).all()
        assert len(alone) == int((mine // ranker.clusters.period_ms == opened).sum())
    weighted = state.past.history.key * state.size[:, None]  # means: sums are those of the behaviours
    plain = ranker_of("twin").encode(batch.histories).past.history.key
    torch.testing.assert_close(weighted.sum(0), plain.sum(0), rtol=1e-4, atol=1e-4)


def test_13_a_cluster_of_n_equal_behaviours_is_n_behaviours():
    ranker, batch = ranker_of("twin", **CLUSTERED, kept=1000, short_recent=1), make_batch(SPEC, [(12, 4)], 5)
    history = batch.histories
    for column in (history.item, history.action, history.value, history.place, *history.fields.values()):
        column[:9] = column[[0, 0, 0, 3, 3, 3, 6, 6, 6]]
    history.category[:9] = history.category[[0, 0, 0, 3, 3, 3, 6, 6, 6]]
    day = 86_400_000
    start = int(batch.context.time_ms[0]) // (20 * day) * 20 * day
    times = [-60, -60, -60, -50, -50, -50, -30, -30, -30, 0, 0, 0]
    history = replace(history, time_ms=start + day * torch.tensor(times) + torch.arange(12) // 9 * torch.arange(12))
    whole = ranker_of("twin", kept=1000, short_recent=1)
    whole.load_state_dict({k: v for k, v in ranker.state_dict().items() if not k.startswith("clusters")})
    with torch.no_grad():
        state = ranker.encode(history)
    assert state.size.tolist() == [3, 3, 3, 1, 1, 1]
    torch.testing.assert_close(logits(ranker, batch, history), logits(whole, batch, history), rtol=1e-5, atol=1e-5)


def test_13_what_is_clustered_is_never_looked_at_again():
    ranker, batch = ranker_of("twin", **CLUSTERED), make_batch(SPEC, [(80, 2)], 2)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        later = replace(batch.histories, time_ms=batch.histories.time_ms + 400 * 86_400_000)
        after = ranker.append(state, later)
    closed = int(
        (
            state.past.history.time_ms // ranker.clusters.period_ms
            < state.past.history.time_ms[-1] // ranker.clusters.period_ms
        ).sum()
    )
    assert closed > 10
    assert torch.equal(after.past.history.key[:closed], state.past.history.key[:closed])
    assert torch.equal(after.size[:closed], state.size[:closed])
    assert isinstance(after, TWINState)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster_size": 1}, "cluster_size must be 0 or at least 2, got 1"),
        ({"cluster_days": 0.0}, "cluster_days must be above 0 and finite, got 0.0"),
        ({"cluster_days": float("inf")}, "cluster_days must be above 0 and finite, got inf"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        ranker_of("twin", **changes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_signal_behind_the_newest_50_is_found(seed, tmp_path):
    check_long_range("twin", tmp_path, seed)
