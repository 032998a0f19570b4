"""Adapter heads: many readings of one user vector, one for each combination of prior values.

A head costs d^2 + d parameters. How heads of a prior with C groups and of S segments of the future are put together
(Meta AI, arXiv:2511.10492):

    additive         S + C heads     one for each segment, then one for each group
    multiplicative   S * C heads     number s * C + c
    hierarchical     C + C * S       group blocks below, segment blocks of each group on top; number s * C + c
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.schema.errors import SpecError

Compose = Literal["off", "additive", "multiplicative", "hierarchical"]
SEGMENT_STD = 0.02  # initial segment embeddings


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """How heads are built."""

    compose: Compose = "multiplicative"  # off: one head, which is the user vector itself
    blocks: int = 1  # residual blocks of one head, each with its own weights
    std: float = 0.0  # of initial weights, a normal cut at two; 0 = every head starts as the identity
    norm: bool = False  # layer normalisation before each block
    bottleneck: bool = False  # hierarchical: d -> d / 2 -> d before each group block
    segment_embedding: bool = False  # hierarchical: a learned vector per segment, added below the segment blocks
    shared_segments: bool = False  # hierarchical: one block per segment for all groups, not one for each group

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise SpecError(f"AdapterConfig.blocks must be at least 1, got {self.blocks}; compose=off has no heads")
        if self.std < 0:
            raise SpecError(f"AdapterConfig.std must be 0 or more, got {self.std}; 0.02 is the published one")


class ResBlock(nn.Module):
    """x + SiLU(W x + b); with W = 0 and b = 0 it is the identity, bit for bit."""

    def __init__(self, dim: int, *, std: float, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.linear = _linear(dim, dim, std)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., dim)."""
        return x + F.silu(self.linear(self.norm(x)))


class Bottleneck(nn.Module):
    """x + W2 SiLU(W1 x), d -> d / 2 -> d. The residual is ours: zero weights leave the user vector alone."""

    def __init__(self, dim: int, *, std: float) -> None:
        super().__init__()
        self.down = _linear(dim, max(1, dim // 2), std or 0.02)
        self.up = _linear(max(1, dim // 2), dim, std)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., dim)."""
        out: Tensor = x + self.up(F.silu(self.down(x)))
        return out


def _linear(in_dim: int, out_dim: int, std: float) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim)
    if std:
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    else:
        nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class AdapterHeads(nn.Module):
    """Turn (R, D) user vectors into (R, heads, D).

    Args:
        config:   how heads are built.
        dim:      D.
        segments: S.
        groups:   C.
    """

    def __init__(self, config: AdapterConfig, dim: int, *, segments: int, groups: int) -> None:
        super().__init__()
        self.compose, self.segments, self.groups = config.compose, segments, groups

        def block() -> nn.Sequential:
            return nn.Sequential(*(ResBlock(dim, std=config.std, norm=config.norm) for _ in range(config.blocks)))

        self.below, self.blocks = nn.ModuleList(), nn.ModuleList()
        self.segment: nn.Parameter | None = None
        self.shared = config.shared_segments
        if config.compose == "hierarchical":
            self.below.extend(
                nn.Sequential(Bottleneck(dim, std=config.std), block()) if config.bottleneck else block()
                for _ in range(groups)
            )
            self.blocks.extend(block() for _ in range(segments if config.shared_segments else segments * groups))
            if config.segment_embedding:
                self.segment = nn.Parameter(torch.empty(segments, dim))
                nn.init.trunc_normal_(self.segment, std=SEGMENT_STD, a=-2 * SEGMENT_STD, b=2 * SEGMENT_STD)
        elif config.compose != "off":
            self.blocks.extend(block() for _ in range(self.num_heads))

    @property
    def num_heads(self) -> int:
        """Heads that speak."""
        counts = {"off": 1, "additive": self.segments + self.groups}
        return counts.get(self.compose, self.segments * self.groups)

    def index(self, segment: int, group: int) -> int:
        """Return the head of a segment and group, where they share one (not for additive heads).

        >>> AdapterHeads(AdapterConfig(), 4, segments=2, groups=3).index(3 // 2, 1)
        4
        """
        return segment * self.groups + group

    def axes(self) -> tuple[Tensor, Tensor]:
        """Return (heads,) segment and (heads,) group of every head, -1 where it stands for all of them."""
        if self.compose == "off":
            return torch.tensor([-1]), torch.tensor([-1])
        if self.compose == "additive":
            none_s, none_c = torch.full((self.groups,), -1), torch.full((self.segments,), -1)
            return torch.cat([torch.arange(self.segments), none_s]), torch.cat([none_c, torch.arange(self.groups)])
        return (
            torch.arange(self.segments).repeat_interleave(self.groups),
            torch.arange(self.groups).repeat(self.segments),
        )

    def forward(self, user: Tensor) -> Tensor:
        """Return (R, heads, D) of (R, D)."""
        if self.compose == "off":
            return user[:, None]
        if self.compose != "hierarchical":
            return torch.stack([block(user) for block in self.blocks], 1)
        of_group = [block(user) for block in self.below]
        out = []
        for s in range(self.segments):
            for c in range(self.groups):
                below = of_group[c] if self.segment is None else of_group[c] + self.segment[s]
                out.append(self.blocks[s if self.shared else self.index(s, c)](below))
        return torch.stack(out, 1)


__all__ = ["AdapterConfig", "AdapterHeads", "Bottleneck", "Compose", "ResBlock"]
