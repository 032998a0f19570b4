"""The world `last_action`: a kind is liked while the user's last event of it was a purchase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sostenuto.data.prepared import Array
from sostenuto.data.worlds.table import KINDS, WORLDS
from sostenuto.data.worlds.taste import Taste


@dataclass(frozen=True, slots=True)
class LastActions:
    """What a user did last with items of a kind, at any time."""

    moment: Array  # (N,) user, kind and second in one number, ascending
    bought: Array  # (N,)

    @classmethod
    def of(cls, user: Array, time_s: Array, kind: Array, bought: Array) -> LastActions:
        """Sort events by user and kind."""
        moment = _moment(user, kind, time_s)
        order = np.argsort(moment, kind="stable")
        return cls(moment[order], bought[order])

    def before(self, user: Array, time_s: Array, kind: Array) -> Array:
        """Return 1 bought, 0 viewed, -1 never met, of the last event strictly before each time."""
        place = np.searchsorted(self.moment, _moment(user, kind, time_s)) - 1
        met = (place >= 0) & (self.moment[place] >= _moment(user, kind, np.zeros_like(time_s)))
        return np.where(met, self.bought[place], -1)

    def favourites(self, taste: Taste, user: Array, time_s: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return one of the user's favourites that was bought last, and the kind of one only viewed last; or any."""
        count = WORLDS["last_action"].favourites
        last = np.stack([self.before(user, time_s, taste.kind(user, j)) for j in range(count)], 1)
        chance = rng.random((2, len(user), count))
        liked = (chance[0] + (last == 1)).argmax(1)
        viewed = (chance[1] + (last == 0)).argmax(1)
        return liked, taste.kind(user, viewed)


def _moment(user: Array, kind: Array, time_s: Array) -> Array:
    return np.asarray(((user.astype(np.int64) * KINDS + kind) << 32) | time_s)


__all__ = ["LastActions"]
