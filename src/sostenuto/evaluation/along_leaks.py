"""Does a ranker see more in training than it will see at inference? Compare the two, request by request.

A ranker that trains on all requests of a timeline in one pass is trusted to hide from each request what came at or
after it. A mask that is wrong by one place trains to an AUC near 1 and is worthless in use. Two tests find that out,
whatever the ranker is made of: its logits along the timeline against those of the history cut by hand, and the same
logits again after everything at or behind a request was changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sostenuto.schema.histories import History, SequenceBatch

TOLERANCE = 1e-5  # of max(1, the largest logit)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlongReport:
    """What was found on one batch."""

    candidates: int  # compared
    differing: int  # whose logit along the timeline is not that of the history cut before the request
    largest_difference: float
    leaking: int  # whose logit moves with what happens at or after the request
    largest_leak: float
    request: int | None  # row in the batch of the worst request; None where all is well

    @property
    def is_clean(self) -> bool:
        """Say whether training sees what inference sees."""
        return self.differing == 0 and self.leaking == 0

    def __str__(self) -> str:
        if self.is_clean:
            return f"{self.candidates:,} candidates: training sees what inference sees"
        return (
            f"{self.leaking:,} of {self.candidates:,} candidates read what happens at or after their request (a logit "
            f"moves by {self.largest_leak:.2g}), and {self.differing:,} score otherwise at inference (by "
            f"{self.largest_difference:.2g}); the worst is request {self.request} of the batch: check the mask"
        )


def check_along(ranker: Any, batch: SequenceBatch, *, tolerance: float = TOLERANCE) -> AlongReport:
    """Compare a ranker's pass along timelines with inference on histories cut by hand.

    Args:
        ranker: with `logits_along`, `encode` and `score`; it is put into evaluation mode while this runs.
        batch: a few timelines; costs one encoding and one further pass per request.
        tolerance: of law 3, relative to the largest logit.
    """
    import torch

    was_training = bool(getattr(ranker, "training", False))
    if was_training:
        ranker.eval()
    try:
        with torch.no_grad():
            along = ranker.logits_along(batch).logits
            alone, changed = torch.empty_like(along), torch.empty_like(along)
            starts = batch.candidates.offsets.tolist()
            for r in range(batch.num_requests):
                rows = slice(starts[r], starts[r + 1])
                candidates, context = batch.candidates.part(r, r + 1), batch.context.part(r, r + 1)
                alone[rows] = ranker.score(ranker.encode(cut_before(batch, r)), candidates, context).logits
                changed[rows] = ranker.logits_along(with_other_future(batch, r)).logits[rows]
    finally:
        if was_training:
            ranker.train()
    allowed = tolerance * max(1.0, float(along.abs().max()) if along.numel() else 1.0)
    difference, leak = (along - alone).abs(), (along - changed).abs()
    bad = torch.maximum(difference, leak)
    worst = int(bad.argmax()) if bad.numel() and float(bad.max()) > allowed else None
    return AlongReport(
        candidates=along.shape[0],
        differing=int((difference > allowed).sum()),
        largest_difference=float(difference.max()) if along.numel() else 0.0,
        leaking=int((leak > allowed).sum()),
        largest_leak=float(leak.max()) if along.numel() else 0.0,
        request=None if worst is None else int(batch.candidates.row[worst]),
    )


def cut_before(batch: SequenceBatch, request: int) -> History:
    """Return the history of one request alone, cut before it."""
    import torch

    end = int(batch.ends[request])
    start = end - int(batch.prefix[request])
    whole = batch.histories
    columns = {name: getattr(whole, name)[start:end] for name in _COLUMNS}
    return replace(
        whole,
        offsets=torch.tensor([0, end - start], device=whole.offsets.device),
        fields={name: column[start:end] for name, column in whole.fields.items()},
        **columns,
    )


_COLUMNS = ("item", "category", "time_ms", "action", "value", "place")


def with_other_future(batch: SequenceBatch, request: int) -> SequenceBatch:
    """Return the batch with other actions and values at and after one request, and its user's later items turned round.

    Times and lengths stay, so what a request may see stays too.
    """
    import torch

    whole, end = batch.histories, int(batch.ends[request])
    last = int(whole.offsets[int(batch.row[request]) + 1])
    future = torch.zeros(whole.item.shape[0], dtype=torch.bool, device=whole.item.device)
    future[end:last] = True
    turned = torch.arange(len(future), device=future.device)
    turned[end:last] = turned[end:last].flip(0)

    def other(column: Tensor) -> Tensor:
        return column[turned]

    most = int(whole.action.max()) + 1 if whole.action.numel() else 1
    action = torch.where(future, (whole.action[turned] + 1) % max(most, 2), whole.action)
    value = torch.where(future, torch.nan_to_num(whole.value[turned]) + 1.0, whole.value)
    changed = replace(
        whole,
        item=other(whole.item),
        category=other(whole.category),
        action=action,
        value=value,
        fields={name: other(column) for name, column in whole.fields.items()},
    )
    return replace(batch, histories=changed)


__all__ = ["AlongReport", "check_along", "cut_before", "with_other_future"]
