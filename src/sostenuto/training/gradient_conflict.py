"""How much the two jobs of one embedding table disagree: the diagnosis of DARE (arXiv:2410.02604, section 3).

Attention and representation read one table, and its gradient is the sum of theirs. To tell them apart without changing
the training, the ranker is built with a table for each, both on the same memory: after a backward pass each holds the
gradient of its job; both are measured, the representation gets the sum, and the optimiser moves the one memory. Losses
are those of the ranker with shared tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sostenuto.data.prepared import PreparedData
from sostenuto.layers.embedding import Table
from sostenuto.models.table import build, entry_of
from sostenuto.ops.table_rows import sum_repeated_rows
from sostenuto.schema.errors import SpecError
from sostenuto.training.config import RunConfig
from sostenuto.training.loop import accumulate, steps_planned
from sostenuto.training.losses import objective_named
from sostenuto.training.optimiser import RankerOptimiser, learning_rate_share
from sostenuto.training.run import device_named, process_settings, ready_to_train


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGradients:
    """The gradients of both jobs over the rows of a table that both touched."""

    attention: Tensor  # (n, D)
    representation: Tensor  # (n, D)

    def sums(self) -> dict[str, float]:
        """Return what adds up over tables and steps."""
        a, r = self.attention.double(), self.representation.double()
        a_norm, r_norm = a.norm(dim=1), r.norm(dim=1)
        both = (a_norm > 0) & (r_norm > 0)  # a direction needs a length
        cosine = (a[both] * r[both]).sum(1) / (a_norm[both] * r_norm[both])
        return {
            "rows": float(both.sum()),
            "attention": float(a_norm[both].sum()),
            "representation": float(r_norm[both].sum()),
            "negative": float((cosine < 0).sum()),
            "cosine": float(cosine.sum()),
        }


def measures(sums: Mapping[str, float]) -> dict[str, float]:
    """Return mean norms, their ratio (representation to attention), share of negative cosines in per cent, mean cosine.

    All are NaN where no row was touched by both.
    """
    rows = sums["rows"] or float("nan")
    attention, representation = sums["attention"] / rows, sums["representation"] / rows
    return {
        "rows": sums["rows"],
        "attention_norm": attention,
        "representation_norm": representation,
        "ratio": representation / attention if attention else float("nan"),
        "negative_percent": 100.0 * sums["negative"] / rows,
        "cosine": sums["cosine"] / rows,
    }


class SplitTables:
    """Pairs of tables on one memory, so that a table's two jobs have a gradient each.

    Args:
        pairs:   (attention, representation) by name; the former is made to look at the latter's weights.
        rescale: bring the attention's gradient to the norm of the other, per table, before they are summed. The paper
            shows that it does not help.
    """

    def __init__(self, pairs: Mapping[str, tuple[Table, Table]], *, rescale: bool = False) -> None:
        if not pairs:
            raise SpecError("at least one table must serve both jobs, the ranker has none; set item_dim to 8 or more")
        self.pairs = dict(pairs)
        self.rescale = rescale
        for attention, representation in self.pairs.values():
            attention.weight = nn.Parameter(representation.weight.data)

    def merge(self) -> dict[str, RowGradients]:
        """Return the gradients of a backward pass by table, and leave their sum with the representation."""
        return {name: self._merged(*pair) for name, pair in self.pairs.items()}

    def _merged(self, attention: Table, representation: Table) -> RowGradients:
        width = representation.dim
        grads = [_summed(table.weight) for table in (attention, representation)]
        rows = torch.unique(torch.cat([row for row, _ in grads]))
        laid = [values.new_zeros(len(rows), width) for _, values in grads]
        for (row, values), whole in zip(grads, laid, strict=True):
            whole[torch.searchsorted(rows, row)] = values
        first, second = laid
        added = first
        if self.rescale and float(first.norm()) > 0:
            added = first * (second.norm() / first.norm())
        attention.weight.grad = None
        representation.weight.grad = torch.sparse_coo_tensor(
            rows[None], added + second, representation.weight.shape, check_invariants=False, is_coalesced=True
        )
        return RowGradients(attention=first, representation=second)


def _summed(weight: nn.Parameter) -> tuple[Tensor, Tensor]:
    if weight.grad is None:
        return torch.zeros(0, dtype=torch.int64, device=weight.device), weight.new_zeros(0, weight.shape[1])
    gradient = sum_repeated_rows(weight.grad)
    return gradient._indices()[0], gradient._values()


def measure_conflict(data: PreparedData, config: RunConfig, *, steps: int, rescale: bool = False) -> dict[str, Any]:
    """Train a ranker with shared tables for some steps and measure what its two jobs ask of them.

    Args:
        data:    prepared folder.
        config:  a run of a model that can share its tables or not (`dare`); whatever it says of that, they are shared,
            and `id_dropout` is off.
        steps:   at most; fewer where the budget of the run ends before.
        rescale: see `SplitTables`.

    Returns:
        `points` (one per step: loss and measures over all tables), `tables` (measures of each over all steps) and
        `whole` (over all tables and steps).
    """
    split_of = getattr(config.model_config, "alike", None)
    if entry_of(config.model).kind != "neural" or split_of is None:
        raise SpecError(
            f"the model must be able to share its tables between attention and representation, got {config.model}; "
            "take a run of the recipe dare or dare_shared"
        )
    # shared tables would replace rows at random for both jobs; apart, those of attention replace none
    shared = dataclasses.replace(config.model_config, tables="shared", id_dropout=0.0)
    config = dataclasses.replace(config, model_config=shared.alike())
    training, device = config.training, device_named(config.training.device)
    objective = objective_named(entry_of(config.model).objective)
    totals: dict[str, dict[str, float]] = {}
    points: list[dict[str, float]] = []
    with process_settings(config, device):
        ranker, loader = ready_to_train(data, config, device)
        start: Any = build(config.model, shared, loader.collator.features, seed=training.seed)
        ranker.take_shared(dict(start.named_parameters()))
        split = SplitTables(ranker.table_pairs(), rescale=rescale)
        optimiser = RankerOptimiser(ranker, training)
        planned = steps_planned(len(loader), config.budget.epochs, training)
        torch.manual_seed(training.seed)
        ranker.train()
        for epoch in range(config.budget.epochs):
            for batch in loader.epoch(epoch):
                if len(points) >= min(steps, planned):
                    break
                step = len(points)
                loss = accumulate(ranker, batch.to(device), objective, training, step + 1)
                of_step: dict[str, float] = {}
                for name, gradients in split.merge().items():
                    sums = gradients.sums()
                    _add(totals.setdefault(name, {}), sums)
                    _add(of_step, sums)
                optimiser.step(learning_rate_share(step, planned, training))
                points.append({"step": step + 1, "loss": loss, **measures(of_step)})
    whole: dict[str, float] = {}
    for sums in totals.values():
        _add(whole, sums)
    return {
        "model": config.model,
        "steps": len(points),
        "rescale": rescale,
        "whole": measures(whole),
        "tables": {name: measures(sums) for name, sums in totals.items()},
        "points": points,
    }


def _add(total: dict[str, float], sums: Mapping[str, float]) -> None:
    for name, value in sums.items():
        total[name] = total.get(name, 0.0) + value


__all__ = ["RowGradients", "SplitTables", "measure_conflict", "measures"]
