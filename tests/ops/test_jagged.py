import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ops.shapes import lengths_lists, offsets_of

from sostenuto.ops.jagged import (
    from_padded,
    interleave_rows,
    lengths_to_offsets,
    newest,
    newest_moments,
    offsets_to_lengths,
    position_in_row,
    row_index,
    segment_mean,
    segment_softmax,
    segment_sum,
    to_padded,
)


def rows_of(values, offsets):
    return [values[int(a) : int(b)] for a, b in itertools.pairwise(offsets)]


def numbers(num, seed, *shape):
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(lengths_lists)
def test_lengths_and_offsets_are_inverse(lengths):
    offsets = lengths_to_offsets(torch.tensor(lengths, dtype=torch.int64))
    assert torch.equal(offsets, offsets_of(lengths))
    assert offsets_to_lengths(offsets).tolist() == lengths


@given(lengths_lists)
def test_every_value_knows_its_row_and_place(lengths):
    offsets = offsets_of(lengths)
    assert row_index(offsets).tolist() == [b for b, length in enumerate(lengths) for _ in range(length)]
    assert position_in_row(offsets).tolist() == [j for length in lengths for j in range(length)]


@given(lengths_lists, st.integers(0, 99), st.booleans())
def test_segment_sums_and_means_equal_a_loop(lengths, seed, exact):
    offsets, values = offsets_of(lengths), numbers(sum(lengths), seed, 2)
    for row, total, mean in zip(
        rows_of(values, offsets),
        segment_sum(values, offsets, exact=exact),
        segment_mean(values, offsets, exact=exact),
        strict=True,
    ):
        torch.testing.assert_close(total, row.sum(0))
        torch.testing.assert_close(mean, row.mean(0) if len(row) else torch.zeros(2, dtype=torch.float64))


def test_an_exact_sum_keeps_small_terms_beside_a_large_one():
    values = torch.cat([torch.tensor([1e8]), torch.full((4000,), 0.5), torch.tensor([-1e8])])
    assert float(segment_sum(values, torch.tensor([0, 4002]), exact=True)) == 2000.0


@given(lengths_lists, st.integers(0, 99))
def test_segment_softmax_equals_softmax_of_each_row(lengths, seed):
    offsets, values = offsets_of(lengths), 30 * numbers(sum(lengths), seed)
    expected = [row.softmax(0) for row in rows_of(values, offsets)]
    torch.testing.assert_close(segment_softmax(values, offsets), torch.cat([values[:0], *expected]))


@given(lengths_lists, st.integers(0, 3))
def test_padding_and_back_changes_nothing(lengths, extra):
    offsets, values = offsets_of(lengths), numbers(sum(lengths), 1, 3)
    padded, mask = to_padded(values, offsets, length=max(lengths, default=0) + extra)
    assert mask.sum(1).tolist() == lengths
    assert not padded[~mask].any()
    back, starts = from_padded(padded, mask)
    assert torch.equal(back, values)
    assert torch.equal(starts, offsets)


def test_padding_never_cuts_a_row():
    with pytest.raises(ValueError, match="at least the longest row, 3, got 2"):
        to_padded(torch.zeros(3), torch.tensor([0, 3]), length=2)


@given(lengths_lists, st.integers(0, 8))
def test_newest_takes_the_end_of_every_row(lengths, count):
    offsets = offsets_of(lengths)
    taken = newest(offsets, count)
    values = torch.arange(sum(lengths))
    for row, kept in zip(rows_of(values, offsets), rows_of(values[taken.positions], taken.offsets), strict=True):
        assert kept.tolist() == row.tolist()[max(0, len(row) - count) :]


@given(lengths_lists, st.integers(0, 8), st.integers(0, 99))
def test_newest_moments_keeps_moments_whole(lengths, count, seed):
    offsets = offsets_of(lengths)
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 4, (length,), generator=generator).sort().values for length in lengths]
    time_ms = torch.cat([torch.zeros(0, dtype=torch.int64), *rows])
    taken = newest_moments(offsets, time_ms, count)
    for row, kept in zip(rows, rows_of(time_ms[taken.positions], taken.offsets), strict=True):
        expected = row[row >= row[-min(count, len(row))]] if count and len(row) else row[:0]
        assert kept.tolist() == expected.tolist()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=4))
def test_interleaving_puts_second_rows_behind_first_rows(pairs):
    first, second = offsets_of([a for a, _ in pairs]), offsets_of([b for _, b in pairs])
    values = torch.arange(int(first[-1] + second[-1]))
    positions, offsets = interleave_rows(first, second)
    joined = rows_of(values[positions], offsets)
    expected = zip(rows_of(values[: int(first[-1])], first), rows_of(values[int(first[-1]) :], second), strict=True)
    for row, (a, b) in zip(joined, expected, strict=True):
        assert row.tolist() == a.tolist() + b.tolist()
