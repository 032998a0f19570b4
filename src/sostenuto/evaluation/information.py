"""What a behaviour's category and place say of a label, and whether a ranker's attention knows it.

The analysis of DARE (arXiv:2410.02604): the mutual information of (target category, behaviour category, position) with
the label is a measure of relevance that no model has made; a search is good when it ranks behaviours as that does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sostenuto.evaluation.terms import Array
from sostenuto.features.loading import RequestLoader, sample_rows
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FIRST_KNOWN

if TYPE_CHECKING:
    from sostenuto.features.collation import Collator

EMPTY = 1e-5  # stands for a count of nothing


def mutual_information(positive: Array, negative: Array, all_positive: Array, all_negative: Array) -> Array:
    """Return the bits that "the behaviour at this place is of this category" says of the label.

    Args:
        positive:     n+, positive samples of which it is true.
        negative:     n-, negative ones.
        all_positive: T+, positive samples there are.
        all_negative: T-.

    >>> bool(abs(mutual_information(*np.array([50.0, 50.0, 100.0, 100.0]))) < 1e-9)
    True
    """
    cells = [positive, negative, all_positive - positive, all_negative - negative]
    a, b, c, d = (np.maximum(np.asarray(cell, np.float64), EMPTY) for cell in cells)
    total = a + b + c + d

    def term(n: Array, row: Array, column: Array) -> Array:
        return np.asarray(n / total * np.log2(n * total / (row * column)))

    return np.asarray(
        term(a, a + b, a + c) + term(b, a + b, b + d) + term(c, c + d, a + c) + term(d, c + d, b + d), np.float64
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Candidates with the categories of the newest behaviours before them."""

    target: Array  # (S,) int64 finest category
    past: Array  # (S, P) int64 category of the p-th newest behaviour, 0 where there is none
    label: Array  # (S,) float


def relevance_table(samples: Samples, targets: Array, num_categories: int) -> Array:
    """Return (T, C, P) mutual information of target categories, behaviour categories and places with the label."""
    place = np.arange(samples.past.shape[1])
    table = np.zeros((len(targets), num_categories, len(place)))
    for t, target in enumerate(targets):
        mine = samples.target == target
        counts = []
        for wanted in (1, 0):
            past = samples.past[mine & ((samples.label > 0.5) == bool(wanted))]
            flat = np.bincount((past * len(place) + place).ravel(), minlength=num_categories * len(place))
            counts.append(flat.reshape(num_categories, len(place)))
        positives = float((samples.label[mine] > 0.5).sum())
        all_positive, all_negative = np.array(positives), np.array(mine.sum() - positives)
        table[t] = mutual_information(counts[0], counts[1], all_positive, all_negative)
    table[:, 0] = 0.0  # no behaviour is no category
    return table


def ranking_ndcg(scores: Array, gains: Array, k: int) -> float:
    """Return NDCG@k of behaviours ranked by scores, of equal ones the first first; NaN where no gain is above 0.

    >>> ranking_ndcg(np.array([3.0, 2.0, 1.0]), np.array([1.0, 0.5, 0.0]), 2)
    1.0
    """
    discount = 1.0 / np.log2(np.arange(2, min(k, len(gains)) + 2))
    ideal = float((np.sort(gains)[::-1][:k] * discount).sum())
    if ideal <= 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")[:k]
    return float((gains[order] * discount).sum()) / ideal


def samples_of(collator: Collator, split: str, *, positions: int, requests: int | None, seed: int) -> Samples:
    """Return the candidates of some requests with the categories of their newest `positions` behaviours."""
    asked = collator.data.requests(split)
    loader = RequestLoader(collator, asked, sample_rows(asked, requests, seed), batch_requests=256)
    target, past, label = [], [], []
    for batch in loader:
        history = batch.histories
        finest = history.category[:, -1].numpy()
        ends, lengths = history.offsets[1:].numpy(), history.lengths.numpy()
        back = np.arange(positions)
        at = ends[:, None] - 1 - back
        rows = np.where(back < lengths[:, None], finest[np.clip(at, 0, None)] if len(finest) else 0, 0)
        target.append(batch.candidates.category[:, -1].numpy())
        past.append(rows[batch.candidates.row.numpy()])
        label.append(batch.labels.numpy())
    return Samples(target=np.concatenate(target), past=np.concatenate(past), label=np.concatenate(label))


