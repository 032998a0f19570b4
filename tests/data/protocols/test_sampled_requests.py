"""Requests of `global-time` and `leave-last-out`: lawful splits, prefixes, labels and negatives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sostenuto.data import preparation
from sostenuto.data.preparation import prepare
from sostenuto.data.prepared import SPLITS, PreparedData
from sostenuto.data.protocols import leave_last_out, popularity_sampling, split_times
from sostenuto.data.protocols.popularity_sampling import DAY_MS, PopularityWindows, draw_negatives
from sostenuto.data.spec import make_spec
from sostenuto.ops.geohash import geohash_text
from sostenuto.schema.errors import DataError, SpecError

START_S = 1_600_000_000
DAYS = 60


def write_log(folder: Path, *, seed: int, events: int = 1_500, users: int = 25, items: int = 80) -> pl.DataFrame:
    """Write baskets: some users, popular items often, several items at one time, sessions of some hours."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, events)
    hour = rng.integers(0, DAYS * 24, events) // 5 * 5  # ties
    frame = pl.DataFrame(
        {
            "user": [f"u{u}" for u in user],
            "item": [f"i{int(i)}" for i in items * rng.random(events) ** 2],
            "time": START_S + hour * 3_600,
            "action": rng.choice(["view", "buy"], events, p=[0.7, 0.3]),
            "stars": rng.integers(1, 6, events),
            "visit": [f"{h // 24}" for h in hour],  # a session is a user's day
        }
    )
    frame.write_csv(folder / "log.csv")
    return frame


def prepared(folder: Path, out: str, *, seed: int = 0, **protocol) -> PreparedData:
    spec = make_spec(
        {
            "name": "baskets",
            "folder": folder,
            "events": {
                "files": "log.csv",
                "user": "user",
                "item": "item",
                "time": {"column": "time", "unit": "s"},
                "action": "action",
                "value": "stars",
                "session": "visit",
            },
            "protocol": protocol,
        }
    )
    return prepare(spec, folder / out, seed=seed, overwrite=True)


def check_requests(data: PreparedData, log: pl.DataFrame, *, days: float | None, session: bool, eligible=None) -> None:
    """Hold every request of every split against the raw log."""
    users, items = data.vocabulary("user"), data.vocabulary("item")
    rows = log.with_columns((pl.col("time") * 1_000).alias("time_ms")).to_dicts()
    window_events = [row for row in rows if eligible is None or eligible(row)]
    protocol = data.manifest.protocol
    ratio = protocol.settings["negatives_per_positive"]
    seen = set()
    for split in SPLITS:
        r = data.requests(split)
        for at in range(len(r)):
            user, time_ms = users[r.user[at]], int(r.time_ms[at])
            inside = slice(int(r.offsets[at]), int(r.offsets[at + 1]))
            names = [items[i] for i in r.item[inside]]
            labels = np.asarray(r.label[inside])
            own = [row for row in rows if row["user"] == user]
            if session:
                visit = next(row["visit"] for row in own if row["time_ms"] == time_ms)
                moment = [row for row in own if row["visit"] == visit]
                assert min(row["time_ms"] for row in moment) == time_ms
            else:
                moment = [row for row in own if row["time_ms"] == time_ms]
            assert int(r.prefix[at]) == sum(row["time_ms"] < time_ms for row in own)
            positives = {name for name, label in zip(names, labels, strict=True) if label == 1.0}
            negatives = {name for name, label in zip(names, labels, strict=True) if label == 0.0}
            assert len(names) == len(set(names)), "a candidate occurs once"
            assert positives <= {row["item"] for row in moment if eligible is None or eligible(row)}
            assert not negatives & {row["item"] for row in moment}, "whatever was done at the moment is no negative"
            assert 1 <= len(positives) <= protocol.settings["positives_at_most"]
            assert len(negatives) == ratio * len(positives)
            if days is not None:
                window = {row["item"] for row in window_events if time_ms - days * DAY_MS <= row["time_ms"] < time_ms}
                assert set(names) <= window, "candidates come from strictly before, positives too"
            key = (user, time_ms, visit if session else None)
            assert key not in seen, "a moment is one request of one split"
            seen.add(key)
        assert (np.asarray(r.list_id) == 0).all()


