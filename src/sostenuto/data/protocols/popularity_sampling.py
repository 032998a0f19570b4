"""Negatives by popularity: drawn from what others did before the request, without replacement, never a positive.

Drawing a past event uniformly and taking its item draws items by their popularity in that window exactly. The
candidate universe of a request is the items of its window: positives outside of it could never be drawn as negatives,
and "was never seen before" would give them away, so they are left out and counted.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from sostenuto.data.prepared import SPLITS, Array, Behaviours, Requests
from sostenuto.data.protocols.core import Core, event_users, prefix_lengths
from sostenuto.data.protocols.split_times import PIECE, Settings, chosen_flags
from sostenuto.data.spilling import KEYS_AT_ONCE, sorted_keys, user_ranges
from sostenuto.schema.errors import SpecError, did_you_mean

DAY_MS = 86_400_000
BATCH_REQUESTS = 50_000  # requests drawn at once; the random stream restarts with each batch, so it is part of the seed
MOST_ROUNDS = 100  # after so many draws the window is called too narrow for this request


class SamplingSettings(Settings):
    """What the sampling protocols have in common."""

    moment: Literal["time", "session"] = "time"  # what is one request: events of one time, or of one session
    popularity: Literal["recent", "training"] = "recent"
    popularity_days: float = Field(default=28.0, gt=0)  # window of `recent`, ends strictly before the request
    min_item_events: int = Field(default=1, ge=1)  # events in the window that put an item into the universe
    positives_at_most: int = Field(default=10, ge=1)
    negatives_per_positive: int = Field(default=5, ge=1)
    positive_actions: tuple[str, ...] = ()  # only these count as positives; () = all
    positive_min_value: float | None = None  # only events of at least this value count as positives
    min_history: int = Field(default=0, ge=0)  # behaviours before the request
    # where a request happens: at the place of its first event, which must not be part of the answer; where the user's
    # last behaviour strictly before it was; or nowhere
    request_place: Literal["event", "previous", "none"] = "event"
    train_requests: int | None = Field(default=500_000, ge=1)  # at most so many, drawn by the seed
    valid_requests: int | None = Field(default=50_000, ge=1)
    test_requests: int | None = Field(default=50_000, ge=1)

    @model_validator(mode="after")
    def _window_is_used(self) -> SamplingSettings:
        if self.popularity == "training" and "popularity_days" in self.model_fields_set:
            raise ValueError("popularity_days belongs to popularity = 'recent'; leave it out")
        return self

    def most(self, split: int) -> int | None:
        """Return how many requests of a split are kept at most."""
        return (self.train_requests, self.valid_requests, self.test_requests)[split]


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Events by request moment: group g holds events rows[first[g]:first[g + 1]] of one user, oldest first.

    Users and times are looked up when asked for: a log has about as many moments as events.
    """

    rows: Array | None  # (N,) event rows; None = 0 .. N
    first: Array  # (G + 1,)
    behaviours: Behaviours

    def __len__(self) -> int:
        return len(self.first) - 1

    def first_event(self, groups: Array | slice) -> Array:
        """Return the event row that opens each group."""
        first = self.first[:-1][groups].astype(np.int64)
        return first if self.rows is None else self.rows[first].astype(np.int64)

    def user_bounds(self) -> Array:
        """Return (U + 1,) int64: user u has the groups bounds[u] .. bounds[u + 1]."""
        return np.searchsorted(self.first, self.behaviours.offsets.astype(self.first.dtype))

    def user(self, groups: Array | slice) -> Array:
        """Return (R,) int32 the user of each group."""
        found = np.searchsorted(self.behaviours.offsets, self.first_event(groups), side="right") - 1
        return found.astype(np.int32)

    def time_ms(self, groups: Array | slice) -> Array:
        """Return (R,) int64 the earliest time of each group."""
        return np.asarray(self.behaviours.time_ms[self.first_event(groups)], np.int64)

    def take(self, groups: Array) -> tuple[Array, Array]:
        """Return the event rows of some groups and which of them (0 .. len(groups)) each belongs to."""
        start = self.first[groups].astype(np.int64)
        lengths = self.first[groups + 1].astype(np.int64) - start
        owner = np.repeat(np.arange(len(groups)), lengths)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = start[owner] + within
        return (places if self.rows is None else self.rows[places].astype(np.int64)), owner

    def pieces(self) -> Iterator[slice]:
        """Yield slices that cover all groups."""
        for start in range(0, len(self), PIECE):
            yield slice(start, min(start + PIECE, len(self)))


