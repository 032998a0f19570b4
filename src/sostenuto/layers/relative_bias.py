"""What attention adds to a score for how far apart two tokens are, in places and in time (arXiv:2402.17152)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.ops.causal_attention import NUM_BUCKETS, RelativeBias

INITIAL_STD = 0.02  # published


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPlaces:
    """Where N tokens stand."""

    position: Tensor  # (N,) int64 tokens of strictly earlier moments
    time_s: Tensor  # (N,) int64 epoch seconds

    @classmethod
    def at(cls, position: Tensor, time_ms: Tensor) -> TokenPlaces:
        """Make places of times in milliseconds."""
        return cls(position=position, time_s=torch.div(time_ms, 1000, rounding_mode="floor"))


class RelativeBiasTables(nn.Module):
    """One table over distances in tokens and one over log buckets of seconds, shared by the heads of a layer.

    Causal queries never look ahead, so the published table of 2 N - 1 differences has N entries here; distances from
    `num_positions` on share the last one.

    Args:
        num_positions: entries of the table of distances.
        use_time: also read the time between two tokens.
    """

    def __init__(self, num_positions: int, *, use_time: bool = True) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(num_positions).normal_(0.0, INITIAL_STD))
        self.time = nn.Parameter(torch.empty(NUM_BUCKETS).normal_(0.0, INITIAL_STD)) if use_time else None

    def forward(self, queries: TokenPlaces, keys: TokenPlaces) -> RelativeBias:
        """Return the bias between queries and keys."""
        return RelativeBias(
            position=self.position,
            time=self.time,
            query_position=queries.position,
            key_position=keys.position,
            query_time_s=queries.time_s,
            key_time_s=keys.time_s,
        )


__all__ = ["RelativeBiasTables", "TokenPlaces"]
