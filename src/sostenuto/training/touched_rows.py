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

State of a row of D float32 weights; every kind counts its touches in 4 bytes:

    kind               keeps                                                      bytes          D = 16
    adam               both moments of every weight                               8 D + 4        132
    rowwise_adam       first moments, one second moment: of the mean square       4 D + 8         72
    adagrad            one sum of squares per weight, no momentum                 4 D + 4         68
    rowwise_adagrad    one sum of mean squares, no momentum                       8                8

Adagrad's root holds all squares since the first touch, so its steps only shrink; there is no bias to correct, and the
first step of a row moves each of its weights by the learning rate (row-wise: by that on average), as Adam's does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sostenuto.ops.row_updates import DecayBy, Kind, UpdateRule, new_state, state_bytes_per_row, update_rows
from sostenuto.ops.table_rows import sum_repeated_rows


class TouchedRowOptimiser:
    """Adam or Adagrad on the touched rows of tables, each with a form that keeps one number per row where it can."""

    def __init__(
        self,
        tables: Mapping[str, nn.Parameter],
        *,
        kind: Kind = "adam",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decay: float = 0.0,
        decay_by: DecayBy = "frequency",
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """Take tables.

        Args:
            tables:   by name.
            kind:     what is kept of a row; so are betas and eps.
            betas:    of the moments.
            eps:      added to the root.
            decay:    decoupled, times the learning rate.
            decay_by: see above.
            rates:    multiply the learning rate of a table, by name; 1 for the others.
        """
        self.tables = dict(tables)
        self.rates = dict(rates or {})
        self.rule = UpdateRule(kind=kind, betas=betas, eps=eps, decay=decay, decay_by=decay_by)
        self.state: dict[str, dict[str, Tensor]] = {name: new_state(p, kind) for name, p in self.tables.items()}

    def coalesce(self) -> None:
        """Sum repeated rows of every gradient, so that each touched row stands once. `step` needs it."""
        for table in self.tables.values():
            if table.grad is not None and table.grad.is_sparse:
                table.grad = sum_repeated_rows(table.grad)

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
                update_rows(
                    self.tables[name],
                    self.state[name],
                    rows,
                    gradient,
                    rule=self.rule,
                    learning_rate=learning_rate * self.rates.get(name, 1.0),
                )
        return touched

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


__all__ = ["DecayBy", "Kind", "TouchedRowOptimiser", "state_bytes_per_row"]
