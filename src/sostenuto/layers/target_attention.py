"""Parameters of the target attention; the maths is `ops.target_attention`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sostenuto.layers.initialise import xavier_linear
from sostenuto.ops.target_attention import (
    Normalise,
    UnitWeights,
    attention_weights,
    deep_target_attention,
    target_attention,
)


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
        unit = self._unit()
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

    def weights(
        self, query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, key_hidden: Tensor | None = None
    ) -> Tensor:
        """Return the (pairs,) weights themselves, as `ops.target_attention.attention_weights` orders them."""
        return attention_weights(
            query,
            query_offsets,
            key,
            key_offsets,
            self._unit(),
            self.deeper if len(self.deeper) else None,
            key_hidden=key_hidden,
            normalise=self.normalise,
        )

    def _unit(self) -> UnitWeights:
        return UnitWeights(
            key=self.key,
            query=self.query,
            product=self.product,
            bias=self.bias,
            out=self.readout.weight[0],
            out_bias=self.readout.bias[0],
            slope=self.slope,
        )


class ProductAttention(nn.Module):
    """Weigh behaviours by their inner product with a query: softmax over k . q + e, with e what else is known of k.

    It is an activation unit whose one hidden unit adds up the product and is read as it is, so it shares every form of
    the operation.

    Args:
        dim: D, width of queries and keys.
        normalise: see `ops.target_attention`.
    """

    zeros: Tensor
    ones: Tensor

    def __init__(self, dim: int, *, normalise: Normalise = "softmax") -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(1, dim), persistent=False)
        self.register_buffer("ones", torch.ones(1, dim), persistent=False)
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
        """Return (Nc, D + V) like `TargetAttention`; `key_hidden` is (Nh, 1)."""
        rows = (query, query_offsets, key, key_offsets)
        return target_attention(
            *rows, value, self._unit(), key_hidden=key_hidden, normalise=self.normalise, with_key=True
        )

    def weights(
        self, query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, key_hidden: Tensor | None = None
    ) -> Tensor:
        """Return the (pairs,) weights themselves; `key_hidden` is (Nh, 1)."""
        rows = (query, query_offsets, key, key_offsets)
        return attention_weights(*rows, self._unit(), key_hidden=key_hidden, normalise=self.normalise)

    def _unit(self) -> UnitWeights:
        none, one = self.zeros[0, :1], self.ones[0, :1]
        return UnitWeights(
            key=self.zeros, query=self.zeros, product=self.ones, bias=none, out=one, out_bias=none[0], slope=one
        )


__all__ = ["ProductAttention", "TargetAttention"]
