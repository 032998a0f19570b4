"""The match index: what a user has done with each item and each kind of item, looked up per candidate.

A user's index holds, per level (item, category levels, item fields), the sorted keys met so far with their count,
last time and decayed counts. It is built from exactly the behaviours that a ranker sees, is updated exactly when an
event arrives, and answers a candidate in O(log U). Offline and online use this one class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.ops import native_match
from sostenuto.schema.features import FIRST_KNOWN, FeatureSpec

Array = npt.NDArray[Any]

DAY_MS = 86_400_000
HALF_LIVES_DAYS = (7.0, 28.0)  # a week and a four-week cycle
_RATES = np.log(2.0) / (np.array(HALF_LIVES_DAYS) * DAY_MS)  # per ms
_TWIN: dict[str, Any] = {
    "rates": (float(_RATES[0]), float(_RATES[1])),
    "day_ms": DAY_MS,
    "first_known": FIRST_KNOWN,
}
_PER_LEVEL = ("count", "decayed_7d", "decayed_28d", "recency", "share")
MARKS_AT_MOST = 1 << 24  # one byte each, when behaviours are held against what is asked
_PER_USER = ("user.length", "user.recency")


def match_levels(features: FeatureSpec) -> tuple[str, ...]:
    """Levels that are matched: the item, its category path from fine to coarse, its categorical item fields."""
    fields = tuple(f.name for f in features.item_fields if f.kind == "categorical")
    return ("item", *(level.name for level in reversed(features.categories)), *fields)


def match_names(levels: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the match features, in column order.

    >>> match_names(("item",))[:3]
    ('item.count', 'item.decayed_7d', 'item.decayed_28d')
    """
    return tuple(f"{level}.{name}" for level in levels for name in _PER_LEVEL) + _PER_USER


def level_keys(features: FeatureSpec, item: Array, category: Array, fields: Mapping[str, Array]) -> list[Array]:
    """Return one key array per level of `match_levels`; keys below 2 (padding, unknown) never match."""
    fine_to_coarse = [category[:, k] for k in reversed(range(len(features.categories)))]
    named = [fields[f.name] for f in features.item_fields if f.kind == "categorical"]
    return [item, *fine_to_coarse, *named]


