"""Every measurement runs, in turns with its twin, and stands beside the limits of the run."""

import math

import numpy as np
import pytest
import torch

from sostenuto.bench.machine import this_machine
from sostenuto.bench.measurements import MEASUREMENTS, measure
from sostenuto.bench.roofline import roofline
from sostenuto.bench.timing import Timing, time_in_turns
from sostenuto.schema.errors import SpecError


def test_all_are_called_in_turns_and_the_order_turns_round():
    calls: list[str] = []
    forms = [lambda name=name: calls.append(name) for name in ("ours", "plain", "naive")]
    timing = time_in_turns(*forms[:2], rounds=4)
    assert calls[:2] == ["ours", "plain"]  # unmeasured
    assert calls[2:] == ["ours", "plain", "plain", "ours", "ours", "plain", "plain", "ours"]
    assert len(timing.ours_s) == len(timing.plain_s) == 4
    assert timing.naive_ratio is None
    calls.clear()
    assert len(time_in_turns(*forms, rounds=2).naive_s) == 2
    assert calls[3:] == ["ours", "plain", "naive", "naive", "plain", "ours"]


def test_a_short_call_is_repeated_within_a_round():
    calls = {"ours": 0, "plain": 0}

    def count(name: str) -> None:
        calls[name] += 1

    timing = time_in_turns(lambda: count("ours"), lambda: count("plain"), rounds=1, least_s=1e-3)
    assert min(calls.values()) > 10
    assert timing.ours < 1e-3


def test_the_ratio_says_how_many_times_faster_ours_is():
    timing = Timing(ours_s=(1.0, 2.0, 4.0), plain_s=(3.0, 8.0, 8.0), naive_s=(10.0, 10.0, 10.0))
    assert timing.ratio == 3.0
    assert (timing.ours, timing.plain, timing.naive) == (2.0, 8.0, 10.0)
    assert timing.naive_ratio == 5.0


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_runs_below_the_limits_of_the_machine(name, limits):
    found = measure(name, limits, rounds=3, quick=True)
    assert math.isfinite(found.timing.ratio)
    assert found.timing.ratio > 0
    assert 0 < found.share <= 1.3
    assert found.bound.limit in {"compute", "bandwidth", "gather"}
    assert found.operations_per_s * found.timing.ours == pytest.approx(found.work.operations)
    assert found.intensity == pytest.approx(found.operations_per_s / found.bytes_per_s)


@pytest.mark.parametrize("name", [name for name in MEASUREMENTS if name not in {"touched_rows", "match_index", "gauc"}])
def test_ours_and_the_plain_twin_give_the_same(name):
    case = MEASUREMENTS[name].make(MEASUREMENTS[name].quick, 0)
    for first, second in zip(case.ours(), case.plain(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_grouped_auc_is_that_of_the_loop():
    case = MEASUREMENTS["gauc"].make(MEASUREMENTS["gauc"].quick, 0)
    assert float(case.ours()) == pytest.approx(case.plain(), abs=1e-9)


def test_the_match_index_counts_what_the_plain_twin_counts():
    case = MEASUREMENTS["match_index"].make(MEASUREMENTS["match_index"].quick, 0)
    expected = np.array(case.plain())
    features = case.ours()
    np.testing.assert_allclose(np.expm1(features[:, 0]), expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(np.expm1(features[:, 1:3]), expected[:, 2:], atol=1e-5)


def test_the_step_takes_other_rows_every_time():
    case = MEASUREMENTS["touched_rows"].make(MEASUREMENTS["touched_rows"].quick, 0)
    assert case.ours() == MEASUREMENTS["touched_rows"].quick.touched


def test_unknown_measurements_and_no_rounds_are_refused(limits):
    with pytest.raises(SpecError, match=r"got 'gauk'\. Did you mean 'gauc'"):
        measure("gauk", limits)
    with pytest.raises(SpecError, match="rounds must be at least 1, got 0"):
        measure("gauc", limits, rounds=0)


def test_the_roofline_names_every_measurement_and_limit(limits):
    measured = [measure(name, limits, rounds=1, quick=True) for name in ("gauc", "attention_50")]
    drawn = roofline(this_machine(), limits, measured)
    assert drawn.count("<circle") == 2 * len(measured) + 4  # ours and plain, and the key
    for name in ("gauc", "attention_50", "memory", "caches", "torch GEMM", "random rows of 64 B"):
        assert f">{name}" in drawn
