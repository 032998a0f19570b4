"""What a ranker said of every candidate of a split, with the columns that metrics and slices need. Flat arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sostenuto.evaluation.terms import Array
from sostenuto.features.batch_parts import batch_parts
from sostenuto.features.cooccurrence import training_events
from sostenuto.schema.errors import DataError, RunError

if TYPE_CHECKING:
    import torch

    from sostenuto.data.prepared import PreparedData
    from sostenuto.schema.histories import RequestBatch
    from sostenuto.schema.ranker import Ranker

SCORED_EVENTS = 1 << 19  # behaviours of one pass when nothing is learnt

LISTS_AT_MOST = 256  # list_id is a byte in prepared data
_DTYPES = {
    "request": np.int64,
    "user": np.int64,
    "list_id": np.int64,
    "item": np.int64,
    "label": np.float32,
    "logit": np.float32,
    "time_ms": np.int64,
    "seen_length": np.int64,
    "history_length": np.int64,
    "prior_count": np.int64,
    "item_count": np.int64,
    "is_new_item": np.bool_,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """N scored candidates; rows of one request and list lie together.

    What `predict` reads off a batch is cut to the view of the run (newest 50, say). `with_log_facts` replaces
    history_length, prior_count, item_count and is_new_item by those of the whole log, so that slices of a full and of
    a truncated run hold the same rows.
    """

    request: Array  # (N,) row in the split
    user: Array  # (N,)
    list_id: Array  # (N,)
    item: Array  # (N,)
    label: Array  # (N,) 0 or 1
    logit: Array  # (N,)
    time_ms: Array  # (N,) of the request
    seen_length: Array  # (N,) behaviours that the ranker saw, after the view
    history_length: Array  # (N,) behaviours strictly before the request
    prior_count: Array  # (N,) how often the candidate stands in the history: 0 makes a first purchase
    item_count: Array  # (N,) occurrences in training time
    is_new_item: Array  # (N,) bool, no occurrence in training time

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            column: Array = np.asarray(getattr(self, name), dtype)
            if column.shape != np.shape(self.request):
                raise DataError(f"Predictions.{name} must be {np.shape(self.request)} like request, got {column.shape}")
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.request)

    @property
    def request_list(self) -> Array:
        """(N,) one number per request and list: the group of the headline GAUC."""
        return self.request * LISTS_AT_MOST + self.list_id

    def take(self, rows: Array) -> Predictions:
        """Return the rows of a mask or index."""
        return Predictions(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def save(self, path: str | Path) -> None:
        """Write a compressed npz file; a reader never sees half of it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})
        partial.replace(path)


def load_predictions(path: str | Path) -> Predictions:
    """Read what `Predictions.save` wrote."""
    path = Path(path)
    if not path.is_file():
        raise RunError(f"predictions must be a file, {path} is not there; run `sostenuto evaluate` on the run first")
    with np.load(path) as arrays:
        missing = sorted(set(_DTYPES) - set(arrays.files))
        if missing:
            raise RunError(f"predictions must hold {', '.join(missing)}, {path} does not; evaluate the run again")
        return Predictions(**{name: arrays[name] for name in _DTYPES})


def concatenate(parts: Iterable[Predictions]) -> Predictions:
    """Join predictions row-wise."""
    parts = list(parts)
    if not parts:
        return Predictions(**{name: np.zeros(0, dtype) for name, dtype in _DTYPES.items()})
    return Predictions(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in _DTYPES})


def count_in_history(item: Array, row: Array, history_item: Array, history_row: Array) -> Array:
    """(C,) how often each candidate (item, row) stands among the behaviours (history_item, history_row)."""
    base = int(max(item.max(initial=0), history_item.max(initial=0))) + 1
    wanted, back = np.unique(row.astype(np.int64) * base + item, return_inverse=True)
    if len(wanted) == 0:
        return np.zeros(0, np.int64)
    key = history_row.astype(np.int64) * base + history_item
    place = np.minimum(np.searchsorted(wanted, key), len(wanted) - 1)
    found = np.bincount(place[wanted[place] == key], minlength=len(wanted))
    return found[back.reshape(-1)].astype(np.int64)


