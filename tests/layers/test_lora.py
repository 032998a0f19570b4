"""The low-rank map: exact where its base comes from a cache, cheap where it is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sostenuto.layers.lora import LoRALinear
from sostenuto.schema.errors import SpecError


def made(in_dim=12, out_dim=5, rank=3, trained=True):
    torch.manual_seed(0)
    layer = LoRALinear(in_dim, out_dim, rank=rank, alpha=6.0)
    layer.set_base(torch.randn(out_dim, in_dim), torch.randn(out_dim))
    if trained and layer.b is not None:
        with torch.no_grad():
            layer.b.normal_()
    return layer


def test_at_the_start_it_is_its_frozen_base_exactly():
    """em3.md section 9, property 5."""
    layer, features = made(trained=False), torch.randn(7, 12)
    assert torch.equal(layer(features), nn.functional.linear(features, layer.weight, layer.bias))


def test_only_the_two_thin_matrices_are_trained():
    """em3.md section 9, property 5: r (d_in + d_out) numbers, and the base gets no gradient."""
    layer, features = made(), torch.randn(7, 12)
    assert sum(p.numel() for p in layer.parameters()) == 3 * (12 + 5)
    before = layer.weight.clone()
    layer(features).square().sum().backward()
    assert not layer.weight.requires_grad
    assert layer.weight.grad is None
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert torch.equal(layer.weight, before)


def test_after_training_the_two_branches_merge_into_one_matrix():
    """em3.md section 9, property 5."""
    layer, features, wanted = made(trained=False), torch.randn(40, 12), torch.randn(40, 5)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(30):
        optimiser.zero_grad()
        (layer(features) - wanted).square().mean().backward()
        optimiser.step()
    assert layer.b.abs().max() > 0.1
    weight, bias = layer.merged()
    torch.testing.assert_close(nn.functional.linear(features, weight, bias), layer(features), rtol=1e-5, atol=1e-5)


def test_the_cached_path_gives_the_same_values_and_gradients():
    """em3.md section 9, property 6."""
    layer, table, index = made(), torch.randn(20, 12), torch.tensor([3, 3, 0, 19, 7])
    upstream = torch.randn(5, 5)
    cached = layer.from_rows(layer.base(table)[index], table, index)
    cached.backward(upstream)
    by_cache = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    plain = layer(table[index])
    plain.backward(upstream)
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-6)
    for a, b in zip(by_cache, (p.grad for p in layer.parameters()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def saved_elements(make, *but):
    """Count the numbers that autograd keeps for the backward pass, tensors that stand there anyway left out."""
    standing = {t.untyped_storage().data_ptr() for t in but}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in standing and tensor.is_floating_point():
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = make()
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("length", [50, 500])
def test_a_history_keeps_rank_numbers_per_behaviour_and_not_its_features(length):
    """em3.md section 9, property 10: memory grows with L r, without the low rank with L d."""
    layer, table = made(in_dim=64, out_dim=8, rank=4), torch.randn(600, 64)
    full, base = nn.Linear(64, 8), layer.base(table)
    index = torch.arange(length)
    low_rank = saved_elements(
        lambda: layer.from_rows(base[index], table, index), table, *layer.parameters(), *layer.buffers()
    )
    assert low_rank == length * 4
    assert saved_elements(lambda: full(table[index]), table, *full.parameters()) == length * 64


def test_writing_into_the_cache_before_the_backward_pass_is_refused():
    layer, table, index = made(), torch.randn(20, 12), torch.arange(4)
    out = layer.from_rows(layer.base(table)[index], table, index).sum()
    table[2] = 0.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_without_a_rank_it_is_frozen():
    layer, table = made(rank=0), torch.randn(6, 12)
    assert not list(layer.parameters())
    assert torch.equal(layer(table), layer.from_rows(layer.base(table), table, torch.arange(6)))
    assert torch.equal(layer.merged()[0], layer.weight)
    with pytest.raises(SpecError, match="rank of a low-rank map must be 0"):
        LoRALinear(3, 3, rank=-1)
