"""The tower's first layer with the bins folded in: the same logits as the plain form, and never of older parameters."""

from __future__ import annotations

import pytest
import torch
from tests.contract.batches import PREPARED, make_batch, view_of

from sostenuto.models.din import DIN, DINConfig
from sostenuto.native.library import available, using
from sostenuto.training.dense_adamw import DenseAdamW

LIBRARY = next(reversed(available().values()), None)
SPEC = view_of(PREPARED, match=True)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no compiled twins here: install with a C++ compiler at hand")


def ranker_and_batch(**changes):
    torch.manual_seed(0)
    ranker = DIN(DINConfig(**{"tower_units": (16, 8), "field_std": 0.5, **changes}), SPEC)
    with torch.no_grad():
        if ranker.wide is not None:
            ranker.wide.weight.normal_()
    return ranker.eval(), make_batch(SPEC, [(5, 4), (0, 3), (9, 6)], 1)


def logits(ranker, batch, *, form=LIBRARY):
    with using(form), torch.no_grad():
        return ranker(batch.histories, batch.candidates, batch.context).logits


@pytest.mark.parametrize(
    "changes",
    [{}, {"wide": False}, {"tower_units": (24,)}, {"tower_activation": "dice"}, {"tower_activation": "relu"}],
)
def test_the_folded_form_is_the_plain_form(changes):
    ranker, batch = ranker_and_batch(**changes)
    found = logits(ranker, batch)
    assert ranker.requests._folded.value is not None
    torch.testing.assert_close(found, logits(ranker, batch, form=None), rtol=1e-5, atol=1e-5)


def test_without_bins_and_with_gradients_the_plain_form_is_used():
    ranker, batch = ranker_and_batch(bins=0)
    logits(ranker, batch)
    assert ranker.requests._folded.value is None
    ranker, batch = ranker_and_batch()
    with using(LIBRARY):
        ranker(batch.histories, batch.candidates, batch.context).logits.sum().backward()
    assert ranker.requests._folded.value is None
    assert ranker.tower.first.weight.grad.abs().sum() > 0


def halved(ranker):
    other, _ = ranker_and_batch(dropout=0.0)
    other.tower.first.weight.data.mul_(0.5)
    return other


def by_loading(ranker, batch):
    ranker.load_state_dict(halved(ranker).state_dict())


def by_assigning(ranker, batch):
    ranker.load_state_dict(halved(ranker).state_dict(), assign=True)


def by_another_weight(ranker, batch):
    ranker.tower.first.weight = torch.nn.Parameter(ranker.tower.first.weight.detach() * 0.5)


def by_another_wide(ranker, batch):
    ranker.wide = torch.nn.Linear(ranker.requests.num_numbers, 1, bias=False)


def by_no_wide(ranker, batch):
    ranker.wide = None


def by_a_step(ranker, batch):
    """A step of the optimiser in evaluation mode, which is fused and moves no version counter by itself."""
    optimiser = DenseAdamW(dict(ranker.tower.named_parameters()), decay={})
    ranker(batch.histories, batch.candidates, batch.context).logits.sum().backward()
    optimiser.step(0.05)


def by_training(ranker, batch):
    """Scores in training mode between steps keep nothing."""
    ranker.train()
    logits(ranker, batch)
    by_a_step(ranker, batch)
    ranker.eval()


def in_place(name):
    def change(ranker, batch):
        tensors = {**dict(ranker.named_parameters()), **dict(ranker.named_buffers())}
        with torch.no_grad():
            tensors[name].sub_(0.5)

    change.__name__ = name
    return change


@pytest.mark.parametrize(
    "change",
    [
        *map(in_place, ("tower.layers.0.weight", "tower.layers.0.bias", "wide.weight", "requests.bins.low")),
        by_loading,
        by_assigning,
        by_another_weight,
        by_another_wide,
        by_no_wide,
        by_a_step,
        by_training,
    ],
    ids=lambda change: change.__name__,
)
def test_changed_parameters_are_folded_anew(change):
    ranker, batch = ranker_and_batch(dropout=0.0)
    before = logits(ranker, batch)
    with using(LIBRARY):
        change(ranker, batch)
    after = logits(ranker, batch)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, logits(ranker, batch, form=None), rtol=1e-5, atol=1e-5)
