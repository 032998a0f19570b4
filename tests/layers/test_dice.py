import torch
from torch.nn import functional as F

from sostenuto.layers.dice import Dice


def drawn(num=400, dim=3, shift=0.0):
    return shift + torch.randn(num, dim, generator=torch.Generator().manual_seed(0))


def test_without_spread_it_is_a_prelu():
    """dien.md section 7, property 9."""
    dice = Dice(3).eval()
    with torch.no_grad():
        dice.alpha.fill_(0.2)
    dice.running_var.zero_()
    values = drawn()
    torch.testing.assert_close(dice(values), F.prelu(values, torch.tensor([0.2])), rtol=1e-4, atol=2e-4)


def test_alpha_one_is_the_identity():
    dice = Dice(3)
    with torch.no_grad():
        dice.alpha.fill_(1.0)
    values = drawn(shift=5.0)
    torch.testing.assert_close(dice(values), values)


def test_training_uses_the_batch_and_evaluation_what_was_stored():
    dice = Dice(3)
    values = drawn(shift=2.0)
    in_training = dice(values)
    assert not torch.allclose(in_training, dice.eval()(values))
    dice.train()
    for _ in range(200):
        dice(values)
    torch.testing.assert_close(dice.eval()(values), in_training, rtol=1e-3, atol=1e-3)


def test_evaluation_of_a_row_does_not_depend_on_its_batch():
    dice = Dice(3).eval()
    values = drawn()
    torch.testing.assert_close(dice(values)[:1], dice(values[:1]))


def test_one_row_in_training_uses_what_was_stored():
    dice = Dice(3)
    values = drawn(1)
    torch.testing.assert_close(dice(values), dice.eval()(values))
    assert not dice.running_mean.any()
