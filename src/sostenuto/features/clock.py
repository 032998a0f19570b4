"""Local hour and weekday of a request."""

from __future__ import annotations

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from sostenuto.schema.features import FIRST_KNOWN, Field

FEW = 256  # moments that are converted one by one

CLOCK_FIELDS = (
    Field(name="hour_of_day", kind="categorical", size=FIRST_KNOWN + 24),
    Field(name="day_of_week", kind="categorical", size=FIRST_KNOWN + 7),
)


def local_clock(time_ms: npt.NDArray[Any], time_zone: str) -> dict[str, npt.NDArray[Any]]:
    """Return hour_of_day (2 + 0..23) and day_of_week (2 + 0..6, Monday first) of epoch milliseconds in a zone.

    >>> {k: int(v[0]) for k, v in local_clock(np.array([1483271606000]), "America/New_York").items()}
    {'hour_of_day': 8, 'day_of_week': 8}
    """
    if len(time_ms) <= FEW:  # polars takes a millisecond whatever it is given
        zone = ZoneInfo(time_zone)
        local = [dt.datetime.fromtimestamp(ms // 1000, zone) for ms in np.asarray(time_ms).tolist()]
        return {
            "hour_of_day": np.array([moment.hour + FIRST_KNOWN for moment in local], np.int64),
            "day_of_week": np.array([moment.weekday() + FIRST_KNOWN for moment in local], np.int64),
        }
    import polars as pl  # 20 MB that many a process never needs

    moments = pl.Series(np.asarray(time_ms, np.int64)).cast(pl.Datetime("ms", "UTC")).dt.convert_time_zone(time_zone)
    return {
        "hour_of_day": moments.dt.hour().to_numpy().astype(np.int64) + FIRST_KNOWN,
        "day_of_week": moments.dt.weekday().to_numpy().astype(np.int64) - 1 + FIRST_KNOWN,
    }


__all__ = ["CLOCK_FIELDS", "local_clock"]
