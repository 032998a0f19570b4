import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.ops.selection import select_newest, select_top

ROWS = st.lists(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 3)), max_size=8), min_size=1)


def flat(rows):
    """Return scores, mask, times that never fall, offsets."""
    times = [t for row in rows for t in torch.tensor([step for *_, step in row]).cumsum(0).tolist()]
    offsets = torch.tensor([0, *torch.tensor([len(r) for r in rows]).cumsum(0).tolist()])
    scores = torch.tensor([s for row in rows for s, *_ in row], dtype=torch.float32)
    mask = torch.tensor([m for row in rows for _, m, _ in row], dtype=torch.bool)
    return scores, mask, torch.tensor(times, dtype=torch.int64), offsets


def by_row(taken):
    bounds = taken.offsets.tolist()
    return [taken.positions[a:b].tolist() for a, b in itertools.pairwise(bounds)]


@given(ROWS, st.integers(1, 5))
def test_the_newest_of_a_mask_are_whole_moments(rows, count):
    _, mask, times, offsets = flat(rows)
    found = by_row(select_newest(mask, offsets, times, count))
    for r in range(len(rows)):
        inside = [i for i in range(int(offsets[r]), int(offsets[r + 1])) if mask[i]]
        cut = sorted((int(times[i]) for i in inside), reverse=True)[:count]
        assert found[r] == [i for i in inside if int(times[i]) >= cut[-1]]


@given(ROWS)
def test_without_a_count_all_of_the_mask_is_taken(rows):
    _, mask, times, offsets = flat(rows)
    assert select_newest(mask, offsets, times, None).positions.tolist() == mask.nonzero().flatten().tolist()


@given(ROWS, st.integers(1, 5), st.booleans())
def test_the_top_come_best_first_and_ties_go_to_the_newer(rows, count, masked):
    scores, mask, _, offsets = flat(rows)
    found = by_row(select_top(scores, offsets, count, mask if masked else None))
    for r in range(len(rows)):
        inside = [i for i in range(int(offsets[r]), int(offsets[r + 1])) if mask[i] or not masked]
        assert found[r] == sorted(inside, key=lambda i: (-float(scores[i]), -i))[:count]
