"""Merging the lists of heads is ranking by the best head."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.ops.head_merge import merge_heads


def drawn_scores(users, heads, items, seed, closed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(users, heads, items, generator=generator)
    return scores.masked_fill(torch.rand(users, heads, items, generator=generator) < closed, -torch.inf)


@given(
    users=st.integers(1, 3),
    heads=st.integers(1, 4),
    items=st.integers(1, 12),
    k=st.integers(1, 14),
    seed=st.integers(0, 999),
    closed=st.sampled_from([0.0, 0.4, 0.9, 1.0]),
)
def test_the_merged_list_is_the_top_of_the_maximum_over_heads_without_repeats(users, heads, items, k, seed, closed):
    scores = drawn_scores(users, heads, items, seed, closed)
    merged = merge_heads(scores, k)
    best = scores.amax(1)
    for b in range(users):
        order = sorted(range(items), key=lambda i: -float(best[b, i]))
        expected = [i for i in order if best[b, i] > -torch.inf][:k]
        found = merged.item[b].tolist()
        assert found == expected + [-1] * (min(k, items) - len(expected))
        for place, item in enumerate(expected):
            head = int(merged.head[b, place])
            assert scores[b, head, item] == best[b, item] == merged.score[b, place]
        assert (merged.head[b, len(expected) :] == -1).all()


def test_of_equal_heads_one_stays():
    scores = torch.tensor([[[1.0, 2.0, 3.0]] * 3])
    assert merge_heads(scores, 3).item.tolist() == [[2, 1, 0]]
