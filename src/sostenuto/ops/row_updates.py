"""Optimiser steps on the touched rows of a table; `training/touched_rows.py` tells what they mean.

Letters: R rows of the table, D its width, n touched rows. The plain form is the definition. The compiled twin makes
one pass: it reads and writes each row's weight, state and clock once and asks for the next rows ahead. Each row is
worked on by one thread, so the number of threads changes no bit.

These functions change what they are given in place, table and state: a copy would cost the whole table.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from sostenuto.native.library import Library, RowUpdate
from sostenuto.ops.backend import is_usable, library
from sostenuto.ops.large_pages import on_large_pages

Kind = Literal["adam", "rowwise_adam", "adagrad", "rowwise_adagrad"]
DecayBy = Literal["touch", "frequency"]

_NUMBERS: dict[Kind, int] = {"adam": 0, "rowwise_adam": 1, "adagrad": 2, "rowwise_adagrad": 3}  # source/interface.h
_PARTS: dict[Kind, dict[str, bool]] = {  # of the state beside `touches` -> is it as wide as the table
    "adam": {"first": True, "second": True},
    "rowwise_adam": {"first": True, "second": False},
    "adagrad": {"square_sum": True},
    "rowwise_adagrad": {"square_sum": False},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateRule:
    """How a touched row moves."""

    kind: Kind = "adam"
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam's moments
    eps: float = 1e-8  # added to the root
    decay: float = 0.0  # decoupled: times the learning rate
    decay_by: DecayBy = "frequency"


def new_state(table: Tensor, kind: Kind) -> dict[str, Tensor]:
    """Return the state of a table whose rows were never touched: `touches` (R,) int32, the rest (R, D) or (R, 1)."""
    rows, dim = table.shape
    state = {"touches": torch.empty(rows, dtype=torch.int32, device=table.device)}
    for name, is_wide in _PARTS[kind].items():
        state[name] = torch.empty(rows, dim if is_wide else 1, dtype=table.dtype, device=table.device)
    return {name: on_large_pages(value).zero_() for name, value in state.items()}


def state_bytes_per_row(kind: Kind, dim: int, *, number_bytes: int = 4) -> int:
    """Return the bytes of state that one row of a table holds.

    >>> {kind: state_bytes_per_row(kind, 16) for kind in ("adam", "rowwise_adam", "adagrad", "rowwise_adagrad")}
    {'adam': 132, 'rowwise_adam': 72, 'adagrad': 68, 'rowwise_adagrad': 8}
    """
    return 4 + number_bytes * sum(dim if is_wide else 1 for is_wide in _PARTS[kind].values())


def update_rows(
    table: Tensor,
    state: Mapping[str, Tensor],
    row: Tensor,
    gradient: Tensor,
    *,
    rule: UpdateRule,
    learning_rate: float,
) -> None:
    """Move some rows of a table by one step each; in place.

    With g the gradient of a row, k the times it was touched, this one included, and a the learning rate:

        w <- w * (1 - a * decay / k), or without `/ k` where decay is by touch
        adam               m <- m + (1 - beta1) (g - m),  v <- v + (1 - beta2) (g^2 - v),
                           w <- w - a * m / (1 - beta1^k) / (sqrt(v / (1 - beta2^k)) + eps)
        rowwise_adam       the same with the mean of g^2 over the row in place of g^2
        adagrad            s <- s + g^2, w <- w - a * g / (sqrt(s) + eps)
        rowwise_adagrad    the same with the mean of g^2 over the row

    Args:
        table:    (R, D), changed.
        state:    as `new_state` made it, changed.
        row:      (n,) int64, rising, each once.
        gradient: (n, D) of these rows.

    Raises:
        ValueError: rows that do not rise inside [0, R).
    """
    if not len(row):
        return
    twins = library()
    if twins is not None and is_usable(table, gradient) and table.is_contiguous():
        is_done = _update_compiled(twins, table, state, row, gradient, rule, learning_rate)
    else:
        is_done = int(row[0]) >= 0 and int(row[-1]) < table.shape[0] and is_rising(row)
        if is_done:
            _update_plain(table, state, row, gradient, rule, learning_rate)
    if not is_done:
        raise ValueError(
            f"rows must rise inside [0, {table.shape[0]}), each once, got {row[:4].tolist()} ... {int(row[-1])}; "
            "sum repeated rows first with sum_repeated_rows"
        )


def is_rising(row: Tensor) -> bool:
    """Say whether every number of a (n,) tensor is larger than the one before."""
    return bool((row[1:] > row[:-1]).all())


def _update_plain(
    table: Tensor, state: Mapping[str, Tensor], row: Tensor, gradient: Tensor, rule: UpdateRule, learning_rate: float
) -> None:
    touches = state["touches"].index_select(0, row) + 1
    state["touches"].index_copy_(0, row, touches)
    count = touches.double().unsqueeze(1)  # (n, 1): the row's own clock; 1 - beta^k loses digits in float32
    weight = table.index_select(0, row)
    if rule.decay:
        share = learning_rate * rule.decay
        weight.mul_((1.0 - share / count).to(weight.dtype) if rule.decay_by == "frequency" else 1.0 - share)
    square = gradient.square()
    if rule.kind in ("rowwise_adam", "rowwise_adagrad"):
        square = square.mean(1, keepdim=True)
    if rule.kind in ("adam", "rowwise_adam"):
        beta1, beta2 = rule.betas
        first = state["first"].index_select(0, row).lerp_(gradient, 1.0 - beta1)
        second = state["second"].index_select(0, row).lerp_(square, 1.0 - beta2)
        state["first"].index_copy_(0, row, first)
        state["second"].index_copy_(0, row, second)
        below = (second / (1.0 - beta2**count).to(second.dtype)).sqrt_().add_(rule.eps)
        change = first / (1.0 - beta1**count).to(first.dtype) / below
    else:
        square_sum = state["square_sum"].index_select(0, row).add_(square)
        state["square_sum"].index_copy_(0, row, square_sum)
        change = gradient / square_sum.sqrt_().add_(rule.eps)
    table.index_copy_(0, row, weight.sub_(change, alpha=learning_rate))


def _update_compiled(
    twins: Library,
    table: Tensor,
    state: Mapping[str, Tensor],
    row: Tensor,
    gradient: Tensor,
    rule: UpdateRule,
    learning_rate: float,
) -> bool:
    beta1, beta2 = rule.betas
    update = RowUpdate(
        rows=table.shape[0],
        dim=table.shape[1],
        count=row.shape[0],
        threads=torch.get_num_threads(),
        kind=_NUMBERS[rule.kind],
        by_frequency=rule.decay_by == "frequency",
        learning_rate=learning_rate,
        beta1=beta1,
        beta2=beta2,
        eps=rule.eps,
        decay=rule.decay,
    )
    first = state["first"].data_ptr() if "first" in state else None
    second = state["second" if "second" in state else "square_sum"].data_ptr()
    row, gradient = row.contiguous(), gradient.contiguous()
    places = (row.data_ptr(), gradient.data_ptr(), table.data_ptr(), first, second, state["touches"].data_ptr())
    if int(twins.handle.sostenuto_update_rows(ctypes.byref(update), *places)):
        return False
    increment_version((table, *state.values()))  # a graph that still needs the old rows must not go on with the new
    return True


def square_sum(values: Tensor) -> Tensor:
    """Return the sum of the squares of all numbers as one float64 number."""
    twins = library()
    if twins is not None and is_usable(values):
        held = values.contiguous()
        total = twins.handle.sostenuto_square_sum(held.data_ptr(), held.numel())
        return torch.tensor(total, dtype=torch.float64)
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm.square()


__all__ = [
    "DecayBy",
    "Kind",
    "UpdateRule",
    "is_rising",
    "new_state",
    "square_sum",
    "state_bytes_per_row",
    "update_rows",
]
