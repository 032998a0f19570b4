"""What a step minimises, keyed by the objective that a model names in the table of models.

Every candidate has a share of the main loss; the shares of a batch sum to 1 and follow `training.weighting`:

* `candidate`: every candidate counts the same (the plain mean);
* `request`:   every (request, list) counts the same, so that long lists do not drown short ones;
* `list`:      every candidate list of the protocol counts the same in a batch.

A ranker's `sample_weight` multiplies the shares afterwards. Its `aux_losses` come already weighted and are added. Its
`aux_heads` are logits of the same candidates: their binary cross-entropy has the shares of the main loss.

Shares are taken over the whole batch before it is cut into passes, so the passes' losses and gradients add up to those
of the batch. An auxiliary loss is a mean over what its pass saw; it counts by the pass's share of the requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from sostenuto.schema.errors import SpecError, did_you_mean
from sostenuto.schema.histories import Candidates, RankerOutput, RequestBatch, SequenceBatch

Batch = RequestBatch | SequenceBatch
Weighting = Literal["candidate", "request", "list"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A scalar to differentiate, and what it is made of (detached scalars, in the order they were added)."""

    total: Tensor
    parts: dict[str, Tensor]


def request_list_groups(batch: Batch) -> tuple[Tensor, int]:
    """Return ((N,) group of every candidate, number of groups): one group per request of the batch and list."""
    lists = int(batch.list_id.max()) + 1 if batch.list_id.numel() else 1
    requests = int(batch.candidates.offsets.shape[0]) - 1
    return batch.candidates.row * lists + batch.list_id, requests * lists


def equal_shares(group: Tensor, num_groups: int) -> Tensor:
    """Return (N,) shares with which every group that occurs counts the same; they sum to 1."""
    size = torch.bincount(group, minlength=num_groups)
    occurring = (size > 0).sum().clamp(min=1)
    return 1.0 / (size[group] * occurring).to(torch.float32)


def shares(batch: Batch, weighting: Weighting) -> Tensor:
    """Return the (N,) share of every candidate in the main loss."""
    count = batch.labels.shape[0]
    if weighting == "candidate":
        return batch.labels.new_full((count,), 1.0 / max(count, 1))
    if weighting == "list":
        return equal_shares(batch.list_id, int(batch.list_id.max()) + 1 if count else 1)
    return equal_shares(*request_list_groups(batch))


def binary_cross_entropy(output: RankerOutput, batch: Batch, share: Tensor) -> Tensor:
    """Return the sum of -log of the probability given to each label, weighted by (N,) shares."""
    return _cross_entropy(output.logits, output, batch, share)


