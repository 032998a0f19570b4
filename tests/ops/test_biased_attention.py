import pytest
import torch

from sostenuto.ops.backend import library
from sostenuto.ops.biased_attention import biased_attention


def slow(query, query_offsets, key, key_offsets, value, bias):
    out = []
    for b in range(len(query_offsets) - 1):
        rows = slice(int(key_offsets[b]), int(key_offsets[b + 1]))
        for c in range(int(query_offsets[b]), int(query_offsets[b + 1])):
            weights = (key[rows] @ query[c] + bias[rows]).softmax(0)
            out.append(weights @ value[rows])
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["plain", "compiled"])
def test_values_and_gradients_equal_a_loop(dtype):
    if dtype == torch.float32 and library() is None:
        pytest.skip("the compiled library is not here")
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    query_offsets, key_offsets = torch.tensor([0, 3, 3, 5, 6]), torch.tensor([0, 7, 9, 9, 40])
    inputs = draw(6, 4), draw(40, 4), draw(40, 3), draw(40)
    results = []
    for form in (biased_attention, slow):
        query, key, value, bias = inputs
        found = form(query, query_offsets, key, key_offsets, value, bias)
        weight = torch.arange(found.numel(), dtype=dtype).view_as(found)
        results.append((found, torch.autograd.grad((found * weight).sum(), inputs)))
    (a, da), (b, db) = results
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for x, y in zip(da, db, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=2e-4)


def test_a_very_low_bias_takes_a_behaviour_out():
    query, key, value = torch.ones(1, 2), torch.randn(3, 2), torch.tensor([[1.0], [2.0], [400.0]])
    one, three, two = (torch.tensor([0, n]) for n in (1, 3, 2))
    out = biased_attention(query, one, key, three, value, torch.tensor([0.0, 0.5, -1e9]))
    kept = biased_attention(query, one, key[:2], two, value[:2], torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(out, kept)
