"""Candidate source: items that go together with those that the user met lately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.serving.recommending.source import NOTHING, Proposal, Seeker

if TYPE_CHECKING:
    from sostenuto.serving.recommending.together import Together

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TogetherSource:
    """Sums the neighbours of the newest distinct items, each with the root of its decayed count as weight."""

    table: Together
    items: Array  # (I,) bool by item index: may be proposed
    recent: int = 100  # distinct items that are looked at
    name: str = "together"

    def propose(self, seeker: Seeker, budget: int) -> Proposal:
        """Return neighbours by summed weight."""
        past = seeker.past
        at = past.by_recency[: self.recent]
        if not len(at):
            return NOTHING
        item, weight = self.table.of(past.item[at])
        weight = weight * np.sqrt(past.decayed_at(seeker.time_ms)[at])[:, None]
        near, row = np.unique(item, return_inverse=True)
        score = np.bincount(row.reshape(-1), weight.reshape(-1), len(near))
        kept = (near >= FIRST_KNOWN) & self.items[near]
        return Proposal.best(near[kept].astype(np.int64), score[kept], budget)


__all__ = ["TogetherSource"]
