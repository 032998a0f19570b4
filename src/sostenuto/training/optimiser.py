"""One optimiser for a ranker: touched rows for its tables, fused AdamW for everything else, one clip over both.

`training.table_clock="step"` gives tables the fused step as well: every row at every step, so that the moments of a
row decay while it rests and its momentum carries it on. It costs the whole table each step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import Table
from sostenuto.ops.row_updates import square_sum
from sostenuto.ops.table_rows import sum_repeated_rows
from sostenuto.training.config import TrainingConfig
from sostenuto.training.dense_adamw import DenseAdamW
from sostenuto.training.touched_rows import TouchedRowOptimiser

LAST_SHARE = 0.02  # of the learning rate, where a falling schedule ends


def table_parameters(ranker: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable weights of all tables by name; a shared table comes once."""
    found = {
        f"{name}.weight": module.weight
        for name, module in ranker.named_modules()
        if isinstance(module, Table) and module.weight.requires_grad
    }
    seen: set[int] = set()
    return {name: p for name, p in found.items() if not (id(p) in seen or seen.add(id(p)))}  # type: ignore[func-returns-value]


def table_rates(ranker: nn.Module) -> dict[str, float]:
    """Return what multiplies the learning rate of each table, by name, where a ranker has set it."""
    return {
        f"{name}.weight": module.rate
        for name, module in ranker.named_modules()
        if isinstance(module, Table) and module.rate != 1.0
    }


def dense_parameters(ranker: nn.Module) -> dict[str, nn.Parameter]:
    """Return every other trainable parameter by name."""
    tables = {id(p) for p in table_parameters(ranker).values()}
    return {name: p for name, p in ranker.named_parameters() if p.requires_grad and id(p) not in tables}


def learning_rate_share(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Return what the learning rates are multiplied by at a step (0 is the first).

    A linear rise over `warmup_steps`, then constant, or a fall that reaches LAST_SHARE at the last step.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(total_steps - 1 - config.warmup_steps, 1)
    done = min(max(done, 0.0), 1.0)
    left = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return LAST_SHARE + (1.0 - LAST_SHARE) * left


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimiser step did."""

    grad_norm: float  # of all gradients together, before clipping
    touched_rows: int


class RankerOptimiser:
    """Steps a neural ranker. Decay of dense weights is for matrices only: biases, scales and slopes are left alone."""

    def __init__(self, ranker: nn.Module, config: TrainingConfig) -> None:
        self.config = config
        self.dense = dense_parameters(ranker)
        tables, rates = table_parameters(ranker), table_rates(ranker)
        self.tables = TouchedRowOptimiser(
            tables if config.table_clock == "row" else {},
            kind=config.table_optimiser,
            betas=config.adam_betas,
            decay=config.table_decay,
            decay_by=config.table_decay_by,
            rates=rates,
        )
        matrices = {name: config.weight_decay for name, p in self.dense.items() if p.dim() >= 2}
        self.adamw = DenseAdamW(self.dense, decay=matrices, betas=config.adam_betas)
        # tables whose rows all move at every step: a resting row goes on by its momentum, as in plain Adam
        self.whole = tables if config.table_clock == "step" else {}
        self.whole_adamw = DenseAdamW(
            self.whole, decay=dict.fromkeys(self.whole, config.table_decay), betas=config.adam_betas, rates=rates
        )

    def step(self, share: float) -> StepReport:
        """Clip, then update dense weights and touched rows; gradients are gone afterwards.

        Args:
            share: multiplies both learning rates.
        """
        self.tables.coalesce()
        touched = self._fill_whole()
        norm = self._clip()
        if not math.isfinite(norm):
            return StepReport(grad_norm=norm, touched_rows=0)  # nothing is updated; the caller stops the run
        self.adamw.step(self.config.learning_rate * share)
        touched += self.tables.step(self.config.table_learning_rate * share)
        self.whole_adamw.step(self.config.table_learning_rate * share)
        self.zero_grad()
        return StepReport(grad_norm=norm, touched_rows=touched)

    def _clip(self) -> float:
        """Return the norm of all gradients; scale them down to `max_grad_norm` when it is larger."""
        dense = [p.grad for p in [*self.dense.values(), *self.whole.values()] if p.grad is not None]
        rows = [gradient for _, _, gradient in self.tables.gradients()]
        gradients = dense + rows
        if not gradients:
            return 0.0
        squares = [torch.linalg.vector_norm(gradient).double().square() for gradient in dense]
        norm = math.sqrt(torch.stack(squares + [square_sum(gradient) for gradient in rows]).sum())
        if norm > self.config.max_grad_norm and math.isfinite(norm):
            torch._foreach_mul_(gradients, self.config.max_grad_norm / norm)
        return norm

    def _fill_whole(self) -> int:
        """Give tables that move as a whole a gradient of every row; return how many rows were touched."""
        touched = 0
        for table in self.whole.values():
            if table.grad is not None and table.grad.is_sparse:
                rows = sum_repeated_rows(table.grad)
                index, values = rows._indices()[0], rows._values()
                touched += len(index)
                table.grad = None
                table.grad = torch.zeros_like(table).index_copy_(0, index, values)
        return touched

    def non_finite(self) -> list[str]:
        """Return the names of parameters whose gradient holds NaN or infinity."""
        dense = [(name, p.grad) for name, p in (self.dense | self.whole).items() if p.grad is not None]
        rows = [(name, gradient) for name, _, gradient in self.tables.gradients()]
        return [name for name, gradient in dense + rows if not bool(gradient.isfinite().all())]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in [*self.dense.values(), *self.whole.values()]:
            p.grad = None
        self.tables.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state as named live tensors, for a checkpoint."""
        tables = {f"table.{name}": value for name, value in self.tables.tensors().items()}
        whole = {f"whole.{name}": value for name, value in self.whole_adamw.tensors().items()}
        return tables | whole | {f"dense.{name}": value for name, value in self.adamw.tensors().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state over from what `tensors` gave."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.tables.load_tensors(under("table."))
        self.adamw.load_tensors(under("dense."))
        self.whole_adamw.load_tensors(under("whole."))


__all__ = [
    "LAST_SHARE",
    "RankerOptimiser",
    "StepReport",
    "dense_parameters",
    "learning_rate_share",
    "table_parameters",
    "table_rates",
]
