import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ops.shapes import offsets_of

from sostenuto.ops.backend import library
from sostenuto.ops.product_pooling import product_pooling

requests = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["plain", "compiled"])
@given(requests=requests, width=st.sampled_from([1, 4, 64]))
def test_few_candidates_and_many_read_the_sum_of_a_loop(dtype, requests, width):
    """A width of 1 always makes matrices, one of 64 never."""
    if dtype == torch.float32 and library() is None:
        pytest.skip("the compiled library is not here")
    generator = torch.Generator().manual_seed(0)
    query_offsets, key_offsets = offsets_of([c for c, _ in requests]), offsets_of([n for _, n in requests])
    rows = int(query_offsets[-1]), int(key_offsets[-1])
    query, key = (torch.randn(n, width, generator=generator, dtype=dtype).requires_grad_() for n in rows)
    found = product_pooling(query, query_offsets, key, key_offsets)
    expected = [query.new_zeros(0, width)]
    for b in range(len(requests)):
        mine = key[int(key_offsets[b]) : int(key_offsets[b + 1])]
        for c in range(int(query_offsets[b]), int(query_offsets[b + 1])):
            total = 0.0 * query[c]
            for k in mine:
                total = total + (query[c] @ k) * k
            expected.append(total[None])
    slow = torch.cat(expected)
    torch.testing.assert_close(found, slow, rtol=1e-4, atol=1e-4)
    if all(rows):
        gradients = [
            torch.autograd.grad(out.square().sum(), (query, key), materialize_grads=True) for out in (found, slow)
        ]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)