def group_events(core: Core, moment: str) -> Groups:
    """Group the events of every user by time or by session.

    Raises:
        SpecError: sessions are asked for and the log names none.
    """
    behaviours = core.behaviours
    rows, key = None, behaviours.time_ms
    if moment == "session":
        if core.session is None:
            raise SpecError("moment = 'session' needs `session` in [events], there is none; name it or use 'time'")
        rows = _by_session(behaviours, core.session)
        key = core.session
    total = len(key)
    starts = np.zeros(total, bool)
    for begin in range(0, total, PIECE):
        chosen = slice(max(begin - 1, 0), min(begin + PIECE, total))
        values = np.asarray(key[chosen] if rows is None else key[rows[chosen]])
        starts[chosen.start + 1 : chosen.stop] = values[1:] != values[:-1]
    opening = np.asarray(behaviours.offsets[:-1])[np.diff(behaviours.offsets) > 0]
    starts[opening] = True  # grouping keeps the ranges of users
    first = np.empty(int(starts.sum()) + 1, np.uint32 if total < 2**32 else np.int64)
    filled = 0
    for begin in range(0, total, PIECE):
        found = np.flatnonzero(starts[begin : begin + PIECE]) + begin
        first[filled : filled + len(found)] = found
        filled += len(found)
    first[-1] = total
    return Groups(rows=rows, first=first, behaviours=behaviours)


def _by_session(behaviours: Behaviours, session: Array) -> Array:
    """Return (N,) event rows by user and session; a session stays in order of time."""
    total = len(session)
    rows = np.empty(total, np.uint32 if total < 2**32 else np.int64)
    edges = behaviours.offsets[user_ranges(np.diff(behaviours.offsets), PIECE)].tolist()
    for start, stop in itertools.pairwise(edges):
        rows[start:stop] = start + np.lexsort((session[start:stop], event_users(behaviours, start, stop)))
    return rows


def positive_events(core: Core, settings: SamplingSettings) -> Array:
    """Return (N,) bool: which events can be a positive.

    Raises:
        SpecError: an action that the log does not know.
    """
    behaviours = core.behaviours
    flags = np.ones(len(behaviours.item), bool)
    pieces = [slice(start, start + PIECE) for start in range(0, len(flags), PIECE)]
    if settings.positive_actions:
        known = core.vocabularies["action"].to_list() if "action" in core.vocabularies else []
        for name in settings.positive_actions:
            if name not in known[2:]:
                raise SpecError(
                    f"positive_actions must be actions of the log ({', '.join(known[2:]) or 'it has none'}), "
                    f"got {name!r}.{did_you_mean(name, known[2:])}"
                )
        chosen = [known.index(name) for name in settings.positive_actions]
        for piece in pieces:
            flags[piece] &= np.isin(behaviours.action[piece], chosen)
    if settings.positive_min_value is not None:
        for piece in pieces:
            flags[piece] &= np.asarray(behaviours.value[piece]) >= settings.positive_min_value  # NaN is never
    return flags


