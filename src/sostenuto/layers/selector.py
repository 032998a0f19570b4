"""The selector: scores -> the K best -> gather. One interface for every search that stands before an attention.

    index = SearchIndex(offsets, time_ms, rows)         user side: a row per behaviour, part of the user's state
    chosen = selector.select(query, query_offsets, index)
    attention(..., history rows at chosen.taken.positions, chosen.query_offsets, chosen.taken.offsets)

What is searched for differs, the rest does not:

    CategorySelector   the candidate's own category               SIM, hard search
    ProductSelector    the largest inner product                  SIM soft; TWIN, DARE: attention scores; MUSE: cosine
    HammingSelector    the fewest differing bits of a signature   ETA
    MaskSelector       a mask of the request's time and place     STIM

The same rules hold for all, so that two searches differ in their scores alone: of equal scores the newer behaviour is
taken; behaviours of one moment have no order, so equals of one moment are taken together, and a row may be up to one
moment longer than K; a score of minus infinity is never taken; a history with fewer behaviours gives all it has.
`scores` is the definition and looks at every pair; `select` finds the same without making them all. No gradient flows
through a selection.

Letters: B requests, Nc candidates, N behaviours (flat), Q and M some of them, K kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sostenuto.ops.jagged import Taken, interleave_rows, lengths_to_offsets, position_in_row, row_index
from sostenuto.ops.selection import select_newest, whole_moments
from sostenuto.ops.top_k import (
    Selected,
    equal_products,
    hamming_top_k,
    inner_product_top_k,
    pair_distances,
)
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FIRST_KNOWN, UNKNOWN

NOTHING = 0  # the kind that nothing shares


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchIndex:
    """What a search may look at: one row per behaviour of B users; a value, never changed in place."""

    offsets: Tensor  # (B + 1,) int64
    time_ms: Tensor  # (N,) int64
    rows: Tensor  # (N, ...) kinds, vectors or packed signatures

    def joined(self, later: SearchIndex) -> SearchIndex:
        """Return each user's index with the rows of `later` events behind it; equal to indexing everything anew."""
        positions, offsets = interleave_rows(self.offsets, later.offsets)
        return SearchIndex(
            offsets=offsets,
            time_ms=torch.cat([self.time_ms, later.time_ms])[positions],
            rows=torch.cat([self.rows, later.rows])[positions],
        )


class Selector(Protocol):
    """A search; `kept` is K."""

    @property
    def kept(self) -> int | None:
        """K; None takes all that may be taken."""
        ...

    def scores(self, query: Tensor, rows: Tensor) -> Tensor:
        """Return the (Q, M) scores of a request's candidates with its behaviours; minus infinity: never taken."""
        ...

    def select(self, query: Tensor, query_offsets: Tensor, index: SearchIndex) -> Selected:
        """Return which behaviours each candidate, or all candidates of a request together, attend over.

        Args:
            query: (Nc, ...) what candidates ask, in the form of `scores`.
            query_offsets: (B + 1,) int64 row starts of the candidates.
            index: of the histories.
        """
        ...


def check_kept(kept: int | None) -> None:
    """Refuse to keep fewer than one behaviour."""
    if kept is not None and kept < 1:
        raise SpecError(f"kept must be at least 1, got {kept}; set it so")


def finest_kind(item: Tensor, category: Tensor, num_categories: int) -> Tensor:
    """Return (N,) int64 what counts as the same again: the finest category, or the item where it has none.

    Args:
        item: (N,).
        category: (N, K) coarse to fine.
        num_categories: size of the finest level; 0 where the data have no categories.
    """
    if not num_categories:
        return item
    finest = category[:, -1]
    return torch.where(finest >= FIRST_KNOWN, finest, num_categories + item)


