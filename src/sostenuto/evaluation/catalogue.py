"""Ranking of the whole catalogue for every request of a split, in one pass and bounded memory.

A retriever's scores are inner products, so its part is one matrix product: queries of all requests times vectors of
all items. A ranker of several heads makes one for each head by itself. Any other is asked item by item, which is as
exact and much slower.

Per request only what can stand in the first places is kept: the items that score no less than the k-th best, and the
true ones. Every measure at k of `top_k` is a function of these alone, ties and all. True items that cannot be
found (outside of the catalogue, or seen while seen items are left out) count as misses, never as if they were not
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sostenuto.data.prepared import Requests
from sostenuto.evaluation import coverage
from sostenuto.evaluation.full_ranking import all_items_requests, labelled_truth, ranked_items, ranking_truth
from sostenuto.evaluation.measures import OwnedTerms
from sostenuto.evaluation.predictions import SCORED_EVENTS
from sostenuto.evaluation.score_counts import ScoreCounts, count_scores, merge_counts
from sostenuto.evaluation.significance import DRAWS, bootstrap_ratios, percentile_interval, user_sums
from sostenuto.evaluation.terms import Array, GroupTerms
from sostenuto.evaluation.top_k import TOP_K
from sostenuto.evaluation.top_rows import top_rows
from sostenuto.features.batch_parts import batch_parts
from sostenuto.features.collation import Collator
from sostenuto.features.loading import RequestLoader
from sostenuto.schema.errors import DataError, SpecError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sostenuto.schema.histories import Candidates, RequestBatch
    from sostenuto.schema.ranker import CatalogueRanker, Ranker, Retriever

KS = (10, 50)
KINDS = ("recall", "ndcg", "hr")
REQUESTS_AT_ONCE = 256
HEADS_AT_ONCE = 32  # requests of a ranker with many scores per item
SCORES_AT_ONCE = 1 << 24  # of requests and items; a larger catalogue is ranked for fewer requests at a time
ITEMS_AT_ONCE = 65_536
NOT_FOUND = float("-inf")


def is_retriever(ranker: Any) -> bool:
    """Say whether a ranker can search: its logits are inner products of a query and an item's vector."""
    return hasattr(ranker, "query") and hasattr(ranker, "item_vectors")


