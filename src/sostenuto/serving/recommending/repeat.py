"""Candidate source: what the user did before, what she does often and lately first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sostenuto.serving.recommending.source import Proposal, Seeker


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatSource:
    """Scores an item by its decayed count, plus a share of log(1 + count) so that old habits are not forgotten."""

    name: str = "repeat"
    count_weight: float = 1.0  # of log1p(count) against the count that halves in 28 days

    def propose(self, seeker: Seeker, budget: int) -> Proposal:
        """Return items of the user's past."""
        past = seeker.past
        score = past.decayed_at(seeker.time_ms) + self.count_weight * np.log1p(past.count)
        return Proposal.best(past.item, score, budget)


__all__ = ["RepeatSource"]
