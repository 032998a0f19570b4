"""Amazon review subsets that papers on sequential recommendation use."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl

from sostenuto.data.sources.locating import Source
from sostenuto.data.spec import DataSpec, make_spec

TERMS = "Amazon product data of J. McAuley (UCSD): research use, cite the papers named there; no redistribution."
DAY_MS = 86_400_000
SPARSE = {"popularity_days": 365}  # few events a month
FIRST_DAY_MS = 946_684_800_000  # 2000-01-01, where order-only sequences begin


def _sequences(folder: Path, title: str, stem: str) -> pl.DataFrame:
    """Return user, pos, item of either layout."""
    if (folder / f"{title}.txt").is_file():
        rows = [line.split() for line in (folder / f"{title}.txt").read_text(encoding="ascii").splitlines() if line]
        table = pl.DataFrame({"user": [int(row[0]) for row in rows], "item": [list(map(int, row[1:])) for row in rows]})
        return table.with_columns(pos=pl.int_ranges(0, pl.col("item").list.len())).explode("item", "pos")
    return pl.read_parquet(folder / f"{stem}_seq.parquet")


def _attributes(folder: Path, title: str, stem: str) -> pl.DataFrame:
    path = folder / f"{title}_item2attributes.json"
    if path.is_file():
        raw = json.loads(path.read_text(encoding="utf-8"))
        return pl.DataFrame({"item": [int(item) for item in raw], "attributes": list(raw.values())})
    return pl.read_parquet(folder / f"{stem}_attributes.parquet")


def _build_sequences(name: str, title: str, stem: str, folder: Path, cache: Path) -> DataSpec:
    sequences = _sequences(folder, title, stem)
    time = pl.col("pos").cast(pl.Int64) * DAY_MS + FIRST_DAY_MS
    sequences.select("user", "item", time=time.cast(pl.Datetime("ms", "UTC"))).write_parquet(
        cache / "sequences.parquet"
    )
    attributes = _attributes(folder, title, stem)
    attributes.select("item", attributes=pl.col("attributes").list.eval(pl.element().cast(pl.String))).write_parquet(
        cache / "items.parquet"
    )
    tables: dict[str, Any] = {
        "events": {"files": "sequences.parquet", "user": "user", "item": "item", "time": "time"},
        "items": {
            "files": "items.parquet",
            "item": "item",
            "fields": {"attributes": {"kind": "multi", "width": 8}},
        },
        "vocabulary": {"min_item_count": 1},  # papers on these sets give every item a row
    }
    return _spec(name, cache, tables, {"popularity": "training"})  # positions are no calendar


def _spec(name: str, folder: Path, tables: dict[str, Any], settings: dict[str, Any]) -> DataSpec:
    head: dict[str, Any] = {"name": name, "folder": str(folder), "time_zone": "UTC", "terms": TERMS}
    head["protocol"] = {"name": "leave-last-out"} | settings
    return make_spec(head | tables, origin=name)


def _sequence_source(name: str, title: str, stem: str, events: int, users: int, items: int) -> Source:
    def build(folder: Path, cache: Path) -> DataSpec:
        return _build_sequences(name, title, stem, folder, cache)

    return Source(
        name=name,
        title=f"Amazon {title.replace('_', ' ')}, 5-core sequences as S3-Rec published them",
        terms=TERMS,
        protocol="leave-last-out",
        build=build,
        files=(
            (f"{title}.txt", f"{title}_item2attributes.json"),
            (f"{stem}_seq.parquet", f"{stem}_attributes.parquet"),
        ),
        statistics={"events": events, "users": users, "items": items},
        notes=(
            f"Accepted: {title}.txt with {title}_item2attributes.json as published, or {stem}_seq.parquet (user, pos, "
            f"item) with {stem}_attributes.parquet (item, attributes). Order only: event n of a user stands on day n "
            "after 2000-01-01, so decays count events, and clock features mean nothing. Every item of training owns an "
            "embedding row, as in the papers that use these sets."
        ),
        home="https://github.com/RUCAIBox/CIKM2020-S3Rec",
    )


def _build_instruments(folder: Path, cache: Path) -> DataSpec:
    published = folder / "reviews_Musical_Instruments_5.json.gz"
    path = cache / "reviews.parquet"
    if published.is_file():
        with gzip.open(published, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        seconds = pl.Series([row["unixReviewTime"] for row in rows], dtype=pl.Int64)
        pl.DataFrame(
            {
                "user": [row["reviewerID"] for row in rows],
                "item": [row["asin"] for row in rows],
                "time": (seconds * 1000).cast(pl.Datetime("ms", "UTC")),
                "rating": [float(row["overall"]) for row in rows],
            }
        ).write_parquet(path)
    else:
        pl.read_parquet(folder / "musical_instruments_reviews.parquet").select(
            user="reviewerID", item="asin", time=pl.col("time").dt.replace_time_zone("UTC"), rating="overall"
        ).write_parquet(path)
    tables = {"events": {"files": path.name, "user": "user", "item": "item", "time": "time", "value": "rating"}}
    return _spec("amazon-musical-instruments", cache, tables, SPARSE)


def _build_grocery(folder: Path, cache: Path) -> DataSpec:
    if (folder / "train.csv").is_file():
        events = pl.read_csv(folder / "train.csv", separator="\t").select("user_id", "item_id", "time")
        items = pl.read_csv(folder / "item_meta.csv", separator="\t").select("item_id", "i_category")
        events = events.with_columns((pl.col("time").cast(pl.Int64) * 1000).cast(pl.Datetime("ms")))
    else:
        events = pl.read_parquet(folder / "grocery_train.parquet")
        items = pl.read_parquet(folder / "grocery_items.parquet").select("item_id", "i_category")
    events.with_columns(pl.col("time").dt.replace_time_zone("UTC")).write_parquet(cache / "events.parquet")
    items.write_parquet(cache / "items.parquet")
    tables = {
        "events": {"files": "events.parquet", "user": "user_id", "item": "item_id", "time": "time"},
        "items": {"files": "items.parquet", "item": "item_id", "categories": ["i_category"]},
    }
    return _spec("amazon-grocery", cache, tables, SPARSE)


SOURCES = (
    _sequence_source("amazon-beauty", "Beauty", "beauty", 198_502, 22_363, 12_101),
    _sequence_source("amazon-sports", "Sports_and_Outdoors", "sports_and_outdoors", 296_337, 35_598, 18_357),
    _sequence_source("amazon-toys", "Toys_and_Games", "toys_and_games", 167_597, 19_412, 11_924),
    Source(
        name="amazon-musical-instruments",
        title="Amazon Musical Instruments, 5-core reviews with dates",
        terms=TERMS,
        protocol="leave-last-out",
        build=_build_instruments,
        files=(("reviews_Musical_Instruments_5.json.gz",), ("musical_instruments_reviews.parquet",)),
        statistics={"events": 10_261, "users": 1_429, "items": 900},
        notes="Dates have day resolution: reviews of one day are one moment. Review text is not read.",
        home="http://jmcauley.ucsd.edu/data/amazon/",
    ),
    Source(
        name="amazon-grocery",
        title="Amazon Grocery and Gourmet Food, with time, as ReChorus ships it",
        terms=TERMS,
        protocol="leave-last-out",
        build=_build_grocery,
        files=(("train.csv", "item_meta.csv"), ("grocery_train.parquet", "grocery_items.parquet")),
        statistics={"events": 121_892, "users": 14_681, "items": 8_687},
        notes=(
            "Only the training part has a time: the last two events of each user (ReChorus's dev and test) are "
            "missing, so figures cannot be compared with its own."
        ),
        home="https://github.com/THUwangcy/ReChorus",
    ),
)

__all__ = ["SOURCES"]
