"""Last.fm tag events of HetRec 2011."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from sostenuto.data.sources.locating import Source
from sostenuto.data.spec import DataSpec, make_spec

ORIGINAL = "user_taggedartists-timestamps.dat"
FOUNDED = pl.date(2002, 1, 1)  # no tag can be older than the service


def _events(folder: Path) -> pl.DataFrame:
    if (folder / ORIGINAL).is_file():
        raw = pl.read_csv(folder / ORIGINAL, separator="\t", quote_char=None)
        return raw.with_columns(date=pl.col("timestamp").cast(pl.Datetime("ms")))
    return pl.read_parquet(folder / "tag_events.parquet")


def _names(folder: Path) -> pl.DataFrame:
    if (folder / "artists.dat").is_file():
        return pl.read_csv(
            folder / "artists.dat", separator="\t", quote_char=None, infer_schema=False, encoding="utf8-lossy"
        ).select(pl.col("id").cast(pl.Int64), "name")
    return pl.read_parquet(folder / "artists.parquet").select("id", "name")


def build(folder: Path, cache: Path) -> DataSpec:
    """Blank the impossible dates, so that the reader rejects and names those rows."""
    events = _events(folder)
    events.select(
        "userID",
        "artistID",
        pl.col("tagID").cast(pl.String),
        pl.when(pl.col("date") >= FOUNDED).then(pl.col("date")).alias("date"),
    ).write_parquet(cache / "tag_events.parquet")
    _names(folder).write_parquet(cache / "artists.parquet")
    return make_spec(
        {
            "name": SOURCE.name,
            "folder": str(cache),
            "time_zone": "UTC",
            "terms": SOURCE.terms,
            "events": {
                "files": "tag_events.parquet",
                "user": "userID",
                "item": "artistID",
                "time": "date",
                "fields": {"tag": {"kind": "categorical", "column": "tagID"}},
            },
            "items": {"files": "artists.parquet", "item": "id", "fields": {"name": "text"}},
            # dates are mostly firsts of a month: four weeks hold too little
            "protocol": {"name": SOURCE.protocol, "popularity_days": 365},
        },
        origin=SOURCE.name,
    )


SOURCE = Source(
    name="lastfm-hetrec",
    title="Last.fm tag events, HetRec 2011",
    terms="Released with Last.fm's permission for non-commercial use; cite HetRec 2011.",
    protocol="global-time",
    build=build,
    files=((ORIGINAL, "artists.dat"), ("tag_events.parquet", "artists.parquet")),
    statistics={"events": 186_474, "rejected": 5, "users": 1_892, "items": 12_523},
    notes=(
        f"Accepted: {ORIGINAL} with artists.dat as published, or tag_events.parquet (userID, artistID, tagID, date) "
        "with artists.parquet (id, name). Dates before 2002, five rows, cannot be and are rejected. Dates are "
        "days, 98 % of them the first of a month: a user's tags of one date are one moment, and negatives are drawn by "
        "popularity of the year before."
    ),
    home="https://grouplens.org/datasets/hetrec-2011/",
)

__all__ = ["SOURCE", "build"]
