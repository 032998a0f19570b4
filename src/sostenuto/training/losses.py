"""What a step minimises, keyed by the objective that a model names in the table of models.

Every candidate has a share of the main loss; the shares of a batch sum to 1 and follow `training.weighting`:

* `candidate`: every candidate counts the same (the plain mean);
* `request`:   every (request, list) counts the same, so that long lists do not drown short ones;
* `list`:      every candidate list of the protocol counts the same in a batch.

A ranker's `sample_weight` multiplies the shares afterwards. Its `aux_losses` come already weighted and are added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sostenuto.schema.errors import SpecError, did_you_mean
from sostenuto.schema.histories import RankerOutput, RequestBatch

Weighting = Literal["candidate", "request", "list"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A scalar to differentiate, and what it is made of (detached scalars, in the order they were added)."""

    total: Tensor
    parts: dict[str, Tensor]


def request_list_groups(batch: RequestBatch) -> tuple[Tensor, int]:
    """Return ((N,) group of every candidate, number of groups): one group per request of the batch and list."""
    lists = int(batch.list_id.max()) + 1 if batch.list_id.numel() else 1
    requests = int(batch.candidates.offsets.shape[0]) - 1
    return batch.candidates.row * lists + batch.list_id, requests * lists


def equal_shares(group: Tensor, num_groups: int) -> Tensor:
    """Return (N,) shares with which every group that occurs counts the same; they sum to 1."""
    size = torch.bincount(group, minlength=num_groups)
    occurring = (size > 0).sum().clamp(min=1)
    return 1.0 / (size[group] * occurring).to(torch.float32)


def shares(batch: RequestBatch, weighting: Weighting) -> Tensor:
    """Return the (N,) share of every candidate in the main loss."""
    count = batch.labels.shape[0]
    if weighting == "candidate":
        return batch.labels.new_full((count,), 1.0 / max(count, 1))
    if weighting == "list":
        return equal_shares(batch.list_id, int(batch.list_id.max()) + 1 if count else 1)
    return equal_shares(*request_list_groups(batch))


def binary_cross_entropy(output: RankerOutput, batch: RequestBatch, weighting: Weighting) -> Tensor:
    """Return the weighted mean of -log of the probability given to each label."""
    each = F.binary_cross_entropy_with_logits(output.logits, batch.labels, reduction="none")
    share = shares(batch, weighting)
    return (each * (share if output.sample_weight is None else share * output.sample_weight)).sum()


def positive_against_negatives(logits: Tensor, labels: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Softmax cross-entropy of every positive against all negatives of its group, averaged over positives.

    loss(p) = log(1 + sum over negatives n of p's group of exp(s_n - s_p)); positives do not compete with each other.
    Positives of a group without negatives have none to beat and are left out; with none left the loss is 0.
    """
    is_negative = labels < 0.5
    lowest = torch.finfo(logits.dtype).min / 2
    masked = torch.where(is_negative, logits, lowest)
    top = logits.new_full((num_groups,), lowest).scatter_reduce(0, group, masked.detach(), "amax")
    weight = torch.where(is_negative, (logits - top[group]).clamp(max=0).exp(), 0.0)
    total = logits.new_zeros(num_groups).index_add(0, group, weight)
    has_negative = logits.new_zeros(num_groups).index_add(0, group, is_negative.to(logits.dtype)) > 0
    counted = ~is_negative & has_negative[group]
    log_negatives = torch.where(has_negative, total, 1.0).log() + torch.where(has_negative, top, 0.0)
    each = F.softplus(log_negatives[group] - logits)
    return torch.where(counted, each, 0.0).sum() / counted.sum().clamp(min=1)


Objective = Callable[[RankerOutput, RequestBatch, Weighting], Tensor]

OBJECTIVES: dict[str, Objective] = {"bce": binary_cross_entropy}


def objective_named(name: str) -> Objective:
    """Return the main loss of an objective; refuse unknown ones."""
    if name not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise SpecError(f"objective must be one of {known}, got {name!r}.{did_you_mean(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def loss_of(
    objective: Objective, output: RankerOutput, batch: RequestBatch, *, weighting: Weighting, listwise: float
) -> Loss:
    """Add main loss, listwise term and the ranker's auxiliary losses."""
    main = objective(output, batch, weighting)
    parts = {"main": main}
    if listwise:
        group, num_groups = request_list_groups(batch)
        parts["listwise"] = listwise * positive_against_negatives(output.logits, batch.labels, group, num_groups)
    parts |= {f"aux.{name}": value for name, value in output.aux_losses.items()}
    total = main
    for name, part in parts.items():
        total = total if name == "main" else total + part
    return Loss(total=total, parts={name: part.detach() for name, part in parts.items()})


__all__ = [
    "OBJECTIVES",
    "Loss",
    "Objective",
    "Weighting",
    "binary_cross_entropy",
    "equal_shares",
    "loss_of",
    "objective_named",
    "positive_against_negatives",
    "request_list_groups",
    "shares",
]
