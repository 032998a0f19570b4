"""Foursquare check-ins of New York (TSMC 2014)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from sostenuto.data.sources.locating import Source
from sostenuto.data.spec import DataSpec, make_spec
from sostenuto.ops.geohash import geohash_text

ZONE = "America/New_York"
ORIGINAL = "dataset_TSMC2014_NYC.txt"
COLUMNS = ["user", "poi", "category_id", "category", "lat", "lon", "offset_minutes", "utc_time"]
CELL_DEGREES = 0.01  # about 1 km
PLACE_CHARACTERS = 6  # of the geohash of a venue: about 0.9 km x 0.6 km in New York


def _cell(latitude: str, longitude: str) -> pl.Expr:
    """Name the grid cell of a venue."""
    steps = [(pl.col(name) / CELL_DEGREES).floor().cast(pl.Int32) for name in (latitude, longitude)]
    return pl.format("{}/{}", *steps).alias("cell")


def _published(folder: Path, cache: Path) -> None:
    """Read the file that the authors publish."""
    table = pl.read_csv(
        folder / ORIGINAL, separator="\t", has_header=False, new_columns=COLUMNS, encoding="latin1", quote_char=None
    )
    time = pl.col("utc_time").str.to_datetime("%a %b %d %H:%M:%S %z %Y", time_unit="ms")
    table.select("user", "poi", time=time).write_parquet(cache / "checkins.parquet")
    table.unique("poi", keep="first", maintain_order=True).select(
        "poi",
        pl.lit(None, pl.String).alias("group"),
        pl.col("category").alias("kind"),
        "lat",
        "lon",
        _cell("lat", "lon"),
        pl.col("category").alias("name"),
    ).write_parquet(cache / "pois.parquet")


def _tables(folder: Path, cache: Path) -> None:
    """Read check-ins and venues as two Parquet tables."""
    pl.read_parquet(folder / "checkins.parquet").select(
        "user", "poi", time=pl.col("utc_time").dt.replace_time_zone("UTC")
    ).write_parquet(cache / "checkins.parquet")
    steps = pl.col("fsq_category_path").str.split(" > ")
    pl.read_parquet(folder / "pois.parquet").select(
        "poi",
        steps.list.first().alias("group"),
        pl.coalesce("fsq_category_2013", steps.list.last()).alias("kind"),
        "lat",
        "lon",
        _cell("lat", "lon"),
        pl.coalesce("name", "fsq_category_2013").alias("name"),
    ).write_parquet(cache / "pois.parquet")


def _add_places(cache: Path) -> None:
    """Name the place of every check-in: the geohash of its venue."""
    venues = pl.read_parquet(cache / "pois.parquet").select("poi", "lat", "lon")
    points = venues.select(pl.col("lat", "lon").fill_null(np.nan)).iter_rows()
    texts = [geohash_text(latitude, longitude, PLACE_CHARACTERS) for latitude, longitude in points]
    named = venues.select("poi", pl.Series("place", texts))
    checkins = pl.read_parquet(cache / "checkins.parquet").join(named, on="poi", how="left", maintain_order="left")
    checkins.write_parquet(cache / "checkins.parquet")


def build(folder: Path, cache: Path) -> DataSpec:
    """Bring either layout into check-ins and venues."""
    (_published if (folder / ORIGINAL).is_file() else _tables)(folder, cache)
    _add_places(cache)
    return make_spec(
        {
            "name": SOURCE.name,
            "folder": str(cache),
            "time_zone": ZONE,
            "places": "geohash",
            "terms": SOURCE.terms,
            "events": {"files": "checkins.parquet", "user": "user", "item": "poi", "time": "time", "place": "place"},
            "items": {
                "files": "pois.parquet",
                "item": "poi",
                "categories": ["group", "kind"],
                "fields": {"cell": "categorical", "lat": "numeric", "lon": "numeric", "name": "text"},
            },
            # many venues see few visits a month; where a request happens would be the answer
            "protocol": {"name": SOURCE.protocol, "popularity_days": 90, "request_place": "previous"},
        },
        origin=SOURCE.name,
    )


SOURCE = Source(
    name="foursquare-nyc",
    title="Foursquare check-ins, New York, April 2012 to February 2013",
    terms="Research use; cite D. Yang et al., IEEE TSMC 45(1), 2015. No licence is stated: do not redistribute.",
    protocol="global-time",
    build=build,
    files=((ORIGINAL,), ("checkins.parquet", "pois.parquet")),
    statistics={"events": 147_938, "users": 1_083, "items": 5_135},
    notes=(
        f"Accepted: {ORIGINAL} as published (227,428 check-ins), or checkins.parquet (user, poi, utc_time) with "
        "pois.parquet (poi, lat, lon, name, fsq_category_2013, fsq_category_path), whose figures are stated here. "
        f"The place of a check-in is the geohash of its venue ({PLACE_CHARACTERS} characters). It is the answer, so "
        "the place of a request is that of the user's check-in before; where a venue lies is also a field of it (cell, "
        "lat, lon)."
    ),
    home="https://sites.google.com/site/yangdingqi/home/foursquare-dataset",
)

__all__ = ["SOURCE", "build"]
