"""What a candidate source is: who asks goes in, items come out, best first. Merging keeps who proposed what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sostenuto.features.popularity import Popularity
    from sostenuto.schema.histories import Context
    from sostenuto.serving.recommending.past import UserPast

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeker:
    """One user at one moment, as sources see her."""

    past: UserPast  # strictly before the moment
    time_ms: int
    place: int  # index; 0 = none, 1 = one that the bundle does not know
    popularity: Popularity  # of all users
    state: Any = None  # the ranker's, one row; None where no ranker is at hand
    context: Context | None = None  # of one row


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Items that one source proposes."""

    item: Array  # (N,) int64 known item indices, each once, best first
    score: Array  # (N,) float64, never rising; in a unit of the source's own

    @classmethod
    def best(cls, item: Array, score: Array, budget: int) -> Proposal:
        """Keep the best of (N,) items; equal scores stand by item index, which follows training frequency."""
        if 0 < budget < len(item):  # order only what can be among the best
            least = np.partition(score, len(score) - budget)[len(score) - budget]
            kept = score >= least
            item, score = item[kept], score[kept]
        order = np.lexsort((item, -score))[:budget]
        return cls(item=item[order].astype(np.int64), score=score[order].astype(np.float64))

    def __len__(self) -> int:
        return len(self.item)


NOTHING = Proposal(item=np.zeros(0, np.int64), score=np.zeros(0))


class CandidateSource(Protocol):
    """Proposes items that the ranker should look at."""

    @property
    def name(self) -> str:
        """What requests, answers and logs call it."""
        ...

    def propose(self, seeker: Seeker, budget: int) -> Proposal:
        """Return at most `budget` items; safe to call from several threads."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Items of several sources, each once, and who proposed them at which rank."""

    item: Array  # (C,) int64
    names: tuple[str, ...]  # of the S sources
    rank: Array  # (C, S) int32, 0 = first; -1 = not proposed by that source

    @classmethod
    def of(cls, proposals: Sequence[tuple[str, Array]]) -> Merged:
        """Merge items (N,) of named sources; an item stands where it was met first."""
        names = tuple(name for name, _ in proposals)
        joined = np.concatenate([item for _, item in proposals]) if proposals else np.zeros(0, np.int64)
        items, first, row = np.unique(joined, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        place = np.empty(len(items), np.int64)
        place[order] = np.arange(len(items))
        rank = np.full((len(items), len(names)), -1, np.int32)
        start = 0
        for s, (_, item) in enumerate(proposals):
            rank[place[row[start : start + len(item)]], s] = np.arange(len(item))
            start += len(item)
        return cls(item=items[order].astype(np.int64), names=names, rank=rank)

    def kept(self, chosen: Array) -> Merged:
        """Return the chosen rows: (C,) bool or positions."""
        return Merged(item=self.item[chosen], names=self.names, rank=self.rank[chosen])

    def sources(self, row: int) -> tuple[str, ...]:
        """Return the names of those who proposed an item."""
        return tuple(name for name, rank in zip(self.names, self.rank[row].tolist(), strict=True) if rank >= 0)

    def __len__(self) -> int:
        return len(self.item)


__all__ = ["NOTHING", "CandidateSource", "Merged", "Proposal", "Seeker"]