def searches(ranker: Any) -> bool:
    """Say whether ranking the whole catalogue is cheap for a ranker: a retriever, or one of several heads."""
    return is_retriever(ranker) or hasattr(ranker, "catalogue_scores")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is kept of R ranked requests."""

    request: Array  # (R,) row in the split
    user: Array  # (R,)
    counts: ScoreCounts  # by request: the first places and the true items; enough for every measure up to `most`
    reciprocal: Array  # (R,) expected 1 / rank of the best true item in the whole catalogue, 0 if it cannot be found
    top_request: Array  # (T,) request, item and score of the first places, ties broken by a hash
    top_item: Array  # (T,)
    items: Array  # (I,) the catalogue
    most: int  # largest k

    def terms(self, kind: str, k: int) -> OwnedTerms:
        """Return a measure of `top_k` with the users of its requests."""
        if k > self.most:
            raise SpecError(f"k must be at most {self.most}, which was kept of this ranking, got {k}; rank again")
        return self._owned(TOP_K[kind](self.counts, k))

    def mrr(self) -> OwnedTerms:
        """Return the mean reciprocal rank over the whole catalogue."""
        order = np.argsort(self.request)
        ones = np.ones(len(order))
        return self._owned(GroupTerms(group=self.request[order], numerator=self.reciprocal[order], denominator=ones))

    def coverage(self, k: int) -> float:
        """Return the share of the catalogue that stands in the first k of some request."""
        place = np.arange(len(self.top_request)) - np.searchsorted(self.top_request, self.top_request)
        shown = np.unique(self.top_item[place < k])
        return coverage.value(coverage.CoverageState(shown=shown, candidates=self.items))

    def _owned(self, terms: GroupTerms) -> OwnedTerms:
        order = np.argsort(self.request)
        return OwnedTerms(terms=terms, user=self.user[order][np.searchsorted(self.request[order], terms.group)])


def _without_candidates(requests: Requests, rows: Array, collator: Collator) -> Requests:
    """Return some requests that ask about nothing: their histories are all that a query needs."""
    none = np.zeros(0, np.int32)
    return replace(
        requests,
        user=np.asarray(requests.user)[rows],
        time_ms=np.asarray(requests.time_ms)[rows],
        prefix=np.asarray(requests.prefix)[rows],
        place=np.asarray(requests.place)[rows],
        context={name: np.asarray(column)[rows] for name, column in requests.context.items()},
        offsets=np.zeros(len(rows) + 1, np.int64),
        item=none,
        label=none.astype(np.float32),
        list_id=none.astype(np.uint8),
        candidate={name: np.asarray(column)[:0] for name, column in requests.candidate.items()},
    )


def at_once(most: int, num_items: int) -> int:
    """Return how many requests are ranked at a time: `most`, and fewer where the catalogue is large.

    >>> at_once(256, 12_000), at_once(256, 1_000_000)
    (256, 16)
    """
    return max(1, min(most, SCORES_AT_ONCE // max(num_items, 1)))


def _asked(
    collator: Collator, split: str, rows: Array, batch_requests: int, device: torch.device | str
) -> Iterator[RequestBatch]:
    """Yield consecutive requests without candidates, cut where their histories are long; memory stays bounded."""
    made = _without_candidates(collator.data.requests(split), rows, collator)
    loader = RequestLoader(collator, made, np.arange(len(rows)), batch_requests=batch_requests, seed=None)
    for batch in loader:
        for part in batch_parts(batch, SCORED_EVENTS):
            yield part.batch.to(device)


def catalogue_vectors(
    ranker: Retriever, collator: Collator, items: Array, device: torch.device | str = "cpu"
) -> Tensor:
    """Return (I, D), the vector of every item; the ranker must be in evaluation mode."""
    import torch

    parts = []
    for start in range(0, len(items), ITEMS_AT_ONCE):
        candidates: Candidates = collator.assembler.items(items[start : start + ITEMS_AT_ONCE])
        parts.append(ranker.item_vectors(candidates.to(device)))
    return torch.cat(parts)


def _retriever_scores(
    ranker: Retriever, collator: Collator, split: str, rows: Array, items: Array, device: torch.device | str
) -> Iterator[Tensor]:
    """Yield (b, I) scores of consecutive requests."""
    vectors = catalogue_vectors(ranker, collator, items, device)
    for there in _asked(collator, split, rows, at_once(REQUESTS_AT_ONCE, len(items)), device):
        yield ranker.query(ranker.encode(there.histories), there.context) @ vectors.T


def _catalogue_scores(
    ranker: CatalogueRanker, collator: Collator, split: str, rows: Array, items: Array, device: torch.device | str
) -> Iterator[Tensor]:
    """Yield (b, I) scores of consecutive requests, of a ranker that gives those of a whole catalogue by itself."""
    catalogue = collator.assembler.items(items).to(device)
    for there in _asked(collator, split, rows, at_once(HEADS_AT_ONCE, len(items)), device):
        yield ranker.catalogue_scores(ranker.encode(there.histories), catalogue, there.context)


def _ranker_scores(
    ranker: Ranker, collator: Collator, split: str, rows: Array, items: Array, device: torch.device | str
) -> Iterator[Tensor]:
    """Yield (1, I) scores, request by request, a piece of the catalogue at a time."""
    import torch

    none = np.zeros(0, np.int64)
    for row in rows:
        made, _ = all_items_requests(collator.data, split, np.array([row]), [none])
        pieces = []
        for batch in RequestLoader(collator, made, np.arange(len(made)), batch_requests=1, seed=None, prefetch=0):
            there = batch.to(device)
            output = ranker.score(ranker.encode(there.histories), there.candidates, there.context)
            pieces.append(output.logits.float())
        yield torch.cat(pieces)[None]


def _expected_reciprocal(above: Array, tied: Array, hits: Array) -> Array:
    """Return (R,) E[1 / rank] of the first of `hits` true items among `tied` equal scores, `above` items above them.

    >>> _expected_reciprocal(np.array([0, 0, 3]), np.array([1, 2, 1]), np.array([1, 1, 1])).tolist()
    [1.0, 0.75, 0.25]
    """
    out = 1.0 / (above + 1.0)
    for r in np.flatnonzero(tied > hits):
        places = np.arange(tied[r])
        missed = (tied[r] - hits[r] - places).clip(0) / (tied[r] - places)  # no hit here, given none before
        before = np.concatenate(([1.0], np.cumprod(missed)[:-1]))
        out[r] = float((before * (1.0 - missed) / (above[r] + 1.0 + places)).sum())
    return out


def _seen(collator: Collator, requests: Requests, rows: Array) -> tuple[Array, Array]:
    """Return (place among rows, item) of everything that users met before their requests."""
    behaviours = collator.data.behaviours
    low = np.asarray(behaviours.offsets, np.int64)[np.asarray(requests.user)[rows]]
    prefix = np.asarray(requests.prefix, np.int64)[rows]
    at = np.concatenate([np.arange(a, a + p) for a, p in zip(low.tolist(), prefix.tolist(), strict=True)])
    return np.repeat(np.arange(len(rows)), prefix), np.asarray(behaviours.item)[at]


def _places(items: Array, wanted: Array) -> tuple[Array, Array]:
    """Return where (N,) wanted items stand in the sorted catalogue, and (N,) whether they do."""
    place = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
    return place, items[place] == wanted


def rank_catalogue(
    ranker: Ranker,
    collator: Collator,
    split: str = "test",
    *,
    requests: int | None = None,
    rows: Array | None = None,
    truth: Sequence[Array] | None = None,
    seed: int = 0,
    most: int = max(KS),
    exclude_seen: bool = False,
    device: torch.device | str = "cpu",
) -> Standing:
    """Rank all items for the requests of a split.

    Args:
        ranker:       on `device`; a module is put into evaluation mode for it.
        collator:     of the data and view that the ranker was trained with.
        split:        valid or test.
        requests:     at most so many, drawn by `seed`; None = all with a true item.
        rows:         these requests, in rising order, instead of a draw; those without a true item are left out.
        truth:        true items of each of `rows`, where they are not what the split labels 1.
        seed:         of the draw.
        most:         largest k that can be measured afterwards.
        exclude_seen: leave out what the user met before; a true item among it then counts as a miss.
        device:       where the ranker lives.
    """
    import torch

    data = collator.data
    items = ranked_items(data)
    if not len(items):
        raise DataError(f"the catalogue must hold an item, {data.folder} has none with a row; prepare more events")
    asked = data.requests(split)
    if rows is None:
        rows, truth = ranking_truth(data, split, len(asked) if requests is None else requests, seed)
    elif truth is None:
        rows, truth = labelled_truth(data, split, rows)
    module: Any = ranker if isinstance(ranker, torch.nn.Module) else None
    was_training = bool(module is not None and module.training)
    if was_training:
        module.eval()
    scores_of: Any = _ranker_scores
    if searches(ranker):
        scores_of = _retriever_scores if is_retriever(ranker) else _catalogue_scores
    kept: list[tuple[Array, ...]] = []
    tops: list[tuple[Array, Array]] = []
    reciprocal: list[Array] = []
    missing: list[tuple[int, int]] = []
    first = 0
    try:
        with torch.inference_mode():
            for scores in scores_of(ranker, collator, split, rows, items, device):
                here = slice(first, first + len(scores))
                chunk = _Chunk(rows[here], truth[here], items, scores.float(), most)
                if exclude_seen:
                    chunk.leave_out(*_seen(collator, asked, rows[here]))
                kept.append(chunk.first_places())
                tops.append(chunk.top(kept[-1]))
                reciprocal.append(chunk.reciprocal_ranks())
                missing += chunk.not_found()
                first += len(scores)
    finally:
        if was_training:
            module.train()
    label, score, group = (np.concatenate([part[n] for part in kept]) for n in range(3))
    counts = count_scores(label, score, group)
    if missing:  # behind everything, so that no k reaches them
        request, lost = (np.array(column, np.int64) for column in zip(*missing, strict=True))
        behind = _blocks(
            request, np.full(len(request), -np.finfo(np.float64).max), negatives=np.full(len(request), most)
        )
        counts = merge_counts(
            counts, merge_counts(behind, _blocks(request, np.full(len(request), NOT_FOUND), positives=lost))
        )
    return Standing(
        request=rows,
        user=np.asarray(asked.user)[rows].astype(np.int64),
        counts=counts,
        reciprocal=np.concatenate(reciprocal),
        top_request=np.concatenate([top[0] for top in tops]),
        top_item=np.concatenate([top[1] for top in tops]),
        items=items,
        most=most,
    )


def _blocks(
    group: Array, score: Array, *, positives: Array | None = None, negatives: Array | None = None
) -> ScoreCounts:
    none = np.zeros(len(group), np.int64)
    return ScoreCounts(
        group=group,
        score=score,
        positives=none if positives is None else positives,
        negatives=none if negatives is None else negatives,
    )


class _Chunk:
    """Scores (b, I) of some requests, and the places of their true items."""

    def __init__(self, rows: Array, truth: Sequence[Array], items: Array, scores: Tensor, most: int) -> None:
        import torch

        if bool(scores.isnan().any()):
            raise DataError("scores must not be NaN, some are; look for a division by 0 in the ranker")
        self.rows, self.items, self.scores = rows, items, scores
        self.most = min(most, len(items))
        owner = np.repeat(np.arange(len(truth)), [len(one) for one in truth])
        true_items = np.concatenate(truth).astype(np.int64)
        place, known = _places(items, true_items)
        self.num_true = np.bincount(owner, minlength=len(truth))
        self.owner, self.place = owner[known], place[known]
        self.is_true = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        self.is_true[self._at(self.owner), self._at(self.place)] = True

    def _at(self, index: Array) -> Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(index, np.int64)).to(self.scores.device)

    def leave_out(self, owner: Array, item: Array) -> None:
        """Take items out of the ranking."""
        place, known = _places(self.items, item)
        self.scores[self._at(owner[known]), self._at(place[known])] = NOT_FOUND

    def first_places(self) -> tuple[Array, Array, Array, Array]:
        """Return label, score, request and item of what may stand in the first places, and of true items."""
        lowest = self.scores.topk(self.most, 1).values[:, -1:]
        wanted = ((self.scores >= lowest) | self.is_true) & (self.scores > NOT_FOUND)
        row, place = (found.cpu().numpy() for found in wanted.nonzero(as_tuple=True))
        label = self.is_true[wanted].float().cpu().numpy()
        return label, self.scores[wanted].cpu().numpy(), self.rows[row].astype(np.int64), self.items[place]

    def top(self, kept: tuple[Array, ...]) -> tuple[Array, Array]:
        """Return request and item of the first places, best first."""
        _, score, request, item = kept
        best = top_rows(score, request, item, self.most)
        return request[best.row], item[best.row]

    def reciprocal_ranks(self) -> Array:
        """Return (b,) expected 1 / rank of the best true item."""
        import torch

        hits = torch.where(self.is_true, self.scores, NOT_FOUND)
        best = hits.max(1, keepdim=True).values
        above = (self.scores > best).sum(1).cpu().numpy()
        tied = (self.scores == best).sum(1).cpu().numpy()
        true_tied = (self.is_true & (self.scores == best)).sum(1).cpu().numpy()
        found = (best[:, 0] > NOT_FOUND).cpu().numpy()
        out = np.zeros(len(found))
        out[found] = _expected_reciprocal(above[found], tied[found], true_tied[found])
        return out

    def not_found(self) -> list[tuple[int, int]]:
        """Return (request, number) of true items that have no place in the ranking."""
        found = (self.is_true & (self.scores > NOT_FOUND)).sum(1).cpu().numpy()
        lost = self.num_true - found
        return [(int(self.rows[r]), int(lost[r])) for r in np.flatnonzero(lost)]


def catalogue_ranking(
    ranker: Ranker,
    collator: Collator,
    split: str = "test",
    *,
    requests: int | None = None,
    seed: int = 0,
    ks: Sequence[int] = KS,
    exclude_seen: bool = False,
    draws: int = DRAWS,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Rank the catalogue and measure: Recall, NDCG, HR at each k, MRR, with 95 % intervals over users; coverage.

    Args:
        ks:    cut-offs.
        draws: resamples of the users.
        others: see `rank_catalogue`.
    """
    standing = rank_catalogue(
        ranker,
        collator,
        split,
        requests=requests,
        seed=seed,
        most=max(ks),
        exclude_seen=exclude_seen,
        device=device,
    )
    owned = {f"{kind}@{k}": standing.terms(kind, k) for kind in KINDS for k in ks} | {"mrr": standing.mrr()}
    users = np.unique(standing.user)
    drawn = bootstrap_ratios(
        np.stack([user_sums(o.terms, o.user, users) for o in owned.values()], 1), draws=draws, seed=seed
    )
    metrics: dict[str, Any] = {
        name: asdict(percentile_interval(o.terms.value, drawn[:, n])) for n, (name, o) in enumerate(owned.items())
    }
    metrics |= {f"coverage@{k}": {"value": standing.coverage(k)} for k in ks}
    return {
        "requests": len(standing.request),
        "candidates": len(standing.items),
        "positives_per_request": float(standing.counts.positives.sum() / len(standing.request)),
        "exclude_seen": exclude_seen,
        "metrics": metrics,
    }


__all__ = [
    "KS",
    "Standing",
    "at_once",
    "catalogue_ranking",
    "catalogue_vectors",
    "is_retriever",
    "rank_catalogue",
    "searches",
]
