"""complete-journey v1 on a planted miniature, and on a cut of the real package where it is installed."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sostenuto.data.prepared import Array, Behaviours, Requests
from sostenuto.data.protocols import load_protocol
from sostenuto.data.protocols.complete_journey import CompleteJourney, weeks_of
from sostenuto.data.protocols.core import Core, MadeRequests
from sostenuto.data.sources import find_source, locate
from sostenuto.schema.errors import DataError, MissingSource, SpecError
from sostenuto.schema.features import FeatureSpec

ZONE = "America/New_York"
WEEK_MS = 7 * 86_400_000
MONDAY_MS = int(datetime.datetime(2016, 12, 26, 5, tzinfo=datetime.UTC).timestamp()) * 1000  # 00:00 in New York
SMALL: dict[str, Any] = {
    "train_weeks": (3, 7),
    "valid_weeks": (8, 8),
    "test_weeks": (9, 10),
    "min_buyers": 3,
    "max_positives": 4,
    "popularity_weeks": 2,
    "ranking_requests": 5,
}


def gauc(group: Array, label: Array, score: Array) -> float:
    """Mean AUC over groups that have both labels; ties count one half."""
    values = []
    for g in np.unique(group):
        mine = group == g
        positive, negative = score[mine & (label > 0)], score[mine & (label == 0)]
        if len(positive) and len(negative):
            difference = positive[:, None] - negative[None, :]
            values.append((difference > 0).mean() + (difference == 0).mean() / 2)
    return float(np.mean(values))


def make_core(lines: pl.DataFrame, folder: Path) -> Core:
    """Build a core of lines (user, item, store, time_ms), all indices from 2 on, ids their decimal text."""
    lines = lines.sort("user", "time_ms", maintain_order=True)
    user = lines["user"].to_numpy()
    num_users, num_items = int(user.max()) + 1, int(lines["item"].max()) + 1
    n = len(user)
    behaviours = Behaviours(
        offsets=np.searchsorted(user, np.arange(num_users + 1)).astype(np.int64),
        item=lines["item"].to_numpy().astype(np.int32),
        time_ms=lines["time_ms"].to_numpy(),
        action=np.zeros(n, np.int16),
        value=np.ones(n, np.float32),
        place=lines["store"].to_numpy().astype(np.int32),
    )
    ids = {name: ["", "", *map(str, range(2, size))] for name, size in (("item", num_items), ("place", 9))}
    return Core(
        name="mini",
        time_zone=ZONE,
        behaviours=behaviours,
        items=pl.DataFrame({"item_id": ids["item"]}),
        features=FeatureSpec(num_items=num_items, num_item_rows=num_items, num_places=9),
        vocabularies={name: pl.Series(name, words) for name, words in ids.items()},
        source_folder=folder,
    )


def write_promotions(folder: Path, rows: list[tuple[int, int, int, str, str]]) -> None:
    names = ["product_id", "store_id", "week", "display_location", "mailer_location"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "promotions.parquet")


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """Sixty households, 150 products, five stores, ten weeks; baskets and promotions independent of each other."""
    rng = np.random.default_rng(11)
    baskets = []
    for user in range(2, 62):
        for _ in range(rng.integers(4, 18)):
            at = MONDAY_MS + int(rng.integers(0, 10 * WEEK_MS)) // 1000 * 1000
            size = int(rng.integers(1, 12))
            items = 2 + (150 * rng.random(size) ** 2).astype(int)
            baskets += [(user, int(item), 2 + (user + at // 1000) % 5, at) for item in items]
    folder = tmp_path_factory.mktemp("mini")
    promotions = [
        (item, store, week, str(rng.integers(0, 3)), "ADH"[rng.integers(0, 3)])
        for week in range(1, 11)
        for store in range(2, 6)  # store 6 has no promotions
        for item in 2 + rng.choice(150, 60, replace=False)
    ]
    promotions += promotions[:40]  # listed twice
    promotions += [(9_999, 2, 5, "0", "A"), (5, 777, 5, "0", "A")]  # an unknown product, an unknown store
    write_promotions(folder, [(int(p), int(s), w, d, m) for p, s, w, d, m in promotions])
    frame = pl.DataFrame(baskets, schema=["user", "item", "store", "time_ms"], orient="row")
    return make_core(frame, folder)


def make(core: Core, folder: Path, settings: Mapping[str, Any] = SMALL, seed: int = 0) -> MadeRequests:
    return CompleteJourney().make_requests(core, folder, seed=seed, settings=settings)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def made(core: Core, out: Path) -> MadeRequests:
    return make(core, out)


def baskets_of(core: Core) -> dict[tuple[int, int], set[int]]:
    b = core.behaviours
    found: dict[tuple[int, int], set[int]] = {}
    for user in range(len(b.offsets) - 1):
        for row in range(b.offsets[user], b.offsets[user + 1]):
            found.setdefault((user, int(b.time_ms[row])), set()).add(int(b.item[row]))
    return found


def slow_candidates(core: Core, last_week: int, least: int) -> set[int]:
    week = weeks_of(core.behaviours.time_ms, ZONE)
    buyers: dict[int, set[int]] = {}
    b = core.behaviours
    for user in range(len(b.offsets) - 1):
        for row in range(b.offsets[user], b.offsets[user + 1]):
            if week[row] <= last_week:
                buyers.setdefault(int(b.item[row]), set()).add(user)
    return {item for item, who in buyers.items() if len(who) >= least}


def each(made: MadeRequests) -> list[tuple[str, Requests, int]]:
    return [(split, r, i) for split, r in made.requests.items() for i in range(len(r))]


def part(r: Requests, i: int, list_id: int) -> tuple[list[int], Array, slice]:
    rows = slice(int(r.offsets[i]), int(r.offsets[i + 1]))
    mine = r.list_id[rows] == list_id
    return r.item[rows][mine].tolist(), r.label[rows][mine], rows


def test_every_split_has_requests_in_its_weeks_in_order_of_time(core: Core, made: MadeRequests) -> None:
    for split, name in (("train", "train_weeks"), ("valid", "valid_weeks"), ("test", "test_weeks")):
        r = made.requests[split]
        week = weeks_of(r.time_ms, ZONE)
        assert len(r) > 20
        assert week.min() >= SMALL[name][0]
        assert week.max() <= SMALL[name][1]
        assert (week == r.context["week"]).all()
        assert (np.diff(r.time_ms) >= 0).all()
        assert made.protocol.splits[split] == (r.time_ms[0], r.time_ms[-1])


def test_candidates_have_enough_buyers_before_validation(core: Core, made: MadeRequests, out: Path) -> None:
    expected = slow_candidates(core, 7, 3)
    assert set(np.load(out / "pools" / "candidate_items.npy").tolist()) == expected
    for r in made.requests.values():
        assert set(r.item.tolist()) <= expected


def test_promoted_candidates_are_in_the_universe_and_labels_are_the_basket(core: Core, made: MadeRequests) -> None:
    table = pl.read_parquet(core.source_folder / "promotions.parquet")  # type: ignore[operator]
    universe: dict[tuple[int, int], set[int]] = {}
    for item, store, week, *_ in table.iter_rows():
        universe.setdefault((store, week), set()).add(item)
    allowed = slow_candidates(core, 7, 3)
    baskets = baskets_of(core)
    for _, r, i in each(made):
        items, labels, _rows = part(r, i, 0)
        pool = universe.get((int(r.place[i]), int(r.context["week"][i])), set()) & allowed
        basket = baskets[int(r.user[i]), int(r.time_ms[i])]
        assert set(items) <= pool
        assert all((item in basket) == bool(label) for item, label in zip(items, labels, strict=True))
        # as many positives as the basket, the cap and the universe allow; none: no list
        expected = min(len(basket & pool), SMALL["max_positives"], len(pool - basket) // 5)
        assert labels.sum() == expected


def test_window_candidates_were_sold_in_the_weeks_before(core: Core, made: MadeRequests) -> None:
    week = weeks_of(core.behaviours.time_ms, ZONE)
    allowed = slow_candidates(core, 7, 3)
    baskets = baskets_of(core)
    for _, r, i in each(made):
        items, labels, _rows = part(r, i, 1)
        now = int(r.context["week"][i])
        sold = set(core.behaviours.item[(week >= now - 2) & (week < now)].tolist()) & allowed
        basket = baskets[int(r.user[i]), int(r.time_ms[i])]
        assert set(items) <= sold
        assert all((item in basket) == bool(label) for item, label in zip(items, labels, strict=True))
        assert labels.sum() == min(len(basket & sold), SMALL["max_positives"], len(sold - basket) // 5)


def test_five_negatives_per_positive_and_no_item_twice(made: MadeRequests) -> None:
    for _, r, i in each(made):
        for list_id in (0, 1):
            items, labels, _rows = part(r, i, list_id)
            assert len(items) == 6 * labels.sum()
            assert len(set(items)) == len(items)
        assert r.offsets[i + 1] > r.offsets[i]


def test_prefix_is_what_lies_strictly_before(core: Core, made: MadeRequests) -> None:
    b = core.behaviours
    for _, r, i in each(made):
        times = b.time_ms[b.offsets[r.user[i]] : b.offsets[r.user[i] + 1]]
        assert r.prefix[i] == (times < r.time_ms[i]).sum()


def test_flags_are_those_of_the_promotion_and_missing_in_the_window_list(
    core: Core, made: MadeRequests, out: Path
) -> None:
    table = pl.read_parquet(core.source_folder / "promotions.parquet")  # type: ignore[operator]
    flags: dict[tuple[int, int, int], set[tuple[str, str]]] = {}
    for item, store, week, display, mailer in table.iter_rows():
        flags.setdefault((item, store, week), set()).add((display, mailer))
    words = {name: pl.read_parquet(out / "vocab" / f"{name}.parquet")["id"].to_list() for name in ("display", "mailer")}
    assert [f.name for f in made.candidate_fields] == ["display", "mailer"]
    assert [f.size for f in made.candidate_fields] == [len(words["display"]), len(words["mailer"])]
    for _, r, i in each(made):
        for row in range(r.offsets[i], r.offsets[i + 1]):
            display, mailer = int(r.candidate["display"][row]), int(r.candidate["mailer"][row])
            if r.list_id[row] == 1:
                assert display == mailer == 0
            else:
                key = (int(r.item[row]), int(r.place[i]), int(r.context["week"][i]))
                assert (words["display"][display], words["mailer"][mailer]) in flags[key]


def test_order_inside_a_list_tells_nothing(made: MadeRequests) -> None:
    group, label, score = [], [], []
    for g, (_, r, i) in enumerate(each(made)):
        for list_id in (0, 1):
            items, labels, _rows = part(r, i, list_id)
            group += [2 * g + list_id] * len(items)
            label += labels.tolist()
            score += range(len(items))
    assert gauc(np.array(group), np.array(label), np.array(score)) == pytest.approx(0.5, abs=0.03)


def test_same_seed_same_requests_and_other_seed_others(core: Core, made: MadeRequests, tmp_path: Path) -> None:
    again, other = make(core, tmp_path / "a"), make(core, tmp_path / "b", seed=1)
    for split, r in made.requests.items():
        assert np.array_equal(r.item, again.requests[split].item)
        assert np.array_equal(r.user, other.requests[split].user)
        assert not np.array_equal(r.item, other.requests[split].item)
    assert made.protocol == again.protocol


def test_pools_hold_every_universe_once(core: Core, made: MadeRequests, out: Path) -> None:
    arrays = {p.stem: np.load(p) for p in (out / "pools").glob("promotions.*.npy")}
    store, week, offsets = (arrays[f"promotions.{n}"] for n in ("store", "week", "offsets"))
    allowed = slow_candidates(core, 7, 3)
    table = pl.read_parquet(core.source_folder / "promotions.parquet")  # type: ignore[operator]
    expected: dict[tuple[int, int], set[int]] = {}
    for item, s, w, *_ in table.iter_rows():
        if item in allowed and s < 9:
            expected.setdefault((s, w), set()).add(item)
    found = {}
    for p in range(len(store)):
        items = arrays["promotions.item"][offsets[p] : offsets[p + 1]].tolist()
        assert items == sorted(set(items))
        found[int(store[p]), int(week[p])] = set(items)
    assert found == expected
    assert len(arrays["promotions.display"]) == len(arrays["promotions.item"]) == offsets[-1]


def test_ranking_requests_are_recorded_with_their_whole_truth(core: Core, made: MadeRequests, out: Path) -> None:
    rows, offsets, item = (np.load(out / "pools" / f"ranking.{n}.npy") for n in ("rows", "offsets", "item"))
    assert made.protocol.settings["ranking_rows"] == rows.tolist()
    assert len(rows) == 5
    r, allowed, baskets = made.requests["test"], slow_candidates(core, 7, 3), baskets_of(core)
    for k, i in enumerate(rows):
        basket = baskets[int(r.user[i]), int(r.time_ms[i])]
        assert set(item[offsets[k] : offsets[k + 1]].tolist()) == basket & allowed


def test_training_is_everything_before_validation(core: Core) -> None:
    training = CompleteJourney().is_training(core, settings=SMALL)
    assert (training == (weeks_of(core.behaviours.time_ms, ZONE) <= 7)).all()


def test_a_universe_too_small_for_five_negatives_lowers_the_positives(tmp_path: Path) -> None:
    lines = [
        (u, item, 2, MONDAY_MS + w * WEEK_MS + u * 1000) for u in (2, 3, 4) for w in range(10) for item in (2, 3, 4)
    ]
    lines += [(u, item, 2, MONDAY_MS + u * 1000 + 1) for u in (2, 3, 4) for item in range(5, 13)]
    frame = pl.DataFrame(lines, schema=["user", "item", "store", "time_ms"], orient="row")
    # three positives and eleven others at most: two positives with five negatives each; then four others: no list
    write_promotions(
        tmp_path,
        [(item, 2, week, "0", "A") for week in range(1, 10) for item in range(2, 13 if week != 9 else 7)],
    )
    made = make(make_core(frame, tmp_path), tmp_path, {**SMALL, "min_buyers": 1})
    for _, r, i in each(made):
        items, labels, _rows = part(r, i, 0)
        if r.context["week"][i] in (9, 10):  # too few others, or no promotions at all
            assert items == []
        else:
            assert labels.sum() == 1
            assert len(items) == 6


def test_membership_and_sizes_tell_nothing(core: Core, made: MadeRequests) -> None:
    assert worst_giveaway(core, made) == pytest.approx(0.5, abs=0.03)


def worst_giveaway(core: Core, made: MadeRequests) -> float:
    """Return the GAUC farthest from one half over all scores made of memberships and sizes, within each list."""
    worst = 0.5
    table = pl.read_parquet(core.source_folder / "promotions.parquet")  # type: ignore[operator]
    words = core.vocabularies["item"].cast(pl.Int64, strict=False).to_numpy()
    places = core.vocabularies["place"].cast(pl.Int64, strict=False).to_numpy()
    listed = table.select(pl.struct("product_id", "store_id", "week").hash()).to_series()
    r = made.requests["test"]
    row = np.repeat(np.arange(len(r)), np.diff(r.offsets))
    asked = pl.DataFrame(
        {
            "product_id": words[r.item].astype(np.int64),
            "store_id": places[r.place[row]].astype(np.int64),
            "week": r.context["week"][row].astype(np.int64),
        }
    ).cast({name: table.schema[name] for name in ("product_id", "store_id", "week")})
    promoted = asked.select(pl.struct("product_id", "store_id", "week").hash()).to_series().is_in(listed.implode())
    in_universe = promoted.to_numpy().astype(float)
    week = weeks_of(core.behaviours.time_ms, ZONE)
    sold_before = np.zeros(len(row))
    for w in np.unique(r.context["week"]):
        weeks = int(made.protocol.settings["popularity_weeks"])
        sold = np.unique(core.behaviours.item[(week >= w - weeks) & (week < w)])
        mine = r.context["week"][row] == w
        sold_before[mine] = np.isin(r.item[mine], sold)
    for list_id in (0, 1):
        mine = r.list_id == list_id
        sizes = np.bincount(row[mine], minlength=len(r))[row]
        scores = {
            "candidates in the list": sizes.astype(float),
            "positives in the basket": np.bincount(row, r.label, len(r))[row],
            "in the candidate universe": np.ones(len(row)),
        }
        if list_id == 0:
            assert in_universe[mine].all(), "membership must be constant inside a promoted list"
            scores["in the promoted universe"] = in_universe
        else:
            assert sold_before[mine].all(), "membership must be constant inside a window list"
            scores["in the window universe"] = sold_before
        for score in scores.values():
            value = gauc(row[mine], r.label[mine], score[mine])
            worst = value if abs(value - 0.5) > abs(worst - 0.5) else worst
    return worst


def test_weeks_begin_on_monday_midnight_in_new_york_all_year() -> None:
    before = [datetime.datetime(2017, 3, 13, 3, 59, 59), datetime.datetime(2017, 11, 6, 4, 59, 59)]
    times = np.array([int(t.replace(tzinfo=datetime.UTC).timestamp()) * 1000 for t in before])
    assert weeks_of(times, ZONE).tolist() == [11, 45]
    assert weeks_of(times + 1000, ZONE).tolist() == [12, 46]


def test_wrong_settings_are_refused(core: Core, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Did you mean 'max_positives'"):
        make(core, tmp_path, {"max_positive": 3})
    with pytest.raises(SpecError, match="must follow one another"):
        make(core, tmp_path, {**SMALL, "valid_weeks": (6, 8)})
    with pytest.raises(SpecError, match="greater than or equal to 1"):
        make(core, tmp_path, {**SMALL, "min_buyers": 0})


def test_missing_promotions_are_named(core: Core, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs other\.parquet"):
        make(core, tmp_path, {**SMALL, "promotions": "other.parquet"})


def test_unknown_protocols_are_refused() -> None:
    with pytest.raises(SpecError, match="Did you mean 'complete-journey'"):
        load_protocol("complete-jurney")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """Weeks 1 to 49 of 500 households of the real package, with the promotions of week 49."""
    try:
        folder = locate(find_source("complete-journey"))
    except MissingSource as missing:
        pytest.skip(f"needs the real data: {missing}")
    cut = tmp_path_factory.mktemp("real")
    pl.scan_parquet(folder / "promotions.parquet").filter(pl.col("week") == 49).sink_parquet(cut / "promotions.parquet")
    lines = (
        pl.scan_parquet(folder / "transactions.parquet")
        .filter((pl.col("household_id") <= 500) & (pl.col("week") <= 49))
        .select(
            user=pl.col("household_id") + 1,
            item=pl.col("product_id").rank("dense") + 1,
            store=pl.col("store_id").rank("dense") + 1,
            time_ms=pl.col("transaction_timestamp").dt.epoch("ms"),
            week="week",
            product_id="product_id",
            store_id="store_id",
        )
        .collect()
    )
    core = make_core(lines, cut)
    assert np.array_equal(
        weeks_of(core.behaviours.time_ms, ZONE),
        lines.sort("user", "time_ms", maintain_order=True)["week"].to_numpy(),
    )
    vocabularies = {
        name: pl.Series(["", "", *lines[column].unique().sort().cast(pl.String).to_list()])
        for name, column in (("item", "product_id"), ("place", "store_id"))
    }
    return Core(
        name="cut",
        time_zone=ZONE,
        behaviours=core.behaviours,
        items=core.items,
        features=core.features,
        vocabularies=vocabularies,
        source_folder=cut,
    )


def test_on_real_data_membership_and_sizes_tell_nothing(real: Core, tmp_path: Path) -> None:
    settings = {
        "train_weeks": (46, 46),
        "valid_weeks": (47, 48),
        "test_weeks": (49, 49),
        "min_buyers": 3,
    }
    made = make(real, tmp_path, settings)
    assert len(made.requests["test"]) > 300
    assert abs(worst_giveaway(real, made) - 0.5) < 0.01
