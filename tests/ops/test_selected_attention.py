import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ops.shapes import lengths_lists, offsets_of

from sostenuto.ops import selected_attention as module
from sostenuto.ops.selected_attention import selected_attention


@pytest.mark.parametrize("most", [1, 1 << 25])
@given(lengths=lengths_lists, heads=st.integers(1, 3), values=st.integers(0, 2), biased=st.booleans())
def test_it_is_a_softmax_over_each_candidates_own_behaviours(most, lengths, heads, values, biased):
    generator = torch.Generator().manual_seed(0)
    offsets, count = offsets_of(lengths), len(lengths)
    query = torch.randn(count, heads, 4, generator=generator)
    key = torch.randn(6, 4, generator=generator).requires_grad_()
    value = torch.randn(6, values, generator=generator)
    bias = torch.randn(6, heads, generator=generator) if biased else None
    place = torch.randint(0, 6, (int(offsets[-1]),), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_NUMBERS", most)
        found = selected_attention(query, key, bias, value, place, offsets, with_key=True)
    both = torch.cat([key, value], 1)
    expected = torch.zeros(count, heads, 4 + values)
    for c in range(count):
        mine = place[int(offsets[c]) : int(offsets[c + 1])]
        for h in range(heads if len(mine) else 0):
            scores = key[mine] @ query[c, h] + (bias[mine, h] if bias is not None else 0.0)
            expected[c, h] = scores.softmax(0) @ both[mine]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if sum(lengths):
        mine, plain = (torch.autograd.grad(out.square().sum(), key)[0] for out in (found, expected))
        torch.testing.assert_close(mine.to_dense(), plain, rtol=1e-4, atol=1e-4)


def test_candidates_that_found_nothing_read_zeros_and_leave_gradients_of_zero():
    query, key = torch.randn(2, 2, 3, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    found = selected_attention(query, key, None, torch.zeros(0, 1), none, torch.zeros(3, dtype=torch.int64))
    assert found.shape == (2, 2, 1)
    assert not found.any()
    found.sum().backward()
    assert not query.grad.any()
