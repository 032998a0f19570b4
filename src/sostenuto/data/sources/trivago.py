"""trivago hotel sessions (RecSys Challenge 2019): click-outs with the list that was shown, and its prices."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from sostenuto.data.sources.locating import Source
from sostenuto.data.spec import DataSpec, make_spec

CLICK = "clickout item"
COLUMNS = {
    "user_id": pl.String,
    "session_id": pl.String,
    "timestamp": pl.Int64,
    "step": pl.Int64,
    "action_type": pl.String,
    "reference": pl.String,
    "platform": pl.String,
    "city": pl.String,
    "device": pl.String,
    "current_filters": pl.String,
    "impressions": pl.String,
    "prices": pl.String,
}


def _scan(folder: Path) -> pl.LazyFrame:
    if (folder / "sessions.parquet").is_file():
        return pl.scan_parquet(folder / "sessions.parquet")
    return pl.scan_csv(folder / "train.csv", schema=COLUMNS)


def build(folder: Path, cache: Path) -> DataSpec:
    """Cut the log in two: what users did with hotels, and what the click-outs' lists showed."""
    log = _scan(folder)
    log.filter(pl.col("reference").str.contains(r"^\d+$")).select(
        "user_id", "session_id", "timestamp", "action_type", "reference", "city", "platform", "device"
    ).collect(engine="streaming").write_parquet(cache / "actions.parquet")
    shown = pl.col("impressions").str.split("|")
    log.filter((pl.col("action_type") == CLICK) & pl.col("reference").is_not_null()).select(
        "user_id",
        "timestamp",
        "city",
        "platform",
        "device",
        "reference",
        shown.alias("impressions"),
        pl.col("prices").str.split("|").cast(pl.List(pl.Float32)).alias("price"),
        pl.int_ranges(1, shown.list.len() + 1, dtype=pl.Int32).alias("position"),
    ).collect(engine="streaming").write_parquet(cache / "clickouts.parquet")
    return make_spec(
        {
            "name": SOURCE.name,
            "folder": str(cache),
            "time_zone": "UTC",
            "terms": SOURCE.terms,
            "events": {
                "files": "actions.parquet",
                "user": "user_id",
                "item": "reference",
                "time": {"column": "timestamp", "unit": "s"},
                "action": "action_type",
                "place": "city",
                "session": "session_id",
            },
            "exposures": {
                "files": "clickouts.parquet",
                "user": "user_id",
                "time": {"column": "timestamp", "unit": "s"},
                "place": "city",
                "candidates": "impressions",
                "clicked": "reference",
                "candidate_fields": {"price": "numeric", "position": "numeric"},
                "context_fields": {"platform": "categorical", "device": "categorical"},
                "positives_are_events": False,
            },
            "protocol": SOURCE.protocol,
        },
        origin=SOURCE.name,
    )


SOURCE = Source(
    name="trivago-sessions",
    title="trivago hotel search sessions with the lists shown and their prices",
    terms="RecSys Challenge 2019 data of trivago, for research; no licence is stated: do not redistribute.",
    protocol="exposures",
    build=build,
    files=(("sessions.parquet",), ("train.csv",)),
    statistics={"actions": 100_003, "users": 6_593, "click_outs": 13_597, "impressions": 312_539},
    notes=(
        "Accepted: the challenge's train.csv, or the same columns as sessions.parquet (whose figures are stated here). "
        "Actions that refer to no hotel (filters, sort orders, searches for places) are left out of the events. A "
        "click-out is both an exposure and an event; at its own time it is not in the history. Position is the rank "
        "that trivago gave: a strong feature, and a biased one."
    ),
    home="https://recsys.trivago.cloud/challenge/dataset/",
)

__all__ = ["SOURCE", "build"]