def retrieval_quality(
    ranker: Any,
    collator: Collator,
    *,
    split: str = "test",
    positions: int = 50,
    k: int = 10,
    requests: int = 500,
    categories: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a ranker's scores of behaviours with the mutual information of training requests.

    Args:
        ranker:     one that says how it scores behaviours (`relevance`), in evaluation mode.
        collator:   of the data and view that it was trained with.
        split:      whose requests are ranked: valid or test.
        positions:  newest behaviours that count.
        k:          of NDCG.
        requests:   at most so many, drawn by `seed`.
        categories: most frequent target categories that count; others have too few samples.
        seed:       of the draw.

    Returns:
        NDCG@k of the ranker, of recency alone and of the mean over all orders; and by position, for behaviours of the
        target's category and of others, mean information and mean attention weight.
    """
    if not hasattr(ranker, "relevance"):
        raise SpecError("the model must say how it scores behaviours, this one does not; take a run of dare")
    fields = collator.features.categories
    if not fields:
        raise SpecError("items must have categories to count by, the data have none; give a category path")
    train = samples_of(collator, "train", positions=positions, requests=None, seed=seed)
    count = np.bincount(train.target, minlength=fields[-1].size)
    count[:FIRST_KNOWN] = 0
    targets = np.argsort(-count, kind="stable")[:categories]
    targets = targets[count[targets] > 0]
    table = relevance_table(train, targets, fields[-1].size)
    row_of = np.full(fields[-1].size, -1)
    row_of[targets] = np.arange(len(targets))
    ndcg: dict[str, list[float]] = {"model": [], "recency": [], "any order": []}
    sums = np.zeros((2, 2, positions))  # (same, other) x (information, attention)
    seen = np.zeros((2, positions))
    for weights, past, target in _attended(ranker, collator, split, requests, positions, seed):
        if row_of[target] < 0 or not len(past):
            continue
        gains = table[row_of[target], past, np.arange(len(past))]
        ndcg["model"].append(ranking_ndcg(weights, gains, k))
        ndcg["recency"].append(ranking_ndcg(-np.arange(len(past)), gains, k))
        ndcg["any order"].append(_of_any_order(gains, k))
        for n, mask in enumerate((past == target, past != target)):
            sums[n, 0, : len(past)] += np.where(mask, gains, 0.0)
            sums[n, 1, : len(past)] += np.where(mask, weights, 0.0)
            seen[n, : len(past)] += mask
    mean = sums / np.where(seen > 0, seen, np.nan)[:, None]
    return {
        "split": split,
        "k": k,
        "positions": positions,
        "candidates": len(ndcg["model"]),
        "categories": len(targets),
        "ndcg": {name: float(np.nanmean(values)) if len(values) else float("nan") for name, values in ndcg.items()},
        "points": [
            {
                "position": p + 1,
                "information_same": float(mean[0, 0, p]),
                "information_other": float(mean[1, 0, p]),
                "attention_same": float(mean[0, 1, p]),
                "attention_other": float(mean[1, 1, p]),
            }
            for p in range(positions)
        ],
    }


def _of_any_order(gains: Array, k: int) -> float:
    """Return DCG of the mean gain at every place over the ideal one: what an order drawn at random is worth."""
    discount = 1.0 / np.log2(np.arange(2, min(k, len(gains)) + 2))
    ideal = float((np.sort(gains)[::-1][:k] * discount).sum())
    return float(gains.mean() * discount.sum()) / ideal if ideal > 0 else float("nan")


def _attended(
    ranker: Any, collator: Collator, split: str, requests: int, positions: int, seed: int
) -> Iterator[tuple[Array, Array, int]]:
    """Yield per candidate the softmax weights and categories of its newest behaviours, newest first, and its own."""
    import torch

    asked = collator.data.requests(split)
    loader = RequestLoader(collator, asked, sample_rows(asked, requests, seed), batch_requests=32)
    for batch in loader:
        history, category = batch.histories, batch.candidates.category[:, -1].numpy()
        finest, at = history.category[:, -1].numpy(), 0
        with torch.no_grad():
            state = ranker.encode(history)
            for row, scores in enumerate(ranker.relevance(state, batch.candidates, batch.context)):
                low, high = int(history.offsets[row]), int(history.offsets[row + 1])
                newest = finest[low:high][::-1][:positions]
                weights = scores.softmax(1).numpy()[:, ::-1][:, :positions]
                for each in weights:
                    yield each, newest, category[at]
                    at += 1


__all__ = ["Samples", "mutual_information", "ranking_ndcg", "relevance_table", "retrieval_quality", "samples_of"]
