"""Attention by length buckets against one matrix of all pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.ops import bucketed_attention as module
from sostenuto.ops.bucketed_attention import IdlePlaces, bucketed_attention, length_buckets
from sostenuto.ops.jagged import lengths_to_offsets, position_in_row, row_index
from sostenuto.ops.moments import moment_places


def all_pairs(query, key, value, offsets, visible):
    """Softmax over a matrix of all pairs, the definition."""
    row, place = row_index(offsets), position_in_row(offsets)
    allowed = (row[:, None] == row[None]) & (place[None] < visible[:, None])
    scores = torch.einsum("nhd,mhd->hnm", query, key) / query.shape[2] ** 0.5
    return torch.einsum("hnm,mhd->nhd", scores.masked_fill(~allowed, -1e30).softmax(-1), value)


def rows_of(lengths, seed, *, moments=True):
    generator = torch.Generator().manual_seed(seed)
    offsets = lengths_to_offsets(torch.tensor(lengths))
    total = int(offsets[-1])
    parts = [torch.randn(total, 2, 3, generator=generator, requires_grad=True) for _ in range(3)]
    visible = position_in_row(offsets) + 1
    if moments:
        times = torch.cat([torch.randint(0, 4, (n,), generator=generator).sort().values for n in lengths])
        visible = moment_places(offsets, times).end
    return offsets, visible, parts


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_buckets_equal_a_matrix_of_all_pairs_in_values_and_gradients(lengths, seed):
    offsets, visible, parts = rows_of(lengths, seed)
    ours = bucketed_attention(*parts, length_buckets(offsets, visible))
    slow = all_pairs(*parts, offsets, visible)
    torch.testing.assert_close(ours, slow, rtol=1e-5, atol=1e-5)
    if not ours.numel():
        return
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
    mine = torch.autograd.grad((ours * weight).sum(), parts, retain_graph=True)
    wanted = torch.autograd.grad((slow * weight).sum(), parts)
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), places=st.integers(0, 12), seed=st.integers(0, 99))
def test_idle_places_are_as_many_keys_of_their_own(lengths, places, seed):
    offsets, visible, (query, key, value) = rows_of(lengths, seed)
    generator = torch.Generator().manual_seed(seed)
    nothing = torch.randn(2, 2, 3, generator=generator)
    idle = IdlePlaces(nothing[0], nothing[1], places)
    ours = bucketed_attention(query, key, value, length_buckets(offsets, visible), idle=idle)
    for n, row in enumerate(row_index(offsets).tolist()):
        seen, first = int(visible[n]), int(offsets[row])
        beside = max(places - seen, 0)
        keys = torch.cat([key[first : first + seen], nothing[:1].expand(beside, 2, 3)])
        values = torch.cat([value[first : first + seen], nothing[1:].expand(beside, 2, 3)])
        weights = (torch.einsum("hd,mhd->hm", query[n], keys) / 3**0.5).softmax(1)
        torch.testing.assert_close(ours[n], torch.einsum("hm,mhd->hd", weights, values), rtol=1e-4, atol=1e-5)


def test_strips_and_small_calls_change_no_number(monkeypatch):
    offsets, visible, parts = rows_of([33, 0, 18, 5, 40, 40], 3)
    whole = bucketed_attention(*parts, length_buckets(offsets, visible))
    monkeypatch.setattr(module, "STRIP", 7)
    monkeypatch.setattr(module, "MOST_SCORES", 300)
    torch.testing.assert_close(bucketed_attention(*parts, length_buckets(offsets, visible)), whole)


@pytest.mark.slow
def test_ten_thousand_behaviours_need_no_matrix_of_all_pairs():
    from sostenuto.training.memory import LiveBytes

    offsets, visible, parts = rows_of([10_000], 0, moments=False)
    with torch.no_grad(), LiveBytes() as live:
        bucketed_attention(*(part.detach() for part in parts), length_buckets(offsets, visible))
    assert live.most < 10_000 * 10_000 / 4  # a matrix of booleans alone would take four times that