def searched_kind(item: Tensor, category: Tensor, num_categories: int) -> Tensor:
    """Return (N,) int64 `finest_kind` with `NOTHING` for items of which neither category nor number is known."""
    kind = finest_kind(item, category, num_categories)
    return torch.where(
        (kind >= num_categories) & (item <= UNKNOWN) if num_categories else item <= UNKNOWN, NOTHING, kind
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoryIndex:
    """Behaviours by user, then kind, then age: the two levels of a user behaviour tree, laid flat."""

    plain: SearchIndex  # rows are (N,) kinds
    order: Tensor  # (N,) int64 positions of the behaviours in the order of the tree

    @classmethod
    def of(cls, plain: SearchIndex) -> CategoryIndex:
        """Sort the behaviours of (N,) kinds."""
        return cls(plain=plain, order=_tree_keys(row_index(plain.offsets), plain.rows).sort(stable=True).indices)

    def joined(self, later: CategoryIndex) -> CategoryIndex:
        """Return each user's tree with later events in it; equal to sorting everything anew."""
        return CategoryIndex.of(self.plain.joined(later.plain))


def _tree_keys(row: Tensor, kind: Tensor) -> Tensor:
    return (row << 32) | kind


class CategorySelector:
    """The newest K behaviours of the candidate's own category: SIM's hard search (arXiv:2006.05639).

        score = 0 where the kinds are equal, minus infinity where they are not

    A kind is a category index or whatever else can be equal; `NOTHING` equals nothing, itself included: an unknown
    category says of two items no more than that both are unknown.
    """

    def __init__(self, kept: int) -> None:
        check_kept(kept)
        self.kept = kept

    def scores(self, query: Tensor, rows: Tensor) -> Tensor:
        """Return (Q, M) for (Q,) and (M,) kinds."""
        same = (query[:, None] == rows) & (query != NOTHING)[:, None]
        return torch.where(same, 0.0, -torch.inf)

    def select(self, query: Tensor, query_offsets: Tensor, index: SearchIndex | CategoryIndex) -> Selected:
        """Look every candidate's kind up in the sorted behaviours: O(log N + K) for each."""
        tree = index if isinstance(index, CategoryIndex) else CategoryIndex.of(index)
        plain, order = tree.plain, tree.order
        keys = _tree_keys(row_index(plain.offsets), plain.rows)[order]
        asked = _tree_keys(row_index(query_offsets), query)
        low, high = torch.searchsorted(keys, asked), torch.searchsorted(keys, asked, right=True)
        high = torch.where(query == NOTHING, low, high)
        first = torch.maximum(low, high - self.kept)
        time_ms = plain.time_ms[order]
        torn = (first > low).nonzero().squeeze(1)
        while torn.numel():  # as often as the longest moment of one kind has behaviours
            same = time_ms[first[torn] - 1] == time_ms[first[torn]]
            torn = torn[same]
            first[torn] -= 1
            torn = torn[first[torn] > low[torn]]
        lengths = high - first
        offsets = lengths_to_offsets(lengths)
        place = torch.repeat_interleave(high - 1, lengths) - position_in_row(offsets)  # the newest first
        return _per_candidate(Taken(order[place], offsets))


class ProductSelector:
    """The K behaviours with the largest inner product.

        score = <query, row>

    A bias per behaviour is one more column of the rows, and a 1 in the queries. Cosine is the product of vectors of
    length 1; a behaviour that may not be found has a row of its own making, such as a bias of minus infinity.
    """

    def __init__(self, kept: int) -> None:
        check_kept(kept)
        self.kept = kept

    def scores(self, query: Tensor, rows: Tensor) -> Tensor:
        """Return (Q, M) for (Q, D) and (M, D) vectors."""
        return (query.detach().double() @ rows.detach().double().T).float()

    def select(self, query: Tensor, query_offsets: Tensor, index: SearchIndex) -> Selected:
        """Search without making the scores of all pairs."""
        rows = index.rows.detach()
        found = inner_product_top_k(query, query_offsets, rows, index.offsets, min(self.kept, _longest(index)))
        query = query.detach()
        never = found.values == -torch.inf

        def is_equal(candidate: Tensor, behaviour: Tensor, last: Tensor) -> Tensor:
            return equal_products(query, rows, candidate, behaviour, last)

        positions = found.positions.masked_fill(never, -1)
        return _per_candidate(whole_moments(positions, index.offsets, index.time_ms, is_equal))


class HammingSelector:
    """The K behaviours whose packed signatures differ in the fewest bits: ETA's search (arXiv:2108.04468).

    score = -(number of differing bits)
    """

    def __init__(self, kept: int) -> None:
        check_kept(kept)
        self.kept = kept

    def scores(self, query: Tensor, rows: Tensor) -> Tensor:
        """Return (Q, M) for (Q, words) and (M, words) signatures."""
        queries, behaviours = query.shape[0], rows.shape[0]
        pairs = pair_distances(query.repeat_interleave(behaviours, 0), rows.repeat(queries, 1))
        return -pairs.view(queries, behaviours).float()

    def select(self, query: Tensor, query_offsets: Tensor, index: SearchIndex) -> Selected:
        """Search by exclusive or and population count."""
        found = hamming_top_k(query, query_offsets, index.rows, index.offsets, min(self.kept, _longest(index)))

        def is_equal(candidate: Tensor, behaviour: Tensor, last: Tensor) -> Tensor:
            asked = query[candidate]
            return pair_distances(asked, index.rows[behaviour]) == pair_distances(asked, index.rows[last])

        return _per_candidate(whole_moments(found.positions, index.offsets, index.time_ms, is_equal))


class MaskSelector:
    """The newest K behaviours that a mask of the request holds, shared by all its candidates.

        score = 0 inside the mask, minus infinity outside

    The query is the mask itself: what it is made of (hour, weekday, place, age) is the model's.
    """

    def __init__(self, kept: int | None) -> None:
        check_kept(kept)
        self.kept = kept

    def scores(self, query: Tensor, rows: Tensor) -> Tensor:
        """Return (1, M) for a request's (M,) mask; what the rows hold does not matter."""
        return torch.where(query, 0.0, -torch.inf)[None]

    def select(self, query: Tensor, query_offsets: Tensor, index: SearchIndex) -> Selected:
        """Take the behaviours of an (N,) mask, which is the query; rows are requests, read by all their candidates."""
        return Selected(query_offsets, self.take(query, index))

    def take(self, mask: Tensor, index: SearchIndex) -> Taken:
        """Return the selection alone, oldest first in every row: it needs no candidate."""
        return select_newest(mask, index.offsets, index.time_ms, self.kept)


def _longest(index: SearchIndex) -> int:
    """Return the length of the longest history, at least 1: more places than that cannot be filled."""
    lengths = index.offsets[1:] - index.offsets[:-1]
    return max(int(lengths.max()) if lengths.numel() else 0, 1)


def _per_candidate(taken: Taken) -> Selected:
    """Make each candidate a row of its own."""
    rows = taken.offsets.shape[0] - 1
    return Selected(torch.arange(rows + 1, device=taken.offsets.device), taken)


__all__ = [
    "NOTHING",
    "CategoryIndex",
    "CategorySelector",
    "HammingSelector",
    "MaskSelector",
    "ProductSelector",
    "SearchIndex",
    "Selector",
    "check_kept",
    "finest_kind",
    "searched_kind",
]