def _occurs(row: Array, key: Array, asked_row: Array, asked_key: Array, *, num_rows: int) -> Array:
    """Say of each (row, key) whether it is among the asked ones."""
    span = int(max(key.max(initial=0), asked_key.max(initial=0))) + 1
    joint, asked = row * span + key, asked_row * span + asked_key
    if num_rows * span > MARKS_AT_MOST:
        return np.asarray(np.isin(joint, asked))
    marks = np.zeros(num_rows * span, np.bool_)
    marks[asked] = True
    return np.asarray(marks[joint])


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelIndex:
    """One level of B users' indices, jagged: row b holds its known keys in rising order."""

    offsets: Array  # (B + 1,) int64
    key: Array  # (U,) int64
    count: Array  # (U,) int64
    last_ms: Array  # (U,) int64
    decayed: Array  # (U, 2) float64, the decayed counts as they stood at last_ms

    @classmethod
    def build(
        cls, row: Array, num_rows: int, key: Array, time_ms: Array, asked: tuple[Array, Array] | None = None
    ) -> LevelIndex:
        """Build from behaviours grouped by row, times rising inside a row; given `asked` (row, key) pairs, of those."""
        wanted = key >= FIRST_KNOWN
        if asked is not None:
            wanted &= _occurs(row, key, *asked, num_rows=num_rows)
        known = np.flatnonzero(wanted)
        row, key, time_ms = row[known], key[known].astype(np.int64), time_ms[known]
        span = int(key.max()) + 1 if len(key) else 1
        joint = row * span + key
        order = np.argsort(joint, kind="stable")
        joint, time_ms = joint[order], time_ms[order]
        starts = np.flatnonzero(np.concatenate(([True], joint[1:] != joint[:-1]))) if len(joint) else np.zeros(0, int)
        ends = np.concatenate((starts[1:], [len(joint)])).astype(np.int64)[: len(starts)]
        count = ends - starts
        last_ms = time_ms[ends - 1]
        age = (np.repeat(last_ms, count) - time_ms)[:, None]
        weights = np.exp(-age * _RATES)
        decayed = np.add.reduceat(weights, starts, axis=0) if len(starts) else np.zeros((0, len(_RATES)))
        heads = joint[starts]
        bounds = np.searchsorted(heads, np.arange(num_rows + 1) * span)
        return cls(offsets=bounds, key=heads % span, count=count, last_ms=last_ms, decayed=decayed)

    def find(self, row: Array, key: Array) -> tuple[Array, Array]:
        """Return (found, position) of keys asked for in given rows."""
        if not len(self.key):
            return np.zeros(len(key), bool), np.zeros(len(key), np.int64)
        if len(self.offsets) == 2:  # one user: her keys are sorted as they are, and nothing is made of all of them
            position = np.minimum(np.searchsorted(self.key, key), len(self.key) - 1)
            return (self.key[position] == key) & (key >= FIRST_KNOWN), position
        span = int(max(self.key.max(), key.max(initial=0))) + 1
        joint = self._joint(span)
        wanted = row * span + key
        position = np.minimum(np.searchsorted(joint, wanted), len(joint) - 1)
        return (joint[position] == wanted) & (key >= FIRST_KNOWN), position

    def say(self, row: Array, key: Array, columns: Array, *, moment: Array, length: Array) -> None:
        """Write what each user has done with the keys, see `MatchIndex.features`, by the compiled twin."""
        at = (self.offsets, self.key, self.count, self.last_ms, self.decayed)
        native_match.met_columns(*at, row, key, columns, moment=moment, length=length, **_TWIN)

    def joined(self, later: LevelIndex) -> LevelIndex:
        """Return the index of the same users after the events of `later`, none of them before one of this index."""
        num_rows = len(self.offsets) - 1
        span = int(max(self.key.max(initial=0), later.key.max(initial=0))) + 1
        mine, other = self._joint(span), later._joint(span)
        at = np.searchsorted(mine, other)
        met = np.zeros(len(other), np.bool_)
        inside = at < len(mine)
        met[inside] = mine[at[inside]] == other[inside]
        hit, again = at[met], np.flatnonzero(met)
        new = np.flatnonzero(~met)
        count, last_ms, decayed = self.count.copy(), self.last_ms.copy(), self.decayed.copy()
        age = (later.last_ms[again] - last_ms[hit])[:, None]
        count[hit] += later.count[again]
        decayed[hit] = decayed[hit] * np.exp(-age * _RATES) + later.decayed[again]
        last_ms[hit] = later.last_ms[again]
        added = np.bincount(other[new] // span, minlength=num_rows)
        return LevelIndex(
            offsets=self.offsets + np.concatenate(([0], np.cumsum(added))),
            key=np.insert(self.key, at[new], later.key[new]),
            count=np.insert(count, at[new], later.count[new]),
            last_ms=np.insert(last_ms, at[new], later.last_ms[new]),
            decayed=np.insert(decayed, at[new], later.decayed[new], axis=0),
        )

    def _joint(self, span: int) -> Array:
        """Return (U,) rising numbers, one per (row, key)."""
        if len(self.offsets) == 2:
            return self.key
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets)) * span + self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchIndex:
    """The match indices of B users; a value, part of every user state."""

    levels: tuple[LevelIndex, ...]
    length: Array  # (B,) int64 behaviours seen
    last_ms: Array  # (B,) int64 time of the newest one; meaningless when length is 0

    @classmethod
    def build(
        cls, offsets: Array, time_ms: Array, keys: list[Array], asked: tuple[Array, list[Array]] | None = None
    ) -> MatchIndex:
        """Build from jagged behaviours: `offsets` (B + 1,), `time_ms` (N,), one key array (N,) per level.

        `asked` is the row (C,) and per level the keys (C,) that will be looked up, where that is known: an index that
        answers one batch holds nothing else, and gives the same answers.
        """
        length = np.diff(offsets)
        row = np.repeat(np.arange(len(length)), length)
        newest = np.maximum(offsets[1:] - 1, 0)
        last_ms = time_ms[newest] if len(time_ms) else np.zeros(len(length), np.int64)
        wanted = [None] * len(keys) if asked is None else [(asked[0], key) for key in asked[1]]
        levels = tuple(
            LevelIndex.build(row, len(length), key, time_ms, pairs) for key, pairs in zip(keys, wanted, strict=True)
        )
        return cls(levels=levels, length=length, last_ms=np.where(length > 0, last_ms, 0))

    def joined(self, later: MatchIndex) -> MatchIndex:
        """Return the indices after further events of the same users, none earlier than those seen.

        Equal to building anew with them.
        """
        levels = tuple(a.joined(b) for a, b in zip(self.levels, later.levels, strict=True))
        last_ms = np.where(later.length > 0, later.last_ms, self.last_ms)
        return MatchIndex(levels=levels, length=self.length + later.length, last_ms=last_ms)

    def features(self, row: Array, time_ms: Array, keys: list[Array]) -> Array:
        """Look candidates up.

        Args:
            row:      (C,) int64 user row of each candidate.
            time_ms:  (B,) int64 request time of each row, later than every behaviour indexed.
            keys:     per level (C,) int64.

        Returns:
            (C, F) float32, columns as `match_names`.
        """
        width, twin = native_match.PER_LEVEL, native_match.is_usable()
        columns = np.zeros((len(row), width * len(keys) + 2), np.float32)
        for number, (level, key) in enumerate(zip(self.levels, keys, strict=True)):
            said = columns[:, width * number : width * (number + 1)]
            if twin:
                level.say(row, key, said, moment=time_ms, length=self.length)
                continue
            found, at = level.find(row, key)
            met = np.flatnonzero(found)  # the others have zeros
            at, of = at[met], row[met]
            age_ms = np.maximum(time_ms[of] - level.last_ms[at], 0)
            decayed = level.decayed[at] * np.exp(-age_ms[:, None] * _RATES)
            said[met, 0] = np.log1p(level.count[at])
            said[met, 1 : 1 + len(_RATES)] = np.log1p(decayed)
            said[met, -2] = 1.0 / (1.0 + age_ms / DAY_MS)
            said[met, -1] = level.count[at] / np.maximum(self.length[of].astype(np.float64), 1.0)
        idle_ms = np.maximum(time_ms - self.last_ms, 0)
        columns[:, -2] = np.log1p(self.length.astype(np.float64))[row]
        columns[:, -1] = np.where(self.length > 0, 1.0 / (1.0 + idle_ms / DAY_MS), 0.0)[row]
        return columns

    @property
    def num_bytes(self) -> int:
        """Bytes held for all rows together."""
        parts = [getattr(level, name) for level in self.levels for name in ("key", "count", "last_ms", "decayed")]
        return sum(int(part.nbytes) for part in parts)


def match_features(
    offsets: Array, time_ms: Array, keys: list[Array], candidate_offsets: Array, moment: Array, asked: list[Array]
) -> Array:
    """Match the candidates of a batch with the behaviours of their request, without an index that outlives it.

    Args:
        offsets:            (B + 1,) of the behaviours; `time_ms` (N,) never decreases inside a request.
        keys:               per level (N,).
        candidate_offsets:  (B + 1,) of the candidates.
        moment:             (B,) request times, later than every behaviour.
        asked:              per level (C,).

    Returns:
        (C, F) float32, columns as `match_names`.
    """
    if native_match.is_usable():
        return native_match.match_columns(
            offsets,
            time_ms,
            keys,
            candidate_offsets,
            moment,
            asked,
            **_TWIN,
        )
    row = np.repeat(np.arange(len(moment)), np.diff(candidate_offsets))
    return MatchIndex.build(offsets, time_ms, keys, (row, asked)).features(row, moment, asked)


__all__ = ["HALF_LIVES_DAYS", "LevelIndex", "MatchIndex", "level_keys", "match_features", "match_levels", "match_names"]