def _of_batch(batch: RequestBatch, logits: Array, item_counts: Array | None) -> Predictions:
    history, candidates = batch.histories, batch.candidates
    lengths = history.lengths.cpu().numpy()
    row = candidates.row.cpu().numpy()
    item = candidates.item.cpu().numpy()
    history_row = np.repeat(np.arange(len(lengths)), lengths)
    counts = np.ones(len(item), np.int64) if item_counts is None else np.asarray(item_counts)[item]
    return Predictions(
        request=batch.request.cpu().numpy()[row],
        user=batch.user.cpu().numpy()[row],
        list_id=batch.list_id.cpu().numpy(),
        item=item,
        label=batch.labels.cpu().numpy(),
        logit=logits,
        time_ms=batch.context.time_ms.cpu().numpy()[row],
        seen_length=lengths[row],
        history_length=lengths[row],
        prior_count=count_in_history(item, row, history.item.cpu().numpy(), history_row),
        item_count=counts,
        is_new_item=counts == 0,
    )


def predict(
    ranker: Ranker,
    batches: Iterable[RequestBatch],
    *,
    item_counts: Array | None = None,
    device: torch.device | str = "cpu",
    max_events: int = SCORED_EVENTS,
) -> Predictions:
    """Score every batch with `ranker`, in evaluation mode and without gradients.

    Args:
        ranker:      anything of the table of models. A module is put back into training mode if it was in it; it is
                     not moved: `device` is where it lives.
        batches:     request batches, in any order.
        item_counts: (num_items,) occurrences in training time, see `training_counts`; without it every item counts as
                     seen once.
        device:      where batches are moved before scoring.
        max_events:  behaviours of one pass through the ranker; larger batches take several.
    """
    import torch

    module: Any = ranker if isinstance(ranker, torch.nn.Module) else None
    was_training = bool(module is not None and module.training)
    if was_training:
        module.eval()
    parts = []
    try:
        with torch.inference_mode():
            for batch in batches:
                for part in batch_parts(batch, max_events):
                    there = part.batch.to(device)
                    output = ranker.score(ranker.encode(there.histories), there.candidates, there.context)
                    logits = output.logits.float().cpu().numpy()
                    parts.append(_of_batch(part.batch, logits, item_counts))
    finally:
        if was_training:
            module.train()
    return concatenate(parts)


def training_counts(data: PreparedData) -> Array:
    """(num_items,) occurrences of each item among the events that training could know."""
    item = np.asarray(data.behaviours.item)
    return np.bincount(item[training_events(data)], minlength=data.features.num_items)


def with_log_facts(
    predictions: Predictions, data: PreparedData, split: str, *, item_counts: Array | None = None
) -> Predictions:
    """Return predictions whose history length, prior count and item count are those of the whole log."""
    requests, behaviours = data.requests(split), data.behaviours
    counts = training_counts(data) if item_counts is None else np.asarray(item_counts)
    rows, dense = np.unique(predictions.request, return_inverse=True)
    dense = dense.reshape(-1)
    prefix = np.asarray(requests.prefix)[rows].astype(np.int64)
    start = np.asarray(behaviours.offsets)[np.asarray(requests.user)[rows]].astype(np.int64)
    prior = np.zeros(len(predictions), np.int64)
    order = np.argsort(dense, kind="stable")
    bounds = np.searchsorted(dense[order], np.arange(len(rows) + 1))
    chunk_of = np.cumsum(prefix) // (1 << 22)  # some millions of behaviours at a time
    edges = np.flatnonzero(np.diff(chunk_of, prepend=-1))
    for low, high in zip(edges, [*edges[1:], len(rows)], strict=True):
        lengths = prefix[low:high]
        inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        items = np.asarray(behaviours.item)[np.repeat(start[low:high], lengths) + inside]
        mine = order[bounds[low] : bounds[high]]
        prior[mine] = count_in_history(
            predictions.item[mine], dense[mine] - low, items, np.repeat(np.arange(high - low), lengths)
        )
    item_count = counts[predictions.item]
    return replace(
        predictions,
        history_length=prefix[dense],
        prior_count=prior,
        item_count=item_count,
        is_new_item=item_count == 0,
    )


__all__ = [
    "LISTS_AT_MOST",
    "Predictions",
    "concatenate",
    "count_in_history",
    "load_predictions",
    "predict",
    "training_counts",
    "with_log_facts",
]
