"""Moments of jagged rows against a loop."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.ops.jagged import lengths_to_offsets
from sostenuto.ops.moments import moment_places

ROWS = st.lists(st.lists(st.integers(0, 4), max_size=7).map(sorted), max_size=5)


@given(rows=ROWS)
def test_moments_equal_a_loop(rows):
    offsets = lengths_to_offsets(torch.tensor([len(row) for row in rows], dtype=torch.int64))
    flat = torch.tensor(list(itertools.chain(*rows)), dtype=torch.int64)
    found = moment_places(offsets, flat)
    index, end, start, sizes = [], [], [], []
    for row in rows:
        for time in row:
            index.append(len({other for other in row if other < time}))
            end.append(sum(other <= time for other in row))
            start.append(sum(other < time for other in row))
        sizes += [len(list(group)) for _, group in itertools.groupby(row)]
    assert found.index.tolist() == index
    assert found.end.tolist() == end
    assert found.start.tolist() == start
    assert found.size.tolist() == sizes


@given(rows=ROWS)
def test_a_mean_over_a_moment_forgets_the_order_inside_it(rows):
    offsets = lengths_to_offsets(torch.tensor([len(row) for row in rows], dtype=torch.int64))
    flat = torch.tensor(list(itertools.chain(*rows)), dtype=torch.int64)
    values = torch.arange(len(flat) * 2.0).view(-1, 2)
    found = moment_places(offsets, flat)
    mean = found.mean(values)
    for number in range(len(found.size)):
        torch.testing.assert_close(mean[number], values[found.moment == number].mean(0))


def test_starts_of_moments_count_what_is_strictly_earlier():
    offsets = torch.tensor([0, 4, 4, 7])
    time_ms = torch.tensor([5, 5, 8, 9, 9, 9, 10])
    assert moment_places(offsets, time_ms).start.tolist() == [0, 0, 2, 3, 0, 0, 2]
    assert moment_places(torch.tensor([0, 0]), time_ms[:0]).start.tolist() == []


@given(rows=ROWS)
def test_moments_from_the_end_are_those_of_the_row_turned_round(rows):
    offsets = lengths_to_offsets(torch.tensor([len(row) for row in rows], dtype=torch.int64))
    flat = torch.tensor(list(itertools.chain(*rows)), dtype=torch.int64)
    found = moment_places(offsets, flat).from_end(offsets).tolist()
    expected = [len({t for t in row if t > time}) for row in rows for time in row]
    assert found == expected


def test_what_a_prefix_asks_with_is_its_last_moment():
    offsets = torch.tensor([0, 3, 3, 5])
    found = moment_places(offsets, torch.tensor([1, 1, 2, 7, 7]))
    asked = found.asked(torch.tensor([0, 0, 0, 3, 3, 3]), torch.tensor([0, 2, 3, 0, 0, 2]))
    assert asked.tolist() == [0, 1, 2, 0, 0, 3]  # 0 stands for the empty history
