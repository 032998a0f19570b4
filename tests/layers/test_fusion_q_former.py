"""Fusion-Q-Former: the published equations, and what follows from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sostenuto.layers.fusion_q_former import FusionQFormer, JointSelfAttention
from sostenuto.schema.errors import SpecError


def made(seed=0, **sizes):
    torch.manual_seed(seed)
    layer = FusionQFormer(8, **{"queries": 2, "blocks": 2, "heads": 4, **sizes}).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.5)
    return layer


def slow_block(block: JointSelfAttention, tokens: np.ndarray) -> np.ndarray:
    """One item's tokens (T, D) through one block, head by head and token by token, in float64."""
    linear = {
        name: (
            getattr(block, name).weight.detach().double().numpy(),
            getattr(block, name).bias.detach().double().numpy(),
        )
        for name in ("query", "key", "value", "dense")
    }
    dim = tokens.shape[1]
    head = dim // block.heads
    query, key, value = (tokens @ linear[n][0].T + linear[n][1] for n in ("query", "key", "value"))
    mixed = np.zeros_like(tokens)
    for h in range(block.heads):
        columns = slice(h * head, (h + 1) * head)
        for t in range(len(tokens)):
            scores = np.array([query[t, columns] @ key[u, columns] for u in range(len(tokens))])
            weights = np.exp(scores / np.sqrt(head + 1e-5))
            mixed[t, columns] = (weights / weights.sum()) @ value[:, columns]
    out = tokens + mixed @ linear["dense"][0].T + linear["dense"][1]
    normed = (out - out.mean(1, keepdims=True)) / np.sqrt(out.var(1, keepdims=True) + 1e-5)
    return normed * block.norm.weight.detach().double().numpy() + block.norm.bias.detach().double().numpy()


@pytest.mark.parametrize("blocks", [1, 2])
def test_it_is_the_published_equation(blocks):
    layer, tokens = made(blocks=blocks), torch.randn(3, 2, 8)
    with torch.no_grad():
        found = layer(tokens)
    for row, given in zip(found, tokens, strict=True):
        x = np.concatenate([layer.queries.detach().double().numpy(), given.double().numpy()])
        for block in layer.blocks:
            x = slow_block(block, x)
        np.testing.assert_allclose(row.numpy(), x[:2].ravel(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("modalities", [1, 2, 5])
@pytest.mark.parametrize("queries", [1, 2, 5])
def test_the_fused_width_does_not_depend_on_the_number_of_modalities(modalities, queries):
    """em3.md section 9, property 1."""
    layer = made(queries=queries)
    assert layer(torch.randn(7, modalities, 8)).shape == (7, queries * 8) == (7, layer.out_dim)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_order_of_modalities_changes_nothing_and_that_of_queries_does(blocks):
    """em3.md section 9, property 2."""
    layer, tokens = made(blocks=blocks), torch.randn(6, 3, 8)
    turned = tokens[:, [2, 0, 1]]
    with torch.no_grad():
        torch.testing.assert_close(layer(turned), layer(tokens), rtol=1e-5, atol=1e-5)
        before = layer(tokens)
        layer.queries.copy_(layer.queries.flip(0))
        after = layer(tokens)
    torch.testing.assert_close(after.view(6, 2, 8).flip(1).flatten(1), before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)  # so the map behind them tells them apart


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_missing_modality_cannot_be_heard(blocks):
    """em3.md section 9, property 3."""
    layer, tokens = made(blocks=blocks), torch.randn(4, 3, 8)
    present = torch.tensor([[True, False, True], [False, True, True], [True, True, True], [False, False, False]])
    other = torch.where(present[:, :, None], tokens, 100 * torch.randn(4, 3, 8))
    with torch.no_grad():
        torch.testing.assert_close(layer(other, present), layer(tokens, present), rtol=0, atol=1e-6)
        torch.testing.assert_close(layer(tokens[:1, [0, 2]]), layer(tokens[:1], present[:1]), rtol=1e-5, atol=1e-5)
        assert torch.isfinite(layer(tokens, present)).all()
        assert not torch.allclose(layer(other), layer(tokens), atol=1e-3)


def test_heads_must_divide_the_width():
    with pytest.raises(SpecError, match="heads must divide the width 8, got 3"):
        FusionQFormer(8, heads=3)


def test_a_mix_of_two_modalities_is_learnt_where_a_linear_head_over_frozen_vectors_cannot():
    """em3.md section 9, property 9: the label is the product of the modalities' signs; same steps, 3 seeds."""
    losses = {"fused": [], "linear": []}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(2, 6, generator=generator)
        side = torch.randint(0, 2, (600, 2), generator=generator) * 2 - 1
        vectors = side[:, :, None] * points + 0.2 * torch.randn(600, 2, 6, generator=generator)
        label = (side.prod(1) > 0).float()
        torch.manual_seed(seed)
        project = torch.nn.ModuleList(torch.nn.Linear(6, 8) for _ in range(2))
        fuse, head, linear = FusionQFormer(8, queries=2, heads=2), torch.nn.Linear(16, 1), torch.nn.Linear(12, 1)

        def fused(vectors, project=project, fuse=fuse, head=head):
            return head(fuse(torch.stack([p(v) for p, v in zip(project, vectors.unbind(1), strict=True)], 1)))

        def plain(vectors, linear=linear):
            return linear(vectors.flatten(1))

        parts = {"fused": (fused, [*project.parameters(), *fuse.parameters(), *head.parameters()])}
        parts["linear"] = (plain, list(linear.parameters()))
        for name, (model, parameters) in parts.items():
            optimiser = torch.optim.Adam(parameters, lr=0.02)
            for _ in range(150):
                optimiser.zero_grad()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(model(vectors[:400])[:, 0], label[:400])
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                right = ((model(vectors[400:])[:, 0] > 0).float() == label[400:]).float().mean()
            losses[name].append(float(right))
    assert min(losses["fused"]) > 0.9
    assert max(losses["linear"]) < 0.65
