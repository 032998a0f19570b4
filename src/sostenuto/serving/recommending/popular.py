"""Candidate source: what all users do lately, above all at the place of the request."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.popularity import WINDOW_MS
from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.serving.recommending.source import Proposal, Seeker

if TYPE_CHECKING:
    from sostenuto.features.popularity import Popularity

Array = npt.NDArray[Any]

REFRESH_MS = 3_600_000
GROWTH = 1.02  # a log that has grown by more is counted anew, and one of which something was deleted
LISTS = 4_096  # kept in memory


class PopularSource:
    """Counts of the last 28 days at the place, with the overall counts as a prior worth `prior` events of the place.

    Without a known place the overall counts stand alone. Counting all candidate items costs milliseconds, so a list is
    kept per place and hour: it is made of what was strictly before the hour began.

    Args:
        items: (M,) int64 that may be proposed.
        prior: events.
        most:  longest list that will be asked for.
    """

    name = "popular"

    def __init__(self, items: Array, *, prior: float = 1_000.0, most: int = 1_000) -> None:
        self._items = np.asarray(items, np.int64)
        self._prior, self._most = prior, most
        self._kept: OrderedDict[tuple[int, int], tuple[int, Proposal]] = OrderedDict()
        self._lock = threading.Lock()

    def propose(self, seeker: Seeker, budget: int) -> Proposal:
        """Return the head of the list of the place and hour."""
        events = seeker.popularity.events
        place = seeker.place if seeker.place >= FIRST_KNOWN else 0
        key = (place, seeker.time_ms // REFRESH_MS)
        with self._lock:
            kept = self._kept.get(key)
        if kept is None or not kept[0] <= events <= kept[0] * GROWTH:
            kept = (events, self._counted(seeker.popularity, key[1] * REFRESH_MS, place))
            with self._lock:
                self._kept[key] = kept
                self._kept.move_to_end(key)
                while len(self._kept) > LISTS:
                    self._kept.popitem(last=False)
        most = min(budget, self._most)
        return Proposal(item=kept[1].item[:most], score=kept[1].score[:most])

    def _counted(self, popularity: Popularity, moment_ms: int, place: int) -> Proposal:
        moment = np.full(len(self._items), moment_ms)
        since = moment - WINDOW_MS
        _, recent = popularity.of_item(self._items, moment, since)
        total = popularity.of_all(moment[:1], since[:1]) if len(moment) else np.ones(1)
        score = recent / max(float(total[0]), 1.0)
        if place:
            here = popularity.of_pair(np.full(len(moment), place), self._items, moment, since)
            score = here + self._prior * score
        return Proposal.best(self._items, score, self._most)


__all__ = ["GROWTH", "REFRESH_MS", "PopularSource"]
