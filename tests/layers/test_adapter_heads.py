"""Heads start as the identity, are counted as the paper counts them, and are numbered segment first."""

import pytest
import torch

from sostenuto.layers.adapter_heads import AdapterConfig, AdapterHeads
from sostenuto.schema.errors import SpecError

D, S, C = 6, 2, 3


def heads(compose, **changes):
    torch.manual_seed(0)
    return AdapterHeads(AdapterConfig(compose=compose, **changes), D, segments=S, groups=C)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(
    ("compose", "changes"),
    [
        ("off", {}),
        ("additive", {}),
        ("multiplicative", {}),
        ("hierarchical", {}),
        ("hierarchical", {"bottleneck": True}),
        ("hierarchical", {"shared_segments": True}),
    ],
)
def test_fresh_heads_are_the_identity_bit_for_bit(compose, changes, blocks, norm):
    user = torch.randn(5, D)
    made = heads(compose, blocks=blocks, norm=norm, **changes)
    out = made(user)
    assert out.shape == (5, made.num_heads, D)
    assert torch.equal(out, user[:, None].expand_as(out))


@pytest.mark.parametrize(
    ("compose", "changes", "expected"),
    [
        ("off", {}, 0),
        ("additive", {}, (S + C) * (D * D + D)),
        ("multiplicative", {}, S * C * (D * D + D)),
        ("hierarchical", {}, (C + C * S) * (D * D + D)),
        ("hierarchical", {"segment_embedding": True}, (C + C * S) * (D * D + D) + S * D),
        ("hierarchical", {"shared_segments": True}, (C + S) * (D * D + D)),
        ("multiplicative", {"blocks": 2}, 2 * S * C * (D * D + D)),
    ],
)
def test_parameters_are_counted_as_stated(compose, changes, expected):
    assert sum(p.numel() for p in heads(compose, **changes).parameters()) == expected


@pytest.mark.parametrize("compose", ["additive", "multiplicative", "hierarchical"])
def test_every_head_moves_alone(compose):
    """Blocks are separate objects: changing one head's last block changes that head only."""
    user = torch.randn(4, D)
    for h in range(heads(compose).num_heads):
        made = heads(compose)
        with torch.no_grad():
            made.blocks[h][0].linear.bias.fill_(1.0)
        changed = [n for n in range(made.num_heads) if not torch.equal(made(user)[:, n], user)]
        assert changed == [h]


def test_a_group_block_carries_its_segments():
    user = torch.randn(4, D)
    made = heads("hierarchical")
    with torch.no_grad():
        made.below[1][0].linear.bias.fill_(1.0)
    changed = [n for n in range(made.num_heads) if not torch.equal(made(user)[:, n], user)]
    assert changed == [made.index(s, 1) for s in range(S)]


def test_heads_are_numbered_segment_first():
    made = heads("multiplicative")
    segment, group = made.axes()
    for s in range(S):
        for c in range(C):
            assert made.index(s, c) == s * C + c
            assert (int(segment[made.index(s, c)]), int(group[made.index(s, c)])) == (s, c)
    segment, group = heads("additive").axes()
    assert segment.tolist() == [0, 1, -1, -1, -1]
    assert group.tolist() == [-1, -1, 0, 1, 2]


def test_the_published_start_is_an_option():
    assert not torch.equal(heads("additive", std=0.02)(torch.ones(1, D))[0, 0], torch.ones(D))


@pytest.mark.parametrize("changes", [{"blocks": 0}, {"std": -1.0}])
def test_nonsense_is_refused(changes):
    with pytest.raises(SpecError, match=next(iter(changes))):
        AdapterConfig(**changes)