def _cross_entropy(logits: Tensor, output: RankerOutput, batch: Batch, share: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
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


def shares_of(batch: Batch, *, weighting: Weighting, listwise: float) -> Shares:
    """Return the shares of a whole batch."""
    if not listwise:
        return Shares(main=shares(batch, weighting), listwise=None)
    counted = with_negatives(batch.labels, *request_list_groups(batch)).float()
    return Shares(main=shares(batch, weighting), listwise=counted * (listwise / counted.sum().clamp(min=1)))


def _on_requests(ranker: Any, batch: Any) -> RankerOutput:
    return cast("RankerOutput", ranker(batch.histories, batch.candidates, batch.context))


def _along(ranker: Any, batch: Any) -> RankerOutput:
    return cast("RankerOutput", ranker.logits_along(batch))


def _loss_along(ranker: Any, batch: Any) -> RankerOutput:
    return cast("RankerOutput", ranker.loss_along(batch))


def _next_item(ranker: Any, batch: Any) -> RankerOutput:
    """Return the log-probability of each target among itself and the negatives of its request, as logits (N,)."""
    queries = ranker.queries_along(batch)[batch.candidates.row]
    targets = ranker.item_vectors(batch.candidates)
    negatives = ranker.item_vectors(batch.negatives)
    draws = batch.negatives.offsets.shape[0] - 1
    if draws > 1:
        return RankerOutput(logits=_of_draws(batch, queries, targets, negatives, draws))
    return RankerOutput(
        logits=sampled_log_softmax(
            (queries * targets).sum(1),
            queries @ negatives.T,
            batch.log_q,
            own_items(batch.candidates, batch.negatives.item),
        )
    )


def _of_draws(batch: SequenceBatch, queries: Tensor, targets: Tensor, negatives: Tensor, draws: int) -> Tensor:
    """Return (N,) log-probabilities where the requests of a batch take several draws of negatives in turn."""
    assert batch.negatives is not None
    draw = batch.candidates.row % draws  # (N,)
    order = torch.argsort(draw, stable=True)
    count = torch.bincount(draw, minlength=draws)
    place = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[draw[order]]
    slot = torch.empty_like(order).scatter_(0, order, draw[order] * int(count.max()) + place)  # (N,) among the padded
    size = negatives.shape[0] // draws
    laid = queries.new_zeros(draws * int(count.max()), queries.shape[1]).index_copy(0, slot, queries)
    scores = torch.bmm(laid.view(draws, -1, queries.shape[1]), negatives.view(draws, size, -1).transpose(1, 2))
    item = batch.negatives.item.view(draws, size)
    log_q = None if batch.log_q is None else batch.log_q.view(draws, size)[draw]
    excluded = own_drawn(batch.candidates, item, draw)
    return sampled_log_softmax((queries * targets).sum(1), scores.flatten(0, 1)[slot], log_q, excluded)


def own_drawn(candidates: Candidates, negative: Tensor, draw: Tensor) -> Tensor:
    """Return (N, M) bool: negatives of a target's draw, (G, M), that are a target of the same request."""
    mine = negative[draw]
    if bool((candidates.lengths <= 1).all()):
        return candidates.item[:, None] == mine
    row, item = candidates.row, candidates.item
    high = int(torch.maximum(item.max(), negative.max())) + 1
    return torch.isin(row[:, None] * high + mine, row * high + item)


def own_items(candidates: Candidates, negative: Tensor) -> Tensor:
    """Return (N, M) bool: negatives that are a target of the same request, and so no negatives of it."""
    same = candidates.item[:, None] == negative[None, :]
    if candidates.offsets.shape[0] - 1 == candidates.item.shape[0] and bool((candidates.lengths == 1).all()):
        return same
    of_request = same.new_zeros(candidates.offsets.shape[0] - 1, negative.shape[0], dtype=torch.int32)
    of_request.index_add_(0, candidates.row, same.int())
    return (of_request > 0)[candidates.row]


def sampled_log_softmax(target: Tensor, negatives: Tensor, log_q: Tensor | None, excluded: Tensor) -> Tensor:
    """Return log of exp(s+) / (exp(s+) + sum over negatives j of exp(s_j - log_q_j)), (N,).

    The sum over negatives, each divided by how often it is expected among the draws, estimates the sum over all items
    (Bengio and Senecal, 2008); the target itself is not drawn and stays as it is. Without `log_q` negatives count as
    they come.

    Args:
        target:    (N,) scores of the targets.
        negatives: (N, M) scores of shared negatives.
        log_q:     (M,) or (N, M) or None.
        excluded:  (N, M) bool, negatives that do not count for a target.
    """
    scores = negatives if log_q is None else negatives - log_q
    scores = torch.where(excluded, torch.finfo(scores.dtype).min, scores)
    return target - torch.logaddexp(target, torch.logsumexp(scores, 1))


def negative_log_probability(output: RankerOutput, batch: Batch, share: Tensor) -> Tensor:
    """Return the sum of the (N,) logits, which are log-probabilities of targets, weighted by minus their shares."""
    weight = share if output.sample_weight is None else share * output.sample_weight
    return -(output.logits * weight).sum()


def nothing(output: RankerOutput, batch: Batch, share: Tensor) -> Tensor:
    """Return 0: the ranker's auxiliary losses are the whole loss."""
    return share.new_zeros(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What training asks of a ranker, on which batches, and its main loss."""

    batches: Literal["requests", "sequences"]
    output: Callable[[Any, Any], RankerOutput]  # (ranker, batch)
    main: Callable[[RankerOutput, Any, Tensor], Tensor]  # (output, batch, (N,) shares)
    needs_negatives: bool = False  # batches carry targets and shared negatives
    needs_window: bool = False  # ... and what users did in the next moments; `targets` of the config says how many
    is_listwise: bool = True  # logits are scores of candidates, so that the listwise term can be added


OBJECTIVES: dict[str, Objective] = {
    "bce": Objective(batches="requests", output=_on_requests, main=binary_cross_entropy),
    "ranking_along": Objective(batches="sequences", output=_along, main=binary_cross_entropy),
    "next_item": Objective(
        batches="sequences",
        output=_next_item,
        main=negative_log_probability,
        needs_negatives=True,
        is_listwise=False,
    ),
    "loss_along": Objective(
        batches="sequences",
        output=_loss_along,
        main=nothing,
        needs_negatives=True,
        needs_window=True,
        is_listwise=False,
    ),
}


def objective_named(name: str) -> Objective:
    """Return an objective; refuse unknown ones."""
    if name not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise SpecError(f"objective must be one of {known}, got {name!r}.{did_you_mean(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def loss_of(objective: Objective, output: RankerOutput, batch: Batch, share: Shares, *, aux_share: float = 1.0) -> Loss:
    """Add main loss, listwise term, the ranker's auxiliary heads and losses of a batch or a part of one.

    Args:
        objective: of the ranker.
        output:    of the ranker for `batch`.
        batch:     or part of one.
        share:     of its candidates in the whole batch.
        aux_share: of its requests in the whole batch.
    """
    main = objective.main(output, batch, share.main)
    parts = {"main": main}
    if share.listwise is not None:
        each = positive_against_negatives(output.logits, batch.labels, *request_list_groups(batch))
        parts["listwise"] = (each * share.listwise).sum()
    for name, head in output.aux_heads.items():
        parts[f"aux.{name}"] = head.weight * _cross_entropy(head.logits, output, batch, share.main)
    parts |= {f"aux.{name}": value * aux_share for name, value in output.aux_losses.items()}
    total = main
    for name, part in parts.items():
        total = total if name == "main" else total + part
    return Loss(total=total, parts={name: part.detach() for name, part in parts.items()})


__all__ = [
    "OBJECTIVES",
    "Batch",
    "Loss",
    "Objective",
    "Shares",
    "Weighting",
    "binary_cross_entropy",
    "equal_shares",
    "loss_of",
    "negative_log_probability",
    "objective_named",
    "own_items",
    "positive_against_negatives",
    "request_list_groups",
    "sampled_log_softmax",
    "shares",
    "shares_of",
    "with_negatives",
]
