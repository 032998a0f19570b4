"""muse.md, B1 and property 10: SIM with hard search."""

import itertools

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
    logits,
    ranker_of,
)

from sostenuto.layers.selector import NOTHING
from sostenuto.schema.errors import SpecError


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=8, deadline=None)
@given(batch=batches(SPEC), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_variant_keeps_the_laws(changes, batch, share, seed):
    check_laws(ranker_of("sim_hard", **changes), batch, share, seed)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_trains(changes):
    check_trains(ranker_of("sim_hard", **changes), make_batch(SPEC, [(5, 3), (0, 2)], 0))


def test_what_is_kept_of_items_changes_no_score():
    check_kept_items(ranker_of("sim_hard"), make_batch(SPEC, [(7, 4), (0, 2)], 1))


def chosen_rows(ranker, batch):
    state = ranker.encode(batch.histories)
    kinds = ranker._kind(batch.candidates.item, batch.candidates.category)
    taken = ranker.selector.select(kinds, batch.candidates.offsets, state.tree).taken
    bounds = taken.offsets.tolist()
    return kinds, [taken.positions[a:b].tolist() for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("kept", [1, 3, 50])
def test_10_every_chosen_behaviour_has_the_category_of_the_target_the_newest_first_as_by_a_loop(kept):
    ranker, batch = ranker_of("sim_hard", kept=kept), make_batch(SPEC, [(60, 5), (0, 2), (40, 4)], 2)
    history = batch.histories
    kinds, rows = chosen_rows(ranker, batch)
    own = ranker._kind(history.item, history.category)
    cut = False
    for c, found in enumerate(rows):
        b = int(batch.candidates.row[c])
        expected = []
        for j in reversed(range(int(history.offsets[b]), int(history.offsets[b + 1]))):
            if own[j] != kinds[c] or kinds[c] == NOTHING:
                continue
            if len(expected) >= kept and history.time_ms[j] != history.time_ms[expected[-1]]:
                cut = True
                break
            expected.append(j)
        assert found == expected
    assert cut == (kept < 50)
    assert any(rows)


def test_10_a_candidate_without_category_finds_its_own_item_and_an_unknown_one_nothing():
    ranker, batch = ranker_of("sim_hard"), make_batch(SPEC, [(30, 3)], 3)
    candidates, history = batch.candidates, batch.histories
    history.category[:4, 1] = torch.tensor([0, 0, 1, 5])
    history.item[:4] = torch.tensor([7, 1, 8, 7])
    candidates.category[:, 1] = torch.tensor([0, 1, 0])
    candidates.item[:] = torch.tensor([7, 8, 1])
    _, rows = chosen_rows(ranker, batch)
    finest = history.category[:, 1]
    assert all(finest[j] < 2 and history.item[j] == 7 for j in rows[0])
    assert 0 in rows[0]
    assert 2 in rows[1]
    assert rows[2] == []


def test_other_categories_reach_a_score_through_the_newest_behaviours_only():
    """Only what was found enters the long branch: an old behaviour of another category moves nothing."""
    ranker, batch = (
        ranker_of("sim_hard", short_recent=1, vector_dim=0, key_vector_dim=0),
        make_batch(SPEC, [(20, 6)], 1),
    )
    history = batch.histories
    history.time_ms[-1] += 3_600_000  # the newest moment holds one behaviour
    kinds = ranker._kind(history.item, history.category)
    asked = set(ranker._kind(batch.candidates.item, batch.candidates.category).tolist())
    others = [j for j in range(19) if int(kinds[j]) not in asked]
    same = [j for j in range(19) if int(kinds[j]) in asked]
    assert others
    assert same
    before = logits(ranker, batch)
    history.action[others] = (history.action[others] + 1) % 4
    assert torch.equal(logits(ranker, batch), before)
    history.action[same] = (history.action[same] + 1) % 4
    assert not torch.equal(logits(ranker, batch), before)


@pytest.mark.parametrize("name", ["kept", "heads", "head_dim", "gain"])
def test_nonsense_is_refused(name):
    with pytest.raises(SpecError, match=f"SIMHardConfig.{name} must be"):
        ranker_of("sim_hard", **{name: 0})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_signal_behind_the_newest_50_is_found(seed, tmp_path):
    check_long_range("sim_hard", tmp_path, seed)
