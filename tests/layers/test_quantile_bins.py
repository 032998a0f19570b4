"""Piecewise-linear bins: monotone, bounded, equal to the formula, finer where the data are."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.layers.quantile_bins import QuantileBins

NUMBERS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30)


@given(NUMBERS, st.integers(1, 6))
def test_columns_are_the_formula(values: list[float], bins: int) -> None:
    sample = torch.tensor(values)[:, None]
    layer = QuantileBins(1, bins)
    layer.calibrate(sample)
    got = layer(sample)
    assert got.shape == (len(values), bins)
    for row, x in zip(got, values, strict=True):
        want = [
            float(np.clip((np.float32(x) - low) / max(width, np.float32(1e-6)), 0, 1))
            for low, width in zip(layer.low[0].numpy(), layer.width[0].numpy(), strict=True)
        ]
        np.testing.assert_allclose(row.numpy(), want, atol=1e-5)


@given(NUMBERS)
def test_the_sum_of_columns_rises_with_the_number(values: list[float]) -> None:
    layer = QuantileBins(1, 5)
    layer.calibrate(torch.tensor(values)[:, None])
    rising = layer(torch.linspace(-60, 60, 200)[:, None])
    assert (rising[1:] - rising[:-1] >= 0).all()
    assert (rising >= 0).all()
    assert (rising <= 1).all()


def test_mostly_zero_counts_still_get_fine_bins() -> None:
    counts = torch.cat([torch.zeros(900), torch.arange(1, 101).float()])[:, None]
    layer = QuantileBins(1, 10)
    layer.calibrate(counts)
    assert len(set(layer.low[0].tolist())) == 10
    assert float(layer(torch.tensor([[50.0]])).sum()) > float(layer(torch.tensor([[20.0]])).sum()) + 2


def test_a_constant_column_is_harmless() -> None:
    layer = QuantileBins(2, 3)
    layer.calibrate(torch.tensor([[1.0, 5.0], [1.0, 6.0]]))
    assert torch.isfinite(layer(torch.tensor([[1.0, 5.5], [9.0, -3.0]]))).all()
