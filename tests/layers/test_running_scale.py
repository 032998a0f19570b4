import torch

from sostenuto.layers.running_scale import RunningScale


def drawn(num, seed):
    values = torch.randn(num, 3, generator=torch.Generator().manual_seed(seed))
    return values * torch.tensor([1.0, 5.0, 0.0]) + torch.tensor([0.0, 100.0, 7.0])


def test_parts_gathered_one_by_one_equal_the_whole():
    scale, parts = RunningScale(3), [drawn(n, n) for n in (40, 1, 200)]
    for part in parts:
        scale(part)
    whole = torch.cat(parts)
    expected = whole - whole.mean(0)
    expected[:, :2] /= whole.std(0, unbiased=False)[:2]
    torch.testing.assert_close(scale.eval()(whole), expected.clamp(-8, 8), rtol=1e-4, atol=1e-4)


def test_before_training_it_is_the_identity():
    values = drawn(5, 0)
    assert torch.equal(RunningScale(3).eval()(values), values)


def test_evaluation_counts_nothing():
    scale = RunningScale(3)
    scale(drawn(50, 0))
    before = {key: value.clone() for key, value in scale.state_dict().items()}
    scale.eval()(drawn(50, 1))
    assert all(torch.equal(before[key], value) for key, value in scale.state_dict().items())


def test_outliers_are_clipped():
    scale = RunningScale(3, limit=3.0)
    scale(drawn(500, 0))
    assert float(scale.eval()(torch.full((1, 3), 1e6)).max()) == 3.0


def test_a_score_does_not_depend_on_its_batch():
    scale = RunningScale(3)
    values = drawn(50, 0)
    scale(values)
    scale.eval()
    assert torch.equal(scale(values)[:1], scale(values[:1]))


def test_no_columns_are_no_trouble():
    assert RunningScale(0)(torch.zeros(4, 0)).shape == (4, 0)