@pytest.fixture(scope="module")
def checkins(tmp_path_factory):
    """Prepare a log whose places are cells of its items, under each rule of `request_place`."""
    folder = tmp_path_factory.mktemp("checkins")
    log = write_log(folder, seed=3)
    cells = ["dr5ru7", "dr5ru2", "dr5ru6", "dr72h8"]
    log.with_columns(
        pl.col("item").str.slice(1).cast(pl.Int32).map_elements(lambda i: cells[i % 4], pl.String).alias("cell")
    ).write_csv(folder / "log.csv")

    def prepared_with(name: str, **protocol) -> PreparedData:
        spec = make_spec(
            {
                "name": "checkins",
                "folder": folder,
                "places": "geohash",
                "time_zone": "America/New_York",
                "events": {
                    "files": "log.csv",
                    "user": "user",
                    "item": "item",
                    "time": {"column": "time", "unit": "s"},
                    "place": "cell",
                },
                "protocol": {"name": "global-time", "popularity_days": 20.0, **protocol},
            }
        )
        return prepare(spec, folder / name, seed=0, overwrite=True)

    return prepared_with


def test_a_request_at_the_previous_place_does_not_know_where_the_user_is(checkins):
    data = checkins("previous", request_place="previous")
    b = data.behaviours
    found = []
    for split in SPLITS:
        r = data.requests(split)
        for at in range(len(r)):
            start = int(b.offsets[r.user[at]])
            past = np.asarray(b.place[start : start + int(r.prefix[at])])
            assert r.place[at] == (past[-1] if len(past) else 0)
            here = set(b.place[start + int(r.prefix[at]) :][b.time_ms[start + int(r.prefix[at]) :] == r.time_ms[at]])
            found.append(r.place[at] in here)
    assert 0.05 < np.mean(found) < 0.8  # equal at times by chance, as items of four cells must be


def test_requests_may_have_no_place_and_by_default_have_that_of_their_first_event(checkins):
    nowhere, event = checkins("none", request_place="none"), checkins("event")
    for split in SPLITS:
        assert not np.asarray(nowhere.requests(split).place).any()
        r, b = event.requests(split), event.behaviours
        assert (r.place == b.place[b.offsets[r.user] + r.prefix]).all()
        assert (r.item == nowhere.requests(split).item).all()  # candidates do not depend on it


def test_geohash_places_have_points_and_the_zone_travels_with_the_features(checkins, tmp_path):
    data = checkins("points")
    features = data.features
    assert features.time_zone == data.manifest.features.time_zone == "America/New_York"
    assert len(features.place_points) == features.num_places - 2 == 4
    names = data.vocabulary("place")[2:]
    for name, (latitude, longitude) in zip(names, features.place_points, strict=True):
        assert geohash_text(latitude, longitude, 6) == name


def test_places_that_are_no_geohashes_are_refused(tmp_path):
    write_log(tmp_path, seed=0)
    events = {"files": "log.csv", "user": "user", "item": "item", "time": {"column": "time", "unit": "s"}}
    spec = make_spec(
        {
            "name": "x",
            "folder": tmp_path,
            "places": "geohash",
            "events": events | {"place": "action"},
            "protocol": "global-time",
        }
    )
    with pytest.raises(DataError, match=r"places = 'geohash' needs geohashes in `place`: .* got 'view'"):
        prepare(spec, tmp_path / "out")


@pytest.mark.parametrize("moment", ["time", "session"])
def test_global_time_requests_are_lawful(tmp_path, moment):
    log = write_log(tmp_path, seed=0)
    data = prepared(tmp_path, "out", name="global-time", moment=moment, popularity_days=10.0)
    check_requests(data, log, days=10, session=moment == "session")
    given_settings = data.manifest.protocol.settings
    valid_ms, test_ms = given_settings["valid_from_ms"], given_settings["test_from_ms"]
    times = {split: np.asarray(data.requests(split).time_ms) for split in SPLITS}
    assert all(len(t) > 10 for t in times.values())
    assert times["train"].max() < valid_ms <= times["valid"].min()
    assert times["valid"].max() < test_ms <= times["test"].min()
    assert data.manifest.counts["training_events"] == int((np.asarray(data.behaviours.time_ms) < valid_ms).sum())
    assert np.mean(log["time"].to_numpy() * 1_000 < valid_ms) == pytest.approx(0.8, abs=0.02)


