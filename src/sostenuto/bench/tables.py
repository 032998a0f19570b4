"""Embedding tables: looking rows up with the gradient of what was touched, and the step that updates those rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from sostenuto.bench.case import Case, beside_plain_twin
from sostenuto.bench.work import RowGather, Work

FLOAT, INT64, INT32 = 4, 8, 4
ADAM_FLOPS = 14  # per weight: first moment 3, second 4, two corrections, root, epsilon, quotient, step 2
BATCHES = 32  # of a step, in turn: the rows of the last one must not all be in a cache still


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupSizes:
    """Sizes of one lookup."""

    rows: int  # of the table
    lookups: int
    dim: int  # D


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSizes:
    """Sizes of one step."""

    rows: int  # of the table
    touched: int
    dim: int  # D


def lookup_work(sizes: LookupSizes) -> Work:
    """Count a lookup and its gradient.

    Forward: every looked-up row is read at a random place and written in order. Back: its gradient is read in order
    and added at a random place, D additions; the sums of distinct rows are written. Indices are read twice.
    """
    # uniform draws miss a row with probability (1 - 1 / rows) ** lookups
    distinct = sizes.rows * (1.0 - (1.0 - 1.0 / sizes.rows) ** sizes.lookups)
    row = FLOAT * sizes.dim
    random = RowGather(rows=2.0 * sizes.lookups, row_bytes=row, table_bytes=sizes.rows * row)
    return Work(
        flops=float(sizes.lookups) * sizes.dim,
        streamed_bytes=sizes.lookups * (2.0 * row + 2.0 * INT64) + distinct * (row + INT64),
        gathers=(random,),
    )


def step_work(sizes: StepSizes) -> Work:
    """Count an Adam step on touched rows.

    Weight and two moments of a touched row are read at a random place and written back there, the gradient and the
    row's number are read in order; the row's count of steps (4 bytes) is left out.
    """
    row = FLOAT * sizes.dim
    random = RowGather(rows=6.0 * sizes.touched, row_bytes=row, table_bytes=3 * sizes.rows * row)
    return Work(
        flops=float(ADAM_FLOPS) * sizes.touched * sizes.dim,
        streamed_bytes=float(sizes.touched) * (row + INT64),
        gathers=(random,),
    )


def table_lookup(sizes: LookupSizes, seed: int) -> Case:
    """Look rows up, forward and backward; the gradient is sparse."""
    import torch

    from sostenuto.ops.table_rows import lookup_rows

    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(sizes.rows, sizes.dim, generator=generator).requires_grad_()
    index = torch.randint(0, sizes.rows, (sizes.lookups,), generator=generator)
    upstream = torch.randn(sizes.lookups, sizes.dim, generator=generator)

    def ours() -> object:
        (gradient,) = torch.autograd.grad(lookup_rows(table, index, 0), table, upstream)
        return gradient.coalesce()

    return beside_plain_twin(lookup_work(sizes), ours)


def touched_rows(sizes: StepSizes, seed: int) -> Case:
    """Update the rows that a batch touched, against torch's fused Adam over the whole table."""
    import torch

    from sostenuto.training.touched_rows import TouchedRowOptimiser

    generator = torch.Generator().manual_seed(seed)
    gradients = []
    for _ in range(BATCHES):
        at = torch.randperm(sizes.rows, generator=generator)[: sizes.touched].sort().values
        values = torch.randn(sizes.touched, sizes.dim, generator=generator)
        sparse = torch.sparse_coo_tensor(at[None], values, (sizes.rows, sizes.dim), check_invariants=True)
        gradients.append(sparse.coalesce())
    table = torch.nn.Parameter(torch.zeros(sizes.rows, sizes.dim))
    dense_table = torch.nn.Parameter(torch.zeros(sizes.rows, sizes.dim))
    optimiser, dense = TouchedRowOptimiser({"table": table}), torch.optim.Adam([dense_table], fused=True)
    dense_table.grad = gradients[0].to_dense()
    batches = itertools.cycle(gradients)

    def ours() -> object:
        table.grad = next(batches)
        return optimiser.step(1e-3)

    against = "torch's fused Adam over the whole table"
    return Case(work=step_work(sizes), ours=ours, plain=dense.step, against=against)


__all__ = ["LookupSizes", "StepSizes", "lookup_work", "step_work", "table_lookup", "touched_rows"]