class PopularityWindows:
    """The events that make items popular, sorted once by time and once by item: windows are binary searches.

    Both orders of a long log are files mapped from disk: 16 bytes an event of which memory holds what fits.
    """

    def __init__(
        self,
        time_ms: Array,
        item: Array,
        num_items: int,
        counted: Array | None = None,
        *,
        scratch: Path,
        most: int = KEYS_AT_ONCE,
    ) -> None:
        """Index the events, or those that `counted` marks.

        Args:
            scratch: folder of the sorted files, which must outlive this object; nothing is written for a short log.
            most:    events that are sorted at once.
        """
        total = len(item) if counted is None else int(counted.sum())
        edges = [(int(t.min()), int(t.max())) for t, _ in self._pieces(time_ms, item, counted) if len(t)]
        self.start = min((low for low, _ in edges), default=0)
        self.span = max((high for _, high in edges), default=0) - self.start + 2
        self.num_items = num_items
        if self.span * num_items >= 2**63:
            raise SpecError(
                f"a log must span fewer than 2**63 / items ms, this one spans {self.span} ms with {num_items} items; "
                "reject its impossible times"
            )
        by_time = ((t - self.start) * num_items + i for t, i in self._pieces(time_ms, item, counted))
        by_item = (i * self.span + (t - self.start) for t, i in self._pieces(time_ms, item, counted))
        self._by_time = sorted_keys(by_time, total, scratch / "by_time.keys", most=most)
        self._by_item = sorted_keys(by_item, total, scratch / "by_item.keys", most=most)

    @staticmethod
    def _pieces(time_ms: Array, item: Array, counted: Array | None) -> Iterator[tuple[Array, Array]]:
        for start in range(0, len(item), PIECE):
            inside = slice(start, start + PIECE)
            times, items = np.asarray(time_ms[inside], np.int64), np.asarray(item[inside], np.int64)
            yield (times, items) if counted is None else (times[counted[inside]], items[counted[inside]])

    def _clipped(self, time_ms: Array) -> Array:
        return np.clip(np.asarray(time_ms, np.int64) - self.start, 0, self.span - 1)

    def bounds(self, low_ms: Array, high_ms: Array) -> tuple[Array, Array]:
        """Return the range of events in [low, high), as positions in order of time."""
        low = np.searchsorted(self._by_time, self._clipped(low_ms) * self.num_items)
        return low, np.searchsorted(self._by_time, self._clipped(high_ms) * self.num_items)

    def items_at(self, positions: Array) -> Array:
        """Return the items of events at these positions in order of time."""
        return self._by_time[positions] % self.num_items

    def counts(self, item: Array, low_ms: Array, high_ms: Array) -> Array:
        """Return how many events of each item lie in [low, high)."""
        base = np.asarray(item, np.int64) * self.span
        order = np.argsort(base)  # neighbouring searches are several times faster than scattered ones
        base = base[order]
        low = np.searchsorted(self._by_item, base + self._clipped(low_ms)[order])
        found = np.empty(len(base), np.int64)
        found[order] = np.searchsorted(self._by_item, base + self._clipped(high_ms)[order]) - low
        return found


def ranks_within(owner: Array, size: int) -> Array:
    """Return the position of every element among those of its owner; owners come in order."""
    starts = np.searchsorted(owner, np.arange(size))
    return np.arange(len(owner)) - starts[owner]


def draw_negatives(
    windows: PopularityWindows,
    low_ms: Array,
    high_ms: Array,
    wanted: Array,
    taken: Array,
    generator: np.random.Generator,
    *,
    min_item_events: int = 1,
) -> tuple[Array, Array]:
    """Draw distinct items per request by their popularity in its window.

    Args:
        low_ms, high_ms: (R,) window [low, high) of each request.
        wanted:          (R,) how many.
        taken:           sorted keys request * num_items + item that may not be drawn.
    Returns:
        Request and item of every draw, by request; a request whose window is too narrow gets fewer.
    """
    low, high = windows.bounds(low_ms, high_ms)
    missing = np.where(high > low, wanted, 0).astype(np.int64)
    keys, blocked = np.zeros(0, np.int64), taken
    for _ in range(MOST_ROUNDS):
        request = np.repeat(np.arange(len(missing)), missing)
        if not len(request):
            break
        width = high[request] - low[request]
        item = windows.items_at(low[request] + (generator.random(len(request)) * width).astype(np.int64))
        key = np.sort(request * windows.num_items + item)
        request = key // windows.num_items
        place = np.minimum(np.searchsorted(blocked, key), max(len(blocked) - 1, 0))
        fresh = (blocked[place] != key) if len(blocked) else np.ones(len(key), bool)
        if min_item_events > 1:
            item = key % windows.num_items
            fresh &= windows.counts(item, low_ms[request], high_ms[request]) >= min_item_events
        fresh[1:] &= key[1:] != key[:-1]
        new = key[fresh]
        keys = np.concatenate((keys, new))
        blocked = np.sort(np.concatenate((blocked, new)))
        missing = missing - np.bincount(request[fresh], minlength=len(missing))
    keys.sort()
    return keys // windows.num_items, keys % windows.num_items


