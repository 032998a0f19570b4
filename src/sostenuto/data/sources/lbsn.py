"""Check-ins of two cities by hour of the week (LBSN2Vec, WWW 2019): no coordinates, no calendar."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import polars as pl

from sostenuto.data.sources.locating import Source
from sostenuto.data.spec import DataSpec, make_spec

TERMS = (
    "No licence is stated; the authors ask to be cited (D. Yang et al., WWW 2019). Research use: do not redistribute."
)
FIRST_MONDAY = datetime.datetime(2012, 4, 2, tzinfo=datetime.UTC)  # the collection began in April 2012
WEEK_HOURS = 168
SPELT = {"kuala-lumpur": "kualalampur", "sao-paulo": "saopaulo"}  # as the published files spell them
EVENTS = {"kuala-lumpur": 526_405, "sao-paulo": 249_839}
USERS = {"kuala-lumpur": 6_378, "sao-paulo": 3_842}
ITEMS = {"kuala-lumpur": 10_817, "sao-paulo": 6_286}


def weekly_clock(checkins: pl.DataFrame) -> pl.DataFrame:
    """Make times of week and hour: the local clock on the wall, written down as if it were universal time.

    Check-ins of one hour stay in the log's order, a millisecond apart, so that only those of one row are one moment.

    Args:
        checkins: seq (order of the log), week_estimate (0, 1, ...), hour_of_week (1..168, 1 is Monday 0:00 to 0:59).
    Returns:
        the same rows with `time`.
    """
    hours = pl.col("week_estimate").cast(pl.Int64) * WEEK_HOURS + pl.col("hour_of_week").cast(pl.Int64) - 1
    inside = pl.col("seq").rank("ordinal").over("week_estimate", "hour_of_week").cast(pl.Int64) - 1
    begin = int(FIRST_MONDAY.timestamp()) * 1000
    return checkins.with_columns(time=(begin + hours * 3_600_000 + inside).cast(pl.Datetime("ms", "UTC")))


def _build(city: str) -> Callable[[Path, Path], DataSpec]:
    def build(folder: Path, cache: Path) -> DataSpec:
        """Put hours of the week on one pseudo calendar."""
        checkins = weekly_clock(pl.read_parquet(folder / _file(city)))
        checkins.select("user", "venue", "time").write_parquet(cache / "checkins.parquet")
        checkins.unique("venue", keep="first", maintain_order=True).select(
            "venue", kind=pl.col("category").cast(pl.String)
        ).write_parquet(cache / "venues.parquet")
        return make_spec(
            {
                "name": f"lbsn-{city}",
                "folder": str(cache),
                "time_zone": "UTC",  # times are local already
                "terms": TERMS,
                "events": {"files": "checkins.parquet", "user": "user", "item": "venue", "time": "time"},
                "items": {"files": "venues.parquet", "item": "venue", "categories": ["kind"]},
                "protocol": {"name": "global-time", "popularity_days": 90},
            },
            origin=f"lbsn-{city}",
        )

    return build


def _file(city: str) -> str:
    return f"{SPELT[city]}_checkins.parquet"


def _source(city: str, title: str) -> Source:
    return Source(
        name=f"lbsn-{city}",
        title=f"Foursquare check-ins, {title}, by hour of the week",
        terms=TERMS,
        protocol="global-time",
        build=_build(city),
        files=((_file(city),),),
        statistics={"events": EVENTS[city], "users": USERS[city], "items": ITEMS[city]},
        notes=(
            f"Accepted: {_file(city)} (user, seq, hour_of_week, week_estimate, venue, category), made of the published "
            "dataset_connected file. The log has an order and a local hour of the week, no date: weeks are counted "
            "where the hour falls back in the log's order and whole weeks without a check-in would be missed; the "
            "calendar is invented (week 0 begins on 2012-04-02), so hours and weekdays are real, dates, seasons and "
            "clock changes are not. That hour 1 is Monday 0:00 is inferred: hours 121 to 168 have the late mornings "
            "of a weekend. There are no coordinates, so behaviours have no place. Friendships are not read."
        ),
        home="https://github.com/eXascaleInfolab/LBSN2Vec",
    )


SOURCES = (_source("kuala-lumpur", "Kuala Lumpur"), _source("sao-paulo", "São Paulo"))

__all__ = ["SOURCES", "weekly_clock"]
