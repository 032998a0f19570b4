"""Optimisers for embedding tables whose step costs what the batch touched, whatever the size of the table.

A row is *touched* by a step when the batch looked it up, that is when the sparse gradient holds it. Only touched rows
of weight and state are read or written; all others keep every bit.

Semantics, exactly: **each row lives by its own clock.** A row that was touched k times holds the weight and moments
that plain Adam (or Adagrad) would hold after k steps on the k gradients of that row alone. So moments do not decay
while a row rests ("lazy"), and Adam's bias correction uses the row's own count k. With the global step in its place a
row first seen late would get a first step of (1 - beta1) / sqrt(1 - beta2), about 3 times the learning rate, instead
of 1 time: rare items would be thrown furthest by the least evidence.

Decay is decoupled (weight <- weight - learning_rate * decay * weight, before the update, as in AdamW) and reaches
touched rows only. `decay_by="frequency"` divides it by k, the number of steps that touched the row so far: rare rows
are held back, frequent ones are free. This is DIN's mini-batch aware regularisation (Zhou et al. 2018: lambda *
alpha_mj / n_j * w_j) with two differences: n_j counts batches so far, not samples of the whole training set, so no
pass over the data is needed; and it is decoupled, because Adam would normalise a coupled term away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["adam", "rowwise_adam", "rowwise_adagrad"]
DecayBy = Literal["touch", "frequency"]


class TouchedRowOptimiser:
    """Adam, row-wise Adam or row-wise Adagrad on the touched rows of tables.

    `adam` keeps two moments per weight. `rowwise_adam` keeps the first moment per weight and one second moment per
    row (the mean square of the row's gradient). `rowwise_adagrad` keeps one sum of mean squares per row, no momentum.
    """

    def __init__(
        self,
        tables: Mapping[str, nn.Parameter],
        *,
        kind: Kind = "adam",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decay: float = 0.0,
        decay_by: DecayBy = "frequency",
    ) -> None:
        self.tables = dict(tables)
        self.kind: Kind = kind
        self.betas = betas
        self.eps = eps
        self.decay = decay
        self.decay_by: DecayBy = decay_by
        self.state: dict[str, dict[str, Tensor]] = {name: self._new_state(p) for name, p in self.tables.items()}

    def _new_state(self, table: nn.Parameter) -> dict[str, Tensor]:
        rows = table.shape[0]
        per_row = torch.zeros(rows, 1, dtype=table.dtype, device=table.device)
        state = {"touches": torch.zeros(rows, dtype=torch.int32, device=table.device)}
        if self.kind == "rowwise_adagrad":
            return state | {"square_sum": per_row}
        square = torch.zeros_like(table) if self.kind == "adam" else per_row
        return state | {"first": torch.zeros_like(table), "second": square}

    def coalesce(self) -> None:
        """Sum repeated rows of every gradient, so that each touched row stands once. `step` needs it."""
        for table in self.tables.values():
            if table.grad is not None and table.grad.is_sparse:
                table.grad = table.grad.coalesce()

    def gradients(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (table name, touched rows (n,), gradient of them (n, D)) of coalesced gradients."""
        for name, table in self.tables.items():
            if table.grad is None:
                continue
            assert table.grad.is_sparse, f"table {name} has a dense gradient: a step would cost the whole table"
            assert table.grad.is_coalesced(), f"gradient of table {name} must be coalesced before use"
            yield name, table.grad._indices()[0], table.grad._values()

    @torch.no_grad()
    def step(self, learning_rate: float) -> int:
        """Update the touched rows; return how many there were."""
        touched = 0
        for name, rows, gradient in self.gradients():
            touched += len(rows)
            if len(rows):
                self._update(self.tables[name], self.state[name], rows, gradient, learning_rate)
        return touched

    def _update(
        self, table: nn.Parameter, state: dict[str, Tensor], rows: Tensor, gradient: Tensor, learning_rate: float
    ) -> None:
        touches = state["touches"].index_select(0, rows) + 1
        state["touches"].index_copy_(0, rows, touches)
        count = touches.to(table.dtype).unsqueeze(1)  # (n, 1): the row's own clock
        weight = table.index_select(0, rows)
        if self.decay:
            share = learning_rate * self.decay
            weight.mul_(1.0 - share / count if self.decay_by == "frequency" else 1.0 - share)
        if self.kind == "rowwise_adagrad":
            square_sum = state["square_sum"].index_select(0, rows) + gradient.square().mean(1, keepdim=True)
            state["square_sum"].index_copy_(0, rows, square_sum)
            change = gradient / (square_sum.sqrt() + self.eps)
        else:
            beta1, beta2 = self.betas
            square = gradient.square() if self.kind == "adam" else gradient.square().mean(1, keepdim=True)
            first = state["first"].index_select(0, rows).lerp_(gradient, 1.0 - beta1)
            second = state["second"].index_select(0, rows).lerp_(square, 1.0 - beta2)
            state["first"].index_copy_(0, rows, first)
            state["second"].index_copy_(0, rows, second)
            corrected = (second / (1.0 - beta2**count)).sqrt_().add_(self.eps)
            change = first / (1.0 - beta1**count) / corrected
        table.index_copy_(0, rows, weight.sub_(change, alpha=learning_rate))

    def zero_grad(self) -> None:
        """Drop all gradients of the tables."""
        for table in self.tables.values():
            table.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, for a checkpoint; they are the live ones, not copies."""
        return {f"{name}.{part}": value for name, state in self.state.items() for part, value in state.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state over from what `tensors` gave."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

    def nbytes(self) -> int:
        """Bytes of state."""
        return sum(value.nbytes for value in self.tensors().values())


__all__ = ["DecayBy", "Kind", "TouchedRowOptimiser"]
