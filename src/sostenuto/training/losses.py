"""What a step minimises, keyed by the objective that a model names in the table of models.

Every candidate has a share of the main loss; the shares of a batch sum to 1 and follow `training.weighting`:

* `candidate`: every candidate counts the same (the plain mean);
* `request`:   every (request, list) counts the same, so that long lists do not drown short ones;
* `list`:      every candidate list of the protocol counts the same in a batch.

A ranker's `sample_weight` multiplies the shares afterwards. Its `aux_losses` come already weighted and are added.

Shares are taken over the whole batch before it is cut into passes, so the passes' losses and gradients add up to those
of the batch. An auxiliary loss is a mean over what its pass saw; it counts by the pass's share of the requests.
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


def binary_cross_entropy(output: RankerOutput, batch: RequestBatch, share: Tensor) -> Tensor:
    """Return the sum of -log of the probability given to each label, weighted by (N,) shares."""
    each = F.binary_cross_entropy_with_logits(output.logits, batch.labels, reduction="none")
    return (each * (share if output.sample_weight is None else share * output.sample_weight)).sum()


def with_negatives(labels: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Return (N,) bool: positives whose group has a negative, the only ones that have something to beat."""
    is_negative = labels < 0.5
    negatives = labels.new_zeros(num_groups).index_add(0, group, is_negative.to(labels.dtype))
    return ~is_negative & (negatives > 0)[group]


def positive_against_negatives(logits: Tensor, labels: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Softmax cross-entropy of every positive against all negatives of its group, (N,).

    loss(p) = log(1 + sum over negatives n of p's group of exp(s_n - s_p)); positives do not compete with each other.
    It is 0 for negatives and for positives of a group without negatives.
    """
    is_negative = labels < 0.5
    counted = with_negatives(labels, group, num_groups)
    lowest = torch.finfo(logits.dtype).min / 2
    masked = torch.where(is_negative, logits, lowest)
    top = logits.new_full((num_groups,), lowest).scatter_reduce(0, group, masked.detach(), "amax")
    weight = torch.where(is_negative, (logits - top[group]).clamp(max=0).exp(), 0.0)
    total = logits.new_zeros(num_groups).index_add(0, group, weight)
    has_negative = total > 0
    log_negatives = torch.where(has_negative, total, 1.0).log() + torch.where(has_negative, top, 0.0)
    each = F.softplus(log_negatives[group] - logits)
    return torch.where(counted, each, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What every candidate counts in the terms of a batch's loss."""

    main: Tensor  # (N,), sums to 1
    listwise: Tensor | None  # (N,), the positives that count sum to the term's weight; None without the term

    def of(self, candidates: slice) -> Shares:
        """Return those of some candidates."""
        listwise = None if self.listwise is None else self.listwise[candidates]
        return Shares(main=self.main[candidates], listwise=listwise)


def shares_of(batch: RequestBatch, *, weighting: Weighting, listwise: float) -> Shares:
    """Return the shares of a whole batch."""
    if not listwise:
        return Shares(main=shares(batch, weighting), listwise=None)
    counted = with_negatives(batch.labels, *request_list_groups(batch)).float()
    return Shares(main=shares(batch, weighting), listwise=counted * (listwise / counted.sum().clamp(min=1)))


Objective = Callable[[RankerOutput, RequestBatch, Tensor], Tensor]

OBJECTIVES: dict[str, Objective] = {"bce": binary_cross_entropy}


def objective_named(name: str) -> Objective:
    """Return the main loss of an objective; refuse unknown ones."""
    if name not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise SpecError(f"objective must be one of {known}, got {name!r}.{did_you_mean(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def loss_of(
    objective: Objective, output: RankerOutput, batch: RequestBatch, share: Shares, *, aux_share: float = 1.0
) -> Loss:
    """Add main loss, listwise term and the ranker's auxiliary losses of a batch or a part of one.

    Args:
        objective: main loss.
        output:    of the ranker for `batch`.
        batch:     or part of one.
        share:     of its candidates in the whole batch.
        aux_share: of its requests in the whole batch.
    """
    main = objective(output, batch, share.main)
    parts = {"main": main}
    if share.listwise is not None:
        each = positive_against_negatives(output.logits, batch.labels, *request_list_groups(batch))
        parts["listwise"] = (each * share.listwise).sum()
    parts |= {f"aux.{name}": value * aux_share for name, value in output.aux_losses.items()}
    total = main
    for name, part in parts.items():
        total = total if name == "main" else total + part
    return Loss(total=total, parts={name: part.detach() for name, part in parts.items()})


__all__ = [
    "OBJECTIVES",
    "Loss",
    "Objective",
    "Shares",
    "Weighting",
    "binary_cross_entropy",
    "equal_shares",
    "loss_of",
    "objective_named",
    "positive_against_negatives",
    "request_list_groups",
    "shares",
    "shares_of",
    "with_negatives",
]
