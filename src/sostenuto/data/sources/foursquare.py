"""Foursquare check-ins of New York (TSMC 2014)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from sostenuto.data.sources.locating import Source
from sostenuto.data.spec import DataSpec, make_spec

ZONE = "America/New_York"
ORIGINAL = "dataset_TSMC2014_NYC.txt"
COLUMNS = ["user", "poi", "category_id", "category", "lat", "lon", "offset_minutes", "utc_time"]
CELL_DEGREES = 0.01  # about 1 km


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


def build(folder: Path, cache: Path) -> DataSpec:
    """Bring either layout into check-ins and venues."""
    (_published if (folder / ORIGINAL).is_file() else _tables)(folder, cache)
    return make_spec(
        {
            "name": SOURCE.name,
            "folder": str(cache),
            "time_zone": ZONE,
            "terms": SOURCE.terms,
            "events": {"files": "checkins.parquet", "user": "user", "item": "poi", "time": "time"},
            "items": {
                "files": "pois.parquet",
                "item": "poi",
                "categories": ["group", "kind"],
                "fields": {"cell": "categorical", "lat": "numeric", "lon": "numeric", "name": "text"},
            },
            "protocol": {"name": SOURCE.protocol, "popularity_days": 90},  # many venues see few visits a month
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
        "Events carry no place: the place of a check-in is the answer, so it is a field of the venue (cell, lat, lon)."
    ),
    home="https://sites.google.com/site/yangdingqi/home/foursquare-dataset",
)

__all__ = ["SOURCE", "build"]
