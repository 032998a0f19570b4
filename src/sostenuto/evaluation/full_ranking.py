"""Ranking of all candidate items for some requests: what sampled negatives cannot show.

The protocol may have written requests and their truth (`pools/ranking.*`, every candidate item of the basket);
otherwise requests are drawn from the split, and their truth is what is labelled 1. Candidate fields that belong to a
shown list (price, position, a promotion's flags) are missing for everyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sostenuto.data.prepared import PreparedData, Requests
from sostenuto.evaluation.measures import measure_terms
from sostenuto.evaluation.predictions import Predictions, predict
from sostenuto.evaluation.significance import DRAWS, bootstrap_interval
from sostenuto.evaluation.terms import Array
from sostenuto.features.collation import Collator
from sostenuto.features.loading import RequestLoader, sample_rows
from sostenuto.features.missing import missing_column
from sostenuto.schema.errors import DataError
from sostenuto.schema.features import FIRST_KNOWN

if TYPE_CHECKING:
    import torch

    from sostenuto.schema.ranker import Ranker

SCORED_AT_ONCE = 2_048  # candidates of one request per call: bounds memory, changes no score
KS = (10, 20, 50, 100)


def ranked_items(data: PreparedData) -> Array:
    """Return the items that are ranked: the protocol's candidate items, else all that own an embedding row."""
    pool = data.folder / "pools" / "candidate_items.npy"
    if pool.is_file():
        return np.sort(np.load(pool).astype(np.int64))
    return np.arange(FIRST_KNOWN, data.features.num_item_rows)


def ranking_truth(data: PreparedData, split: str, count: int, seed: int) -> tuple[Array, list[Array]]:
    """Return the request rows (R,) of `split` and the true items of each.

    Args:
        data:  prepared data.
        split: the protocol's own choice of requests is for `test`.
        count: requests, at most.
        seed:  draws requests where the protocol chose none.
    """
    requests = data.requests(split)
    chosen = data.folder / "pools" / "ranking.rows.npy"
    if split == "test" and chosen.is_file():
        rows, offsets, item = (np.load(chosen.with_name(f"ranking.{name}.npy")) for name in ("rows", "offsets", "item"))
        truth = np.split(item, offsets[1:-1])
        order = np.arange(len(rows)) if len(rows) <= count else np.random.default_rng(seed).permutation(len(rows))
        kept = np.sort(order[:count])
        return rows[kept], [truth[n] for n in kept]
    able, truth = labelled_truth(data, split, np.arange(len(requests)))
    order = np.random.default_rng([seed, len(able)]).permutation(len(able))[:count]
    kept = np.sort(order)
    return able[kept], [truth[n] for n in kept]


def labelled_truth(data: PreparedData, split: str, rows: Array) -> tuple[Array, list[Array]]:
    """Return those of some rising request rows that have a positive, and the items that each labels so."""
    requests = data.requests(split)
    items, positive, starts = np.asarray(requests.item), np.asarray(requests.label) > 0, np.asarray(requests.offsets)
    before = np.concatenate(([0], np.cumsum(positive)))
    able = rows[before[starts[rows + 1]] > before[starts[rows]]]
    if not len(able):
        raise DataError(f"{split} must hold a request with a positive, {data.folder} has none; take another split")
    return able, [np.unique(items[a:b][positive[a:b]]) for a, b in zip(starts[able], starts[able + 1], strict=True)]


def all_items_requests(data: PreparedData, split: str, rows: Array, truth: Sequence[Array]) -> tuple[Requests, int]:
    """Return requests over all ranked items, each cut into the same number of pieces, and that number.

    Piece p of request n is row n * pieces + p; true items that are not ranked are added to the last piece.
    """
    requests, items = data.requests(split), ranked_items(data)
    pieces = max(1, -(-len(items) // SCORED_AT_ONCE))
    cuts = [items[n * SCORED_AT_ONCE : (n + 1) * SCORED_AT_ONCE] for n in range(pieces)]
    flat, labels, sizes = [], [], []
    for true_items in truth:
        for n, cut in enumerate(cuts):
            piece = np.union1d(cut, np.setdiff1d(true_items, items)) if n == pieces - 1 else cut
            flat.append(piece)
            labels.append(np.isin(piece, true_items))
            sizes.append(len(piece))
    item = np.concatenate(flat).astype(np.int32)
    at = np.repeat(rows, pieces)
    return (
        Requests(
            user=np.asarray(requests.user)[at],
            time_ms=np.asarray(requests.time_ms)[at],
            prefix=np.asarray(requests.prefix)[at],
            place=np.asarray(requests.place)[at],
            context={name: np.asarray(column)[at] for name, column in requests.context.items()},
            offsets=np.append(0, np.cumsum(sizes)).astype(np.int64),
            item=item,
            label=np.concatenate(labels).astype(np.float32),
            list_id=np.zeros(len(item), np.uint8),
            candidate={f.name: missing_column(f, len(item)) for f in data.features.candidate_fields},
        ),
        pieces,
    )


def score_all_items(
    ranker: Ranker, collator: Collator, split: str, *, requests: int, seed: int, device: torch.device | str = "cpu"
) -> Predictions:
    """Return what a ranker says of all items for some requests of a split."""
    rows, truth = ranking_truth(collator.data, split, requests, seed)
    made, pieces = all_items_requests(collator.data, split, rows, truth)
    loader = RequestLoader(collator, made, sample_rows(made, None, seed), batch_requests=1)
    scored = predict(ranker, loader, device=device)
    return replace(scored, request=rows[scored.request // pieces])


def full_ranking(
    ranker: Ranker,
    collator: Collator,
    split: str = "test",
    *,
    requests: int = 200,
    seed: int = 0,
    ks: Sequence[int] = KS,
    draws: int = DRAWS,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Rank all candidate items for some requests and measure, with 95 % intervals over users.

    Args:
        ranker:   on `device`.
        collator: of the data and view that the ranker was trained with.
        split:    valid or test.
        requests: at most so many.
        seed:     draws requests where the protocol chose none; and of the intervals.
        ks:       cut-offs.
        draws:    resamples of the users.
        device:   where the ranker lives.
    """
    scored = score_all_items(ranker, collator, split, requests=requests, seed=seed, device=device)
    names = ["gauc_request", *(f"{kind}@{k}" for kind in ("recall", "ndcg", "hr") for k in ks)]
    owned = measure_terms(scored, names)
    metrics = {name: asdict(bootstrap_interval(o.terms, o.user, draws=draws, seed=seed)) for name, o in owned.items()}
    counted = len(np.unique(scored.request))
    return {
        "requests": counted,
        "candidates": len(ranked_items(collator.data)),
        "positives_per_request": float(scored.label.sum() / max(counted, 1)),
        "metrics": metrics,
    }


__all__ = [
    "KS",
    "all_items_requests",
    "full_ranking",
    "labelled_truth",
    "ranked_items",
    "ranking_truth",
    "score_all_items",
]
