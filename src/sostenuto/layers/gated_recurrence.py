"""Parameters of gated recurrent states; the maths is `ops.recurrence`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.ops.recurrence import Cell, evolved_states, recurrent_states


def _gates(number: int, units: int, in_dim: int) -> nn.Parameter:
    """Return (number * units, in_dim) input weights, Xavier uniform gate by gate."""
    weight = torch.empty(number, units, in_dim)
    for gate in weight:
        nn.init.xavier_uniform_(gate)
    return nn.Parameter(weight.flatten(0, 1))


def _recurrent(number: int, units: int) -> nn.Parameter:
    """Return (number * units, units) weights of the states, orthogonal gate by gate."""
    weight = torch.empty(number, units, units)
    for gate in weight:
        nn.init.orthogonal_(gate)
    return nn.Parameter(weight.flatten(0, 1))


class GatedRecurrence(nn.Module):
    """A GRU over jagged rows, its update gate weighing the new content.

    Biases start where the released code has them: in its convention both gates at 1, so the gate of the new content
    at -1, that of the reset at 1 and the candidate at 0.

    Args:
        in_dim: D, width of a step's input.
        units: H.
    """

    def __init__(self, in_dim: int, units: int) -> None:
        super().__init__()
        self.from_input = _gates(3, units, in_dim)
        self.weight = _recurrent(3, units)
        self.bias = nn.Parameter(torch.cat([torch.full((units,), -1.0), torch.ones(units), torch.zeros(units)]))

    def parts(self, values: Tensor) -> Tensor:
        """Return the (N, 3 H) input parts of (N, D) values; distinct values may be mapped once and then spread."""
        return values @ self.from_input.T

    def forward(self, parts: Tensor, offsets: Tensor, initial: Tensor) -> Tensor:
        """Return (N, H) states behind every step.

        Args:
            parts: (N, 3 H) of `parts`.
            offsets: (B + 1,).
            initial: (B, H) states to go on from.
        """
        return recurrent_states(parts, offsets, self.weight, self.bias, initial)


class AttentionalRecurrence(nn.Module):
    """A recurrent cell whose steps move a candidate's state as far as the candidate attends to them.

    Args:
        in_dim: D, width of a step's input.
        units: H.
        cell: see `ops.recurrence`; "agru" has no update gate, the attention stands in its place.
    """

    def __init__(self, in_dim: int, units: int, *, cell: Cell) -> None:
        super().__init__()
        self.cell: Cell = cell
        gates = 2 if cell == "agru" else 3
        self.missing = (3 - gates) * units  # rows of the update gate that are not there
        self.from_input = _gates(gates, units, in_dim)
        self.weight = _recurrent(gates, units)
        update = [] if cell == "agru" else [torch.full((units,), -1.0)]
        self.bias = nn.Parameter(torch.cat([*update, torch.ones(units), torch.zeros(units)]))

    @property
    def num_parts(self) -> int:
        """Width of the input parts: 3 H, or 2 H where the cell has no update gate."""
        return int(self.from_input.shape[0])

    def forward(
        self, values: Tensor, offsets: Tensor, attention: Tensor, query_offsets: Tensor, extra: Tensor | None = None
    ) -> Tensor:
        """Return (Nc, H), every candidate's state behind the last step.

        Args:
            values: (N, D) steps, shared by the candidates of a request.
            offsets: (B + 1,) of the steps.
            attention: (pairs,).
            query_offsets: (B + 1,) of the candidates.
            extra: (N, num_parts) added to the input parts.
        """
        parts = values @ self.from_input.T
        parts = parts if extra is None else parts + extra
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.missing:
            parts, weight = F.pad(parts, (self.missing, 0)), F.pad(weight, (0, 0, self.missing, 0))
            bias = F.pad(bias, (self.missing, 0))
        return evolved_states(parts, offsets, attention, query_offsets, weight, bias, self.cell)


__all__ = ["AttentionalRecurrence", "GatedRecurrence"]
