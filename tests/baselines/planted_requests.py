"""Random request batches whose labels follow a planted rule, for tests of the baselines room."""

from __future__ import annotations

import numpy as np
import torch

from sostenuto.schema.features import FeatureSpec, Field
from sostenuto.schema.histories import Candidates, Context, History, RequestBatch

FEATURES = FeatureSpec(
    num_items=50,
    num_item_rows=50,
    categories=(
        Field(name="department", kind="categorical", size=6),
        Field(name="type", kind="categorical", size=5_000),
    ),
    candidate_fields=(
        Field(name="display", kind="categorical", size=4),
        Field(name="price", kind="numeric", mean=2.0, std=1.0),
        Field(name="popularity", kind="numeric", mean=3.0, std=2.0),
        Field(name="popularity_28d", kind="numeric", mean=3.0, std=2.0),
    ),
    context_fields=(Field(name="day_of_week", kind="categorical", size=9),),
    match=("item.count", "item.decayed_28d", "item.recency", "type.count", "user.length", "user.recency"),
)


def planted_logit(batch: RequestBatch) -> torch.Tensor:
    """Linear in count and popularity, and a product of count and recency."""
    count, recency = batch.candidates.match[:, 0], batch.candidates.match[:, 2]
    return -2.5 + 1.5 * count + 0.5 * (batch.candidates.fields["popularity"] - 3.0) + 1.5 * count * recency


def planted_batch(seed: int, *, requests: int = 8, candidates: int = 12, long: int = 6) -> RequestBatch:
    """Draw one batch; row 0 has an empty history, and some prices are missing."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, long + 1, (requests,), generator=g)
    lengths[0] = 0
    total, n = int(lengths.sum()), requests * candidates
    price = 2.0 + torch.randn(n, generator=g)
    price[::7] = torch.nan
    match = torch.rand(n, len(FEATURES.match), generator=g)
    match[:, 0] = torch.log1p(torch.randint(0, 4, (n,), generator=g).float())
    batch = RequestBatch(
        histories=History(
            offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
            item=torch.randint(2, 50, (total,), generator=g),
            category=torch.randint(2, 6, (total, 2), generator=g),
            time_ms=torch.arange(total),
            action=torch.zeros(total, dtype=torch.int64),
            value=torch.zeros(total),
            place=torch.zeros(total, dtype=torch.int64),
        ),
        candidates=Candidates(
            offsets=torch.arange(requests + 1) * candidates,
            item=torch.randint(1, 50, (n,), generator=g),
            category=torch.randint(0, 6, (n, 2), generator=g),
            match=match,
            fields={
                "display": torch.randint(0, 4, (n,), generator=g),
                "price": price,
                "popularity": 3.0 + 2.0 * torch.randn(n, generator=g),
                "popularity_28d": 3.0 + 2.0 * torch.randn(n, generator=g),
            },
        ),
        context=Context(
            time_ms=torch.full((requests,), 10_000),
            place=torch.zeros(requests, dtype=torch.int64),
            fields={"day_of_week": torch.randint(2, 9, (requests,), generator=g)},
        ),
        labels=torch.zeros(n),
        list_id=torch.zeros(n, dtype=torch.int64),
        request=torch.arange(requests),
        user=torch.arange(requests),
    )
    labels = torch.rand(n, generator=g) < torch.sigmoid(planted_logit(batch))
    return RequestBatch(
        histories=batch.histories,
        candidates=batch.candidates,
        context=batch.context,
        labels=labels.float(),
        list_id=batch.list_id,
        request=batch.request,
        user=batch.user,
    )


def planted_batches(first_seed: int, count: int, *, requests: int = 40) -> list[RequestBatch]:
    return [planted_batch(first_seed + n, requests=requests) for n in range(count)]


def scores(ranker, batch: RequestBatch) -> np.ndarray:
    return ranker.score(ranker.encode(batch.histories), batch.candidates, batch.context).logits.numpy()


def subset(batch: RequestBatch, rows: list[int], order: torch.Generator) -> tuple[RequestBatch, torch.Tensor]:
    """Return some requests with their candidates shuffled, and where each candidate stood before."""
    c, h = batch.candidates, batch.histories
    kept = [torch.arange(int(c.offsets[r]), int(c.offsets[r + 1])) for r in rows]
    kept = [k[torch.randperm(len(k), generator=order)] for k in kept]
    at = torch.cat(kept)
    past = torch.cat([torch.arange(int(h.offsets[r]), int(h.offsets[r + 1])) for r in rows])

    def offsets(lengths: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])

    smaller = RequestBatch(
        histories=History(
            offsets=offsets(h.lengths[rows]),
            **{n: getattr(h, n)[past] for n in ("item", "category", "time_ms", "action", "value", "place")},
        ),
        candidates=Candidates(
            offsets=offsets(c.lengths[rows]),
            item=c.item[at],
            category=c.category[at],
            match=c.match[at],
            fields={name: column[at] for name, column in c.fields.items()},
        ),
        context=Context(
            time_ms=batch.context.time_ms[rows],
            place=batch.context.place[rows],
            fields={name: column[rows] for name, column in batch.context.fields.items()},
        ),
        labels=batch.labels[at],
        list_id=batch.list_id[at],
        request=batch.request[rows],
        user=batch.user[rows],
    )
    return smaller, at
