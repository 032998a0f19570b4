import math

import numpy as np
import pytest
import torch

from sostenuto.bench.measurements import MEASUREMENTS, measure
from sostenuto.bench.timing import Timing, time_in_turns
from sostenuto.schema.errors import SpecError


def test_both_are_called_in_turns_and_the_first_changes():
    calls: list[str] = []
    timing = time_in_turns(lambda: calls.append("ours"), lambda: calls.append("plain"), rounds=4)
    assert calls[:2] == ["ours", "plain"]  # unmeasured
    assert calls[2:] == ["ours", "plain", "plain", "ours", "ours", "plain", "plain", "ours"]
    assert len(timing.ours_s) == len(timing.plain_s) == 4


def test_the_ratio_says_how_many_times_faster_ours_is():
    timing = Timing(ours_s=(1.0, 2.0, 4.0), plain_s=(3.0, 8.0, 8.0))
    assert timing.ratio == 3.0
    assert (timing.ours, timing.plain) == (2.0, 8.0)


@pytest.mark.parametrize("name", sorted(MEASUREMENTS))
def test_every_measurement_runs(name):
    timing = measure(name, rounds=1)
    assert math.isfinite(timing.ratio)
    assert timing.ratio > 0


@pytest.mark.parametrize("name", ["gauc", "target_attention"])
def test_ours_and_the_plain_twin_give_the_same(name):
    ours, plain = MEASUREMENTS[name].make(0)
    first, second = ours(), plain()
    if name == "gauc":
        assert float(first) == pytest.approx(second, abs=1e-9)
    else:
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_the_match_index_counts_what_the_plain_twin_counts():
    ours, plain = MEASUREMENTS["match_index"].make(0)
    expected = np.array(plain())
    features = ours()
    np.testing.assert_allclose(np.expm1(features[:, 0]), expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(np.expm1(features[:, 1:3]), expected[:, 2:], atol=1e-5)


def test_unknown_measurements_are_refused():
    with pytest.raises(SpecError, match=r"got 'gauk'\. Did you mean 'gauc'"):
        measure("gauk")
