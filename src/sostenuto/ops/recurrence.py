"""Gated recurrent states along jagged rows, and those of candidates that share the steps of a request.

A step with input parts x = (x_u, x_r, x_c) and the state h before it (Zhou et al. 2019, arXiv:1809.03672, the paper's
convention: u weighs the new content):

    u = sigmoid(x_u + U_u h + b_u)
    r = sigmoid(x_r + U_r h + b_r)
    c = tanh(x_c + r * (U_c h) + b_c)
    h <- (1 - s) * h + s * c

The cells differ in the share s of the new content, given the attention a of a candidate to the step:

    gru        s = u
    augru      s = a u             a = 1 is a plain step, a = 0 leaves the state as it is
    released   s = u + a (1 - u)   of the released code: a = 0 is a plain step, a = 1 takes the content as it is
    agru       s = a
    aigru      s = u, and x is multiplied by a

Letters: B requests, Nh steps (flat), Nc candidates (flat), H units, pairs: request after request (candidates, steps),
as `target_attention.attention_weights` gives them. Rows are as long as they are: nothing is padded.

This file is the definition: all rows go through one step at a time, longest rows first, so that the rows that are left
stand in front; torch keeps some ten (rows, H) tensors of every step for the backward pass. `native_recurrence` is its
compiled twin for float32 on a CPU: no Python per step, and between forward and backward pass it keeps 1 of 16 states.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sostenuto.ops.backend import is_usable
from sostenuto.ops.jagged import lengths_to_offsets, offsets_to_lengths
from sostenuto.ops.native_recurrence import scan

Cell = Literal["gru", "augru", "released", "agru", "aigru"]
CELLS: tuple[Cell, ...] = ("gru", "augru", "released", "agru", "aigru")  # in the order of native/source/recurrence.cpp


def cell_step(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor, cell: Cell, attention: Tensor | None) -> Tensor:
    """Return the (R, H) states after one step of R rows.

    Args:
        x: (R, 3 H) input parts of update, reset and candidate.
        state: (R, H).
        weight: (3 H, H), U.
        bias: (3 H,).
        cell: see above.
        attention: (R,), None for the plain cell.
    """
    a = None if attention is None else attention[:, None]
    if cell == "aigru":
        assert a is not None
        x = a * x
    x_u, x_r, x_c = x.chunk(3, dim=1)
    b_u, b_r, b_c = bias.chunk(3)
    h_u, h_r, h_c = (state @ weight.T).chunk(3, dim=1)
    u = torch.sigmoid(x_u + h_u + b_u)
    r = torch.sigmoid(x_r + h_r + b_r)
    c = torch.tanh(x_c + r * h_c + b_c)
    share = u
    if cell in {"augru", "released", "agru"}:
        assert a is not None
        share = a * u if cell == "augru" else u + a * (1 - u) if cell == "released" else a.expand_as(u)
    return (1 - share) * state + share * c


def recurrent_states(inputs: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor, initial: Tensor) -> Tensor:
    """Return the states of a plain cell behind every step of every row.

    Args:
        inputs: (Nh, 3 H) input parts, flat over rows.
        offsets: (B + 1,) int64 row starts.
        weight: (3 H, H).
        bias: (3 H,).
        initial: (B, H) state before the first step of each row.

    Returns:
        (Nh, H).
    """
    each = torch.arange(offsets.shape[0], device=offsets.device)  # one "candidate" per row
    if is_usable(inputs, weight, bias, initial):
        return scan(inputs, None, initial, weight, bias, each, offsets, 0, True)
    return _plain(inputs, offsets, None, each, weight, bias, initial, "gru", every_state=True)


def evolved_states(
    inputs: Tensor,
    offsets: Tensor,
    attention: Tensor,
    query_offsets: Tensor,
    weight: Tensor,
    bias: Tensor,
    cell: Cell,
) -> Tensor:
    """Return what each candidate's state is behind the last step of its request, from a state of zeros.

    Args:
        inputs: (Nh, 3 H) input parts, shared by the candidates of a request.
        offsets: (B + 1,) int64 row starts of the steps.
        attention: (pairs,) of candidates to steps.
        query_offsets: (B + 1,) int64 row starts of the candidates.
        weight: (3 H, H).
        bias: (3 H,).
        cell: any but "gru".

    Returns:
        (Nc, H); zeros where a request has no steps.
    """
    if is_usable(inputs, attention, weight, bias):
        return scan(inputs, attention, None, weight, bias, query_offsets, offsets, CELLS.index(cell), False)
    initial = inputs.new_zeros(int(query_offsets[-1]), weight.shape[1])
    return _plain(inputs, offsets, attention, query_offsets, weight, bias, initial, cell, every_state=False)


def _plain(
    inputs: Tensor,
    offsets: Tensor,
    attention: Tensor | None,
    query_offsets: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial: Tensor,
    cell: Cell,
    *,
    every_state: bool,
) -> Tensor:
    """Return (pairs, H) states behind every step, in order of candidates, or (Nc, H) behind the last."""
    steps, counts = offsets_to_lengths(offsets), offsets_to_lengths(query_offsets)
    length = torch.repeat_interleave(steps, counts)
    order = torch.argsort(length, descending=True, stable=True)
    first = torch.repeat_interleave(offsets[:-1], counts)[order]
    pair = lengths_to_offsets(length)[:-1][order]
    moments = torch.arange(int(length.max()) if len(length) else 0, device=length.device)
    left = len(length) - torch.searchsorted(length[order].flip(0), moments, right=True)  # rows longer than t
    state = initial[order]
    found, places = [inputs.new_zeros(0, weight.shape[1])], [order[:0]]
    for t, rows in enumerate(left.tolist()):
        place = pair[:rows] + t
        moved = cell_step(
            inputs[first[:rows] + t], state[:rows], weight, bias, cell, None if attention is None else attention[place]
        )
        state = torch.cat([moved, state[rows:]])
        if every_state:
            found.append(moved)
            places.append(place)
    return torch.cat(found)[torch.argsort(torch.cat(places))] if every_state else state[torch.argsort(order)]


__all__ = ["CELLS", "Cell", "cell_step", "evolved_states", "recurrent_states"]
