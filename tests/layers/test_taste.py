"""Agreement with taste: equal to its formula, exact under appending, blind to the order inside a moment."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.layers.taste import DAY_MS, Taste, TasteState

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=4)


def made(lengths: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *np.cumsum(lengths).tolist()])
    days = [torch.randint(0, 90, (n,), generator=generator).sort().values for n in lengths]
    time_ms = torch.cat(days) * DAY_MS if sum(lengths) else torch.zeros(0, dtype=torch.int64)
    return torch.randn(sum(lengths), 4, generator=generator), offsets, time_ms


@given(LENGTHS, st.integers(0, 99))
def test_agreement_is_the_weighted_mean_times_the_candidate(lengths: list[int], seed: int) -> None:
    vectors, offsets, time_ms = made(lengths, seed)
    torch.manual_seed(seed)
    taste = Taste(2, (7.0,))
    candidates = torch.randn(len(lengths), 4)
    got = taste(taste.encode(vectors, offsets, time_ms), candidates, torch.arange(len(lengths)))
    assert got.shape == (len(lengths), taste.out_dim) == (len(lengths), 4)
    for b, n in enumerate(lengths):
        own = slice(int(offsets[b]), int(offsets[b + 1]))
        want = []
        for half_life in (None, 7.0):
            age = (time_ms[own].max() - time_ms[own]).double() / DAY_MS if n else torch.zeros(0)
            w = torch.ones(n) if half_life is None else 0.5 ** (age / half_life)
            mean = (w.double()[:, None] * vectors[own]).sum(0) / w.sum() if n else torch.zeros(4).double()
            want += [float(mean[:2] @ candidates[b, :2].double()), float(mean[2:] @ candidates[b, 2:].double())]
        torch.testing.assert_close(got[b].double(), torch.tensor(want, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@given(LENGTHS, st.integers(0, 99))
def test_appending_equals_encoding_anew(lengths: list[int], seed: int) -> None:
    vectors, offsets, time_ms = made(lengths, seed)
    taste = Taste(1)
    cut = [n // 2 for n in lengths]

    def encoded(first: bool) -> TasteState:
        parts = [
            torch.arange(int(a), int(a) + c) if first else torch.arange(int(a) + c, int(z))
            for a, z, c in zip(offsets[:-1], offsets[1:], cut, strict=True)
        ]
        rows = torch.cat(parts).long()
        sizes = torch.tensor([0, *np.cumsum([len(p) for p in parts]).tolist()])
        return taste.encode(vectors[rows], sizes, time_ms[rows])

    whole, joined = taste.encode(vectors, offsets, time_ms), taste.append(encoded(True), encoded(False))
    torch.testing.assert_close(joined.sums, whole.sums)
    torch.testing.assert_close(joined.weights, whole.weights)
    torch.testing.assert_close(joined.reference_ms, whole.reference_ms)


def test_states_along_timelines_are_those_of_the_behaviours_before_each_request() -> None:
    torch.manual_seed(0)
    taste = Taste(parts=2)
    offsets = torch.tensor([0, 9, 9, 14])
    time_ms = torch.cat([torch.randint(0, 60 * DAY_MS, (n,)).sort().values for n in (9, 5)])
    vectors = torch.randn(14, 4)
    row = torch.tensor([0, 0, 0, 0, 0, 1, 2, 2])
    prefix = torch.tensor([0, 2, 2, 6, 9, 0, 0, 3])
    found = taste.encode_along(vectors, offsets, time_ms, row, prefix)
    for r, (b, n) in enumerate(zip(row.tolist(), prefix.tolist(), strict=True)):
        here = slice(int(offsets[b]), int(offsets[b]) + n)
        alone = taste.encode(vectors[here], torch.tensor([0, n]), time_ms[here])
        assert found.reference_ms[r] == alone.reference_ms[0]
        torch.testing.assert_close(found.sums[r], alone.sums[0])
        torch.testing.assert_close(found.weights[r], alone.weights[0])