@dataclass(slots=True)
class _Drawn:
    groups: Array  # request moments that became requests
    offsets: Array
    item: Array
    label: Array


def _draw_batch(
    core: Core,
    groups: Groups,
    chosen: Array,
    positive: Array,
    windows: PopularityWindows,
    window: tuple[Array, Array],
    settings: SamplingSettings,
    generator: np.random.Generator,
    counts: dict[str, int],
) -> _Drawn:
    low_ms, high_ms = window
    rows, owner = groups.take(chosen)
    item = np.asarray(core.behaviours.item[rows], np.int64)
    key = owner * windows.num_items + item
    own = np.unique(key)  # whatever the user did at this moment is no negative
    could = positive[rows]
    key = np.unique(key[could])
    owner, item = key // windows.num_items, key % windows.num_items
    known = windows.counts(item, low_ms[owner], high_ms[owner]) >= settings.min_item_events
    counts["positives_outside_universe"] += int((~known).sum())
    owner, item = owner[known], item[known]
    shuffled = np.lexsort((generator.random(len(owner)), owner))
    owner, item = owner[shuffled], item[shuffled]
    kept = ranks_within(owner, len(chosen)) < settings.positives_at_most
    counts["positives_beyond_most"] += int((~kept).sum())
    owner, item = owner[kept], item[kept]
    num_positives = np.bincount(owner, minlength=len(chosen))
    ratio = settings.negatives_per_positive
    negative_owner, negative_item = draw_negatives(
        windows,
        low_ms,
        high_ms,
        num_positives * ratio,
        own,
        generator,
        min_item_events=settings.min_item_events,
    )
    # the ratio is the same in every request: where the window is too narrow, positives are left out too
    afford = np.minimum(num_positives, np.bincount(negative_owner, minlength=len(chosen)) // ratio)
    counts["requests_without_candidates"] += int((afford == 0).sum())
    counts["positives_without_negatives"] += int((num_positives - afford).sum())
    if (afford < num_positives).any():  # which of too few are left out must not follow from their indices
        shuffled = np.lexsort((generator.random(len(negative_owner)), negative_owner))
        negative_owner, negative_item = negative_owner[shuffled], negative_item[shuffled]
    keep_positive = ranks_within(owner, len(chosen)) < afford[owner]
    keep_negative = ranks_within(negative_owner, len(chosen)) < (afford * ratio)[negative_owner]
    all_owner = np.concatenate((owner[keep_positive], negative_owner[keep_negative]))
    all_item = np.concatenate((item[keep_positive], negative_item[keep_negative]))
    label = np.zeros(len(all_owner), np.float32)
    label[: int(keep_positive.sum())] = 1.0
    order = np.lexsort((generator.random(len(all_owner)), all_owner))  # where a candidate stands tells nothing
    whole = afford > 0
    lengths = (afford * (1 + ratio))[whole]
    return _Drawn(
        groups=chosen[whole],
        offsets=lengths,
        item=all_item[order].astype(np.int32),
        label=label[order],
    )


def sampled_requests(
    core: Core,
    groups: Groups,
    split: Array,
    training: Array,
    settings: SamplingSettings,
    *,
    seed: int,
    training_window: tuple[int, int],
    scratch: Path,
) -> tuple[dict[str, Requests], dict[str, int]]:
    """Make the requests of every split.

    Args:
        groups:          the moments.
        split:           (G,) 0 train, 1 valid, 2 test, anything else no request.
        training:        (N,) bool, events that the popularity of `training` counts.
        training_window: its first ms and the ms behind its last.
        scratch:         folder for temporary files; they are removed.
    Returns:
        Requests by split, and counts of what was left out and why.
    """
    behaviours = core.behaviours
    positive = positive_events(core, settings)
    counted = positive & training if settings.popularity == "training" else positive
    possible = _with_positive(groups, positive)
    counts: dict[str, int] = {
        "positives_outside_universe": 0,
        "positives_beyond_most": 0,
        "positives_without_negatives": 0,
        "requests_without_candidates": 0,
    }
    made = {}
    with tempfile.TemporaryDirectory(prefix="popularity-", dir=scratch) as folder:
        times, items = behaviours.time_ms, behaviours.item
        windows = PopularityWindows(times, items, core.features.num_items, counted, scratch=Path(folder))
        del counted
        for number, name in enumerate(SPLITS):
            flags = split == number
            flags &= possible
            counts[f"{name}_moments"] = int(np.count_nonzero(flags))
            eligible = chosen_flags(flags, settings.most(number), seed, number)
            del flags
            # in order of time, so that a batch looks at one stretch of the log
            eligible = eligible[np.argsort(groups.time_ms(eligible), kind="stable")]
            drawn = []
            for at, start in enumerate(range(0, len(eligible), BATCH_REQUESTS)):
                chosen = eligible[start : start + BATCH_REQUESTS]
                time_ms = groups.time_ms(chosen)
                if settings.min_history:
                    enough = prefix_lengths(behaviours, groups.user(chosen), time_ms) >= settings.min_history
                    chosen, time_ms = chosen[enough], time_ms[enough]
                if settings.popularity == "training":
                    window = tuple(np.full(len(chosen), edge, np.int64) for edge in training_window)
                else:
                    window = (time_ms - int(settings.popularity_days * DAY_MS), time_ms)
                generator = np.random.default_rng([seed, 2, number, at])
                both = (window[0], window[1])
                drawn.append(_draw_batch(core, groups, chosen, positive, windows, both, settings, generator, counts))
            made[name] = _requests(behaviours, groups, drawn, settings.request_place)
            counts[f"{name}_requests"] = len(made[name])
            counts[f"{name}_candidates"] = len(made[name].item)
    return made, counts


def _with_positive(groups: Groups, positive: Array) -> Array:
    """Return (G,) bool: which groups hold a positive; sessions are looked at only when they are drawn."""
    found = np.ones(len(groups), bool)
    if groups.rows is None:
        for piece in groups.pieces():
            first = groups.first[piece.start : piece.stop + 1].astype(np.int64)
            found[piece] = np.logical_or.reduceat(positive[first[0] : first[-1]], first[:-1] - first[0])
    return found


def _places(behaviours: Behaviours, first_event: Array, user: Array, prefix: Array, where: str) -> Array:
    """Return (R,) int32 where requests happen, 0 where that is not known."""
    if where == "event":
        return np.asarray(behaviours.place[first_event], np.int32)
    found = np.zeros(len(user), np.int32)
    if where == "previous":
        seen = prefix > 0
        found[seen] = behaviours.place[(np.asarray(behaviours.offsets)[user] + prefix - 1)[seen]]
    return found


def _requests(behaviours: Behaviours, groups: Groups, drawn: list[_Drawn], where: str) -> Requests:
    chosen = np.concatenate([d.groups for d in drawn]) if drawn else np.zeros(0, np.int64)
    lengths = np.concatenate([d.offsets for d in drawn]) if drawn else np.zeros(0, np.int64)
    item = np.concatenate([d.item for d in drawn]) if drawn else np.zeros(0, np.int32)
    label = np.concatenate([d.label for d in drawn]) if drawn else np.zeros(0, np.float32)
    user, time_ms = groups.user(chosen), groups.time_ms(chosen)
    prefix = prefix_lengths(behaviours, user, time_ms)
    return Requests(
        user=user,
        time_ms=time_ms,
        prefix=prefix,
        place=_places(behaviours, groups.first_event(chosen), user, prefix, where),
        context={},
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        item=item,
        label=label,
        list_id=np.zeros(len(item), np.uint8),
        candidate={},
    )


def recorded(settings: Settings, extra: Mapping[str, int]) -> dict[str, object]:
    """Return every number of a protocol as the manifest keeps it."""
    return settings.model_dump(mode="json") | dict(extra)


__all__ = [
    "BATCH_REQUESTS",
    "DAY_MS",
    "MOST_ROUNDS",
    "PIECE",
    "Groups",
    "PopularityWindows",
    "SamplingSettings",
    "draw_negatives",
    "group_events",
    "positive_events",
    "ranks_within",
    "recorded",
    "sampled_requests",
]