def test_only_chosen_actions_and_values_are_positives(tmp_path):
    log = write_log(tmp_path, seed=1)
    data = prepared(tmp_path, "out", name="global-time", positive_actions=["buy"], positive_min_value=3.0)
    check_requests(data, log, days=28, session=False, eligible=lambda row: row["action"] == "buy" and row["stars"] >= 3)


def test_leave_last_out_takes_the_last_two_moments_of_each_user(tmp_path):
    log = write_log(tmp_path, seed=2)
    data = prepared(tmp_path, "out", name="leave-last-out", popularity="training", positives_at_most=3)
    check_requests(data, log, days=None, session=False)
    users = data.vocabulary("user")
    last = {
        user: sorted(set((log.filter(pl.col("user") == user)["time"] * 1_000).to_list()))[-2:]
        for user in log["user"].unique()
    }
    for split, place in (("valid", 0), ("test", 1)):
        r = data.requests(split)
        assert len(r) == len({int(u) for u in r.user}) > 15
        for user, time_ms in zip(r.user, r.time_ms, strict=True):
            assert last[users[user]][place] == time_ms
    r = data.requests("train")
    assert all(t < last[users[u]][0] for u, t in zip(r.user, r.time_ms, strict=True))
    training = sum(row["time"] * 1_000 < last[row["user"]][0] for row in log.to_dicts())
    assert data.manifest.counts["training_events"] == training


def test_same_seed_same_requests_and_another_seed_other_negatives(tmp_path):
    write_log(tmp_path, seed=3)
    one, two, other = (
        prepared(tmp_path, f"out{at}", seed=seed, name="global-time") for at, seed in enumerate((0, 0, 1))
    )
    assert one.manifest.arrays_hash == two.manifest.arrays_hash
    a, b = one.requests("test"), other.requests("test")
    assert a.time_ms.tolist() == b.time_ms.tolist()
    assert a.item.tolist() != b.item.tolist()


def test_requests_beyond_the_most_are_drawn_and_counted(tmp_path):
    write_log(tmp_path, seed=4)
    whole = prepared(tmp_path, "whole", name="global-time")
    few = prepared(tmp_path, "few", name="global-time", train_requests=30, min_history=5)
    r = few.requests("train")
    assert 0 < len(r) <= 30
    assert (np.asarray(r.prefix) >= 5).all()
    assert few.manifest.counts["train_moments"] == whole.manifest.counts["train_moments"]
    assert few.manifest.protocol.settings["train_requests"] == 30


def test_a_narrow_universe_keeps_the_ratio(tmp_path):
    log = write_log(tmp_path, seed=5, items=7, events=600)
    data = prepared(tmp_path, "out", name="global-time", negatives_per_positive=3)
    check_requests(data, log, days=28, session=False)
    assert data.manifest.counts["positives_without_negatives"] > 0


def test_wrong_settings_are_refused_in_words_that_help(tmp_path):
    write_log(tmp_path, seed=6, events=200)
    for setting, words in [
        ({"valid_form": 0.5}, "Did you mean 'valid_from'"),
        ({"valid_from": 0.95}, "must lie before test_from"),
        ({"valid_from": 17}, "share between 0 and 1 or a time"),
        ({"valid_from": "soon"}, "ISO time"),
        ({"positive_actions": ["by"]}, "Did you mean 'buy'"),
        ({"popularity": "training", "popularity_days": 3}, "leave it out"),
        ({"negatives_per_positive": 0}, "negatives_per_positive"),
    ]:
        with pytest.raises(SpecError, match=words):
            prepared(tmp_path, "out", name="global-time", **setting)
    with pytest.raises(SpecError, match="Did you mean 'global-time'"):
        prepared(tmp_path, "out", name="global_time")


