"""What a candidate makes of a user's interest states: an evolving state of its own, or a weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sostenuto.layers.gated_recurrence import AttentionalRecurrence
from sostenuto.layers.initialise import xavier_linear
from sostenuto.layers.target_attention import ProductAttention, TargetAttention
from sostenuto.ops.jagged import offsets_to_lengths
from sostenuto.ops.recurrence import Cell
from sostenuto.ops.time_gaps import NUM_GAP_FEATURES

GAP_DIM = NUM_GAP_FEATURES + 1  # of `encoded_history.request_gaps`
AttentionKind = Literal["din", "bilinear"]
ATTENTIONS: tuple[AttentionKind, ...] = ("din", "bilinear")


class StateAttention(nn.Module):
    """Attention of a target item on interest states.

    `din` is the released code: the target goes through a dense layer with PReLU to the width of the states, then an
    activation unit compares the two. `bilinear` is the paper: softmax over h . W e.

    Args:
        dim: D, width of a target.
        units: H, width of a state.
        kind: of the two.
        hidden: widths of the activation unit.
        activation: of the activation unit.
        gaps: the time to the request is told to the attention. Ours.
    """

    def __init__(
        self,
        dim: int,
        units: int,
        *,
        kind: AttentionKind,
        hidden: Sequence[int],
        activation: Literal["relu", "prelu"],
        gaps: bool,
    ) -> None:
        super().__init__()
        self.to_query: nn.Module
        self.attend: TargetAttention | ProductAttention
        if kind == "din":
            self.to_query = nn.Sequential(xavier_linear(dim, units), nn.PReLU(init=0.1))
            self.attend = TargetAttention(units, hidden, activation=activation, normalise="softmax")
        else:
            self.to_query = xavier_linear(dim, units, bias=False)
            self.attend = ProductAttention(units)
        self.of_gaps = xavier_linear(GAP_DIM, hidden[0] if kind == "din" else 1, bias=False) if gaps else None

    def forward(self, target: Tensor) -> Tensor:
        """Return (Nc, H) queries of (Nc, D) targets."""
        query: Tensor = self.to_query(target)
        return query

    def hidden(self, gaps: Tensor | None) -> Tensor | None:
        """Return what the time to the request adds to the unit, per behaviour."""
        return None if gaps is None or self.of_gaps is None else self.of_gaps(gaps)


class InterestEvolution(nn.Module):
    """The interest evolving layer of DIEN (arXiv:1809.03672, section 4.3).

    Args:
        attention: of targets on states.
        units: H, of the states and of the evolved interest.
        cell: "augru" (the paper's), "released", "agru" or "aigru".
        rescale: multiply the attention by the history's length, at most 1: without it a softmax over T steps moves
            the state by about 1 / T a step. Ours.
        gaps: the time to the request is part of a step's input, shared by the candidates. Ours.
    """

    def __init__(self, attention: StateAttention, units: int, *, cell: Cell, rescale: bool, gaps: bool) -> None:
        super().__init__()
        self.attention = attention
        self.evolve = AttentionalRecurrence(units, units, cell=cell)
        self.of_gaps = xavier_linear(GAP_DIM, self.evolve.num_parts, bias=False) if gaps else None
        self.rescale = rescale
        self.out_dim = units

    def weights(
        self, query: Tensor, query_offsets: Tensor, states: Tensor, offsets: Tensor, gaps: Tensor | None
    ) -> Tensor:
        """Return the (pairs,) attention of queries to states."""
        hidden = self.attention.hidden(gaps)
        weights = self.attention.attend.weights(query, query_offsets, states, offsets, hidden)
        if not self.rescale:
            return weights
        length, count = offsets_to_lengths(offsets), offsets_to_lengths(query_offsets)
        return (weights * torch.repeat_interleave(length, length * count)).clamp(max=1)

    def forward(
        self, query: Tensor, query_offsets: Tensor, states: Tensor, offsets: Tensor, gaps: Tensor | None
    ) -> Tensor:
        """Return (Nc, H) final interests; zeros for an empty history.

        Args:
            query: (Nc, H) of `attention`.
            query_offsets: (B + 1,).
            states: (N, H) interest states.
            offsets: (B + 1,).
            gaps: (N, GAP_DIM) to the request, None where they are left out.
        """
        attention = self.weights(query, query_offsets, states, offsets, gaps)
        extra = None if gaps is None or self.of_gaps is None else self.of_gaps(gaps)
        found: Tensor = self.evolve(states, offsets, attention, query_offsets, extra)
        return found


class AttendedStates(nn.Module):
    """The attention-weighted sum of states, with that of the gaps to the request: the readout of "GRU with attention".

    Args:
        attention: of targets on states.
        units: H.
        gaps: also sum the gaps. Ours.
    """

    def __init__(self, attention: StateAttention, units: int, *, gaps: bool) -> None:
        super().__init__()
        self.attention = attention
        self.out_dim = units + (GAP_DIM if gaps else 0)

    def forward(
        self, query: Tensor, query_offsets: Tensor, states: Tensor, offsets: Tensor, gaps: Tensor | None
    ) -> Tensor:
        """Return (Nc, out_dim); arguments as in `InterestEvolution`."""
        values = states.new_zeros(states.shape[0], 0) if gaps is None else gaps
        hidden = self.attention.hidden(gaps)
        found: Tensor = self.attention.attend(query, query_offsets, states, offsets, values, hidden)
        return found


__all__ = ["ATTENTIONS", "AttendedStates", "AttentionKind", "InterestEvolution", "StateAttention"]
