"""The tower's first layer with the bins folded in: the same logits as the plain form, and never of older parameters."""

from __future__ import annotations

import pytest
import torch
from tests.contract.batches import PREPARED, make_batch, view_of

from sostenuto.models.din import DIN, DINConfig
from sostenuto.native.library import available, using

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
    assert ranker.requests._folded._held is not None
    torch.testing.assert_close(found, logits(ranker, batch, form=None), rtol=1e-5, atol=1e-5)


def test_without_bins_and_with_gradients_the_plain_form_is_used():
    ranker, batch = ranker_and_batch(bins=0)
    logits(ranker, batch)
    assert ranker.requests._folded._held is None
    ranker, batch = ranker_and_batch()
    with using(LIBRARY):
        ranker(batch.histories, batch.candidates, batch.context).logits.sum().backward()
    assert ranker.requests._folded._held is None
    assert ranker.tower.first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("changed", ["weight", "bias", "wide", "knots", "loading"])
def test_changed_parameters_are_folded_anew(changed):
    ranker, batch = ranker_and_batch()
    before = logits(ranker, batch)
    with torch.no_grad():
        match changed:
            case "weight":
                ranker.tower.first.weight.mul_(1.5)
            case "bias":
                ranker.tower.first.bias.add_(1.0)
            case "wide":
                ranker.wide.weight.mul_(2.0)
            case "knots":
                ranker.requests.bins.low.sub_(0.5)
            case "loading":
                other, _ = ranker_and_batch(field_std=0.1)
                other.tower.first.weight.data.mul_(2.0)
                ranker.load_state_dict(other.state_dict())
    after = logits(ranker, batch)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, logits(ranker, batch, form=None), rtol=1e-5, atol=1e-5)
