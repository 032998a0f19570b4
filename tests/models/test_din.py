import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import PREPARED, batches, make_batch, shuffle_moments, split_history, take_history, view_of

from sostenuto.models.din import DIN, DINConfig
from sostenuto.schema.errors import SpecError
from sostenuto.schema.histories import History

SPEC = view_of(PREPARED, match=True)


def din(seed=0, **changes):
    torch.manual_seed(seed)
    small = {"item_dim": 6, "category_dim": 3, "field_dim": 3, "attention_units": (8,), "tower_units": (8,)}
    ranker = DIN(DINConfig(**{**small, "table_std": 0.5, **changes}), SPEC)
    with torch.no_grad():
        if ranker.wide is not None:
            ranker.wide.weight.normal_()
    return ranker.eval()


def logits(ranker, batch, histories=None):
    with torch.no_grad():
        return ranker(batch.histories if histories is None else histories, batch.candidates, batch.context).logits


def reversed_items(history: History) -> History:
    """Let the items of each row happen in the opposite order, at the same times."""
    order = torch.cat([torch.arange(int(a), int(b)).flip(0) for a, b in itertools.pairwise(history.offsets)])
    turned = take_history(history, order, history.lengths)
    return replace(turned, time_ms=history.time_ms)


VARIANTS = {
    "deep unit": {"attention_units": (8, 5)},
    "relu": {"attention_activation": "relu"},
    "paper": {"normalise": "none", "wide": False, "gap_values": False},
    "softmax": {"normalise": "softmax"},
    "newest 3": {"short_recent": 3},
    "no identity": {"item_dim": 0},
    "relu tower": {"tower_activation": "relu", "dropout": 0.1, "embedding_dropout": 0.1, "id_dropout": 0.1},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=8)
@given(batch=batches(SPEC), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_variant_keeps_the_laws(changes, batch, share, seed):
    ranker = din(**changes)
    whole = logits(ranker, batch)
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(
        logits(ranker, batch, shuffle_moments(batch.histories, seed)), whole, rtol=1e-5, atol=1e-5
    )
    early, later = split_history(batch.histories, share)
    with torch.no_grad():
        state = ranker.append(ranker.encode(early), later)
        folded = ranker.score(state, batch.candidates, batch.context).logits
    torch.testing.assert_close(folded, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_trains(changes):
    ranker, batch = din(**changes).train(), make_batch(SPEC, [(5, 3), (0, 2)], 0)
    ranker(batch.histories, batch.candidates, batch.context).logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad.to_dense()).all() for p in ranker.parameters())


def test_behaviours_are_a_set_but_their_times_count():
    """dien.md section 7, property 6, DIN's side: only what is said of a behaviour matters, not its place in a row."""
    ranker, batch = din(), make_batch(SPEC, [(7, 4), (5, 2)], 1)
    blind = replace(batch.histories, time_ms=torch.full_like(batch.histories.time_ms, 1_400_000_000_000))
    blind_logits = logits(ranker, batch, blind)
    torch.testing.assert_close(logits(ranker, batch, reversed_items(blind)), blind_logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(ranker, batch, reversed_items(batch.histories)), logits(ranker, batch))


@pytest.mark.parametrize("column", ["item", "category", "time_ms", "action", "value", "place", "channel", "brand"])
def test_every_column_of_a_behaviour_matters(column):
    ranker, batch = din(), make_batch(SPEC, [(7, 4), (5, 2)], 1)
    history = batch.histories
    if column in history.fields:
        other = replace(history, fields={**history.fields, column: (history.fields[column] + 1) % 4})
    elif column == "time_ms":
        other = replace(history, time_ms=history.time_ms - 3_000_000_000)
    elif column == "value":
        other = replace(history, value=torch.nan_to_num(history.value) + 5)
    else:
        other = replace(history, **{column: (getattr(history, column) + 1) % 4})
    assert not torch.allclose(logits(ranker, batch, other), logits(ranker, batch), atol=1e-6)


@pytest.mark.parametrize("column", ["time_ms", "place", "device", "age"])
def test_the_request_matters(column):
    ranker, batch = din(), make_batch(SPEC, [(7, 4), (5, 2)], 1)
    context = batch.context
    if column in context.fields:
        other = replace(context, fields={**context.fields, column: (context.fields[column] + 1) % 4})
    else:
        other = replace(context, **{column: getattr(context, column) + (1 if column == "place" else 10**9)})
    changed = replace(batch, context=other)
    assert not torch.allclose(logits(ranker, changed), logits(ranker, batch), atol=1e-6)


def test_the_wide_path_is_a_linear_model_of_match_features():
    ranker, batch = din(bins=0), make_batch(SPEC, [(3, 4)], 1)
    with torch.no_grad():
        for parameter in ranker.tower.parameters():
            parameter.zero_()
        bump = batch.candidates.match.clone()
        bump[:, 2] += 1.0
        changed = replace(batch, candidates=replace(batch.candidates, match=bump))
    difference = logits(ranker, changed) - logits(ranker, batch)
    torch.testing.assert_close(difference, ranker.wide.weight[0, 2].detach().expand(4), rtol=1e-4, atol=1e-5)


def test_a_fresh_wide_path_says_nothing():
    ranker = DIN(DINConfig(), SPEC)
    assert not ranker.wide.weight.any()


def test_only_the_newest_behaviours_are_kept_when_asked():
    ranker, batch = din(short_recent=2), make_batch(SPEC, [(9, 2), (1, 1), (0, 1)], 3)
    state = ranker.encode(batch.histories).history
    assert state.lengths.tolist()[1:] == [1, 0]
    assert 2 <= int(state.lengths[0]) < 9
    oldest = take_history(batch.histories, torch.arange(8), torch.tensor([8, 0, 0]))
    assert int(ranker.encode(oldest).history.lengths[0]) <= 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalise": "mean"}, "normalise must be one of none, softmax, sqrt_length, got 'mean'"),
        ({"attention_units": ()}, "attention_units must be one or more widths"),
        ({"tower_activation": "tanh"}, "tower_activation must be one of"),
        ({"short_recent": 0}, "short_recent must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        DINConfig(**changes)
