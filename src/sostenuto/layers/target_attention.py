"""Parameters of the target attention; the maths is `ops.target_attention`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sostenuto.layers.initialise import xavier_linear
from sostenuto.ops.target_attention import Normalise, UnitWeights, deep_target_attention, target_attention


class TargetAttention(nn.Module):
    """Weigh behaviours by the candidate with an activation unit, and sum them.

    One hidden layer takes the fast path; deeper units ([80, 40] of the released DIN) take the plain one.

    Args:
        dim: D, width of queries and keys.
        units: hidden widths of the activation unit.
        activation: "relu" or "prelu".
        normalise: see `ops.target_attention`.
    """

    key: nn.Parameter
    query: nn.Parameter
    product: nn.Parameter

    def __init__(
        self,
        dim: int,
        units: Sequence[int] = (64,),
        *,
        activation: Literal["relu", "prelu"] = "prelu",
        normalise: Normalise = "none",
    ) -> None:
        super().__init__()
        hidden = units[0]
        bound = math.sqrt(6.0 / (4 * dim + hidden))  # Xavier of the unfactored (hidden, 4 dim) layer
        for name in ("key", "query", "product"):
            self.register_parameter(name, nn.Parameter(torch.empty(hidden, dim).uniform_(-bound, bound)))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.slope = nn.Parameter(torch.full((hidden,), 0.1)) if activation == "prelu" else None
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise(units):
            layers += [xavier_linear(before, width), nn.PReLU(width, init=0.1) if activation == "prelu" else nn.ReLU()]
        self.deeper = nn.Sequential(*layers)
        self.readout = xavier_linear(units[-1], 1)
        self.normalise: Normalise = normalise

    def forward(
        self,
        query: Tensor,
        query_offsets: Tensor,
        key: Tensor,
        key_offsets: Tensor,
        value: Tensor,
        key_hidden: Tensor | None = None,
    ) -> Tensor:
        """Return (Nc, D + V), the sum of the keys and that of further values.

        Args:
            value: (Nh, V) what is summed beside the keys; V may be 0. The rest is as in
                `ops.target_attention.target_attention`.
        """
        unit = UnitWeights(
            key=self.key,
            query=self.query,
            product=self.product,
            bias=self.bias,
            out=self.readout.weight[0],
            out_bias=self.readout.bias[0],
            slope=self.slope,
        )
        if len(self.deeper):
            return deep_target_attention(
                query,
                query_offsets,
                key,
                key_offsets,
                torch.cat([key, value], 1),
                unit,
                self.deeper,
                key_hidden=key_hidden,
                normalise=self.normalise,
            )
        return target_attention(
            query,
            query_offsets,
            key,
            key_offsets,
            value,
            unit,
            key_hidden=key_hidden,
            normalise=self.normalise,
            with_key=True,
        )


__all__ = ["TargetAttention"]
