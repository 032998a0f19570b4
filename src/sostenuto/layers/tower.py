"""The prediction tower: a plain feed-forward network over candidates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from sostenuto.layers.dice import Dice
from sostenuto.layers.dropout import Dropout
from sostenuto.layers.initialise import xavier_linear

Activation = Literal["relu", "prelu", "dice"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "prelu", "dice")


def make_activation(name: Activation, dim: int) -> nn.Module:
    """Return a fresh activation for `dim` units."""
    if name == "relu":
        return nn.ReLU(inplace=True)  # of a linear layer, whose result nothing else needs
    return nn.PReLU(dim, init=0.1) if name == "prelu" else Dice(dim)


class Tower(nn.Module):
    """Linear layers with an activation and dropout after each, then `out_dim` plain outputs."""

    def __init__(
        self,
        in_dim: int,
        units: Sequence[int],
        *,
        activation: Activation = "dice",
        dropout: float = 0.0,
        out_dim: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in units:
            layers += [xavier_linear(in_dim, width), make_activation(activation, width)]
            if dropout > 0:
                layers.append(Dropout(dropout))
            in_dim = width
        layers.append(xavier_linear(in_dim, out_dim))
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        """Return (N, out_dim) of (N, in_dim)."""
        result: Tensor = self.layers(values)
        return result

    @property
    def first(self) -> nn.Linear:
        """The layer that reads the input."""
        layer = self.layers[0]
        assert isinstance(layer, nn.Linear)
        return layer

    def after_first(self, hidden: Tensor) -> Tensor:
        """Return (N, out_dim) of what the first layer gave, before its activation; `hidden` may be changed."""
        for layer in itertools.islice(self.layers, 1, None):
            hidden = layer(hidden)
        return hidden


__all__ = ["ACTIVATIONS", "Activation", "Tower", "make_activation"]