def test_splits_may_begin_at_times_of_the_spec_zone(tmp_path):
    write_log(tmp_path, seed=7)
    data = prepared(tmp_path, "out", name="global-time", valid_from="2020-10-20", test_from="2020-10-30T12:00:00+02:00")
    assert data.manifest.protocol.settings["valid_from_ms"] == 1_603_152_000_000
    assert data.manifest.protocol.settings["test_from_ms"] == 1_604_052_000_000


PROTOCOLS = [
    {"name": "global-time"},
    {"name": "global-time", "moment": "session", "popularity": "training", "positive_min_value": 3.0},
    {"name": "global-time", "positive_actions": ["buy"], "min_item_events": 2, "train_requests": 90},
    {"name": "leave-last-out", "train_requests": 200, "valid_requests": 7},
    {"name": "leave-last-out", "moment": "session"},
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: "-".join(map(str, protocol.values())))
def test_requests_do_not_depend_on_how_much_is_held_at_once(tmp_path, monkeypatch, protocol):
    write_log(tmp_path, seed=8)
    whole = prepared(tmp_path, "whole", **protocol)
    for module in (popularity_sampling, split_times, leave_last_out, preparation):
        monkeypatch.setattr(module, "PIECE", 37)
    monkeypatch.setattr(PopularityWindows.__init__, "__kwdefaults__", {"counted": None, "most": 100})
    pieces = prepared(tmp_path, "pieces", **protocol)
    assert not list(pieces.folder.glob("popularity-*"))
    assert pieces.manifest.counts == whole.manifest.counts
    assert pieces.manifest.protocol == whole.manifest.protocol
    for split in SPLITS:
        a, b = whole.requests(split), pieces.requests(split)
        for name in ("user", "time_ms", "prefix", "place", "offsets", "item", "label"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@given(st.integers(0, 10_000), st.sampled_from([7, 64, 1_000]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_equal_plain_counting(tmp_path, seed, most):
    rng = np.random.default_rng(seed)
    time_ms, item = rng.integers(0, 50, 200), rng.integers(0, 12, 200)
    counted = rng.random(200) < 0.7
    windows = PopularityWindows(time_ms, item, 12, counted, scratch=tmp_path, most=most)
    low, high = rng.integers(-10, 60, 40), rng.integers(-10, 60, 40)
    high = np.maximum(low, high)
    asked = rng.integers(0, 12, 40)
    expected = [
        int(((item == i) & (time_ms >= a) & (time_ms < b) & counted).sum())
        for i, a, b in zip(asked, low, high, strict=True)
    ]
    assert windows.counts(asked, low, high).tolist() == expected
    first, last = windows.bounds(low, high)
    for a, b, start, stop in zip(low, high, first, last, strict=True):
        inside = (time_ms >= a) & (time_ms < b) & counted
        assert Counter(windows.items_at(np.arange(start, stop)).tolist()) == Counter(item[inside].tolist())


def test_negatives_follow_popularity(tmp_path):
    rng = np.random.default_rng(0)
    popularity = np.array([1, 2, 4, 8, 16, 32])
    item = np.repeat(np.arange(6), popularity)
    windows = PopularityWindows(np.zeros(len(item), int), item, 6, scratch=tmp_path)
    draws = 10_000
    low, high = np.zeros(draws, int), np.ones(draws, int)
    taken = np.arange(draws) * 6 + 5  # the most popular item is always taken
    _, drawn = draw_negatives(windows, low, high, np.ones(draws, int), taken, rng)
    shares = np.bincount(drawn, minlength=6) / draws
    assert shares == pytest.approx(np.append(popularity[:5] / popularity[:5].sum(), 0), abs=0.02)
    request, drawn = draw_negatives(windows, low, high, np.full(draws, 9), taken, rng)
    found = np.bincount(request)
    assert found.max() == 5  # no more than there are, each once
    assert found.mean() > 4.99  # the rarest may be missed in a hundred rounds
    assert len(np.unique(request * 6 + drawn)) == len(request)
