"""Local hours and weekdays of epoch milliseconds, on any device: a zone is a short table of its offset changes.

Behaviours are many and stand in a ranker as epoch milliseconds. A table of some 200 rows per zone turns them into local
time with one binary search each, so nothing beside the zone's name has to travel with the data.
"""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import torch
from torch import Tensor

SECOND_MS = 1000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
HOURS, WEEKDAYS = 24, 7
FIRST_WEEKDAY = 3  # 1970-01-01 was a Thursday, Monday counts 0
FIRST_S, LAST_S = 0, 4_102_444_800  # 1970 to 2100
STEP_S = 7 * 86_400  # no zone changes its offset and back within a week


class ZoneTable(NamedTuple):
    """The offsets of a time zone between 1970 and 2100; the first one also stands for what lies before."""

    starts_ms: Tensor  # (Z,) int64 epoch ms from which an offset holds, rising
    offsets_ms: Tensor  # (Z,) int64 local minus universal time


@lru_cache
def _changes(time_zone: str) -> tuple[tuple[int, int], ...]:
    """Return (epoch second, offset in seconds) of every change, found by steps of a week and halving."""
    zone = ZoneInfo(time_zone)

    def offset(second: int) -> int:
        moment = dt.datetime.fromtimestamp(second, dt.UTC).astimezone(zone).utcoffset()
        return 0 if moment is None else int(moment.total_seconds())

    found = [(FIRST_S, offset(FIRST_S))]
    for low in range(FIRST_S, LAST_S, STEP_S):
        before, after, high = found[-1][1], offset(low + STEP_S), low + STEP_S
        while before != after and high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == before else (low, middle)
        if before != after:
            found.append((high, after))
    return tuple(found)


def zone_table(time_zone: str) -> ZoneTable:
    """Return the offset changes of an IANA zone, daylight saving included, by the machine's zone database.

    >>> zone_table("UTC").offsets_ms
    tensor([0])
    """
    starts, offsets = zip(*_changes(time_zone), strict=True)
    return ZoneTable(torch.tensor(starts) * SECOND_MS, torch.tensor(offsets) * SECOND_MS)


def to_local_ms(time_ms: Tensor, zone: ZoneTable) -> Tensor:
    """Return (N,) int64 local milliseconds: what a calendar and a clock on the wall show, counted from 1970-01-01.

    In the hour that clocks repeat, two moments have one local time.
    """
    place = torch.bucketize(time_ms, zone.starts_ms, right=True) - 1
    return time_ms + zone.offsets_ms[place.clamp(min=0)]


def hour_of_day(local_ms: Tensor) -> Tensor:
    """Return (N,) int64 in 0..23."""
    return (local_ms // HOUR_MS) % HOURS


def day_of_week(local_ms: Tensor) -> Tensor:
    """Return (N,) int64 in 0..6, Monday first."""
    return (local_ms // DAY_MS + FIRST_WEEKDAY) % WEEKDAYS


__all__ = [
    "DAY_MS",
    "HOURS",
    "HOUR_MS",
    "WEEKDAYS",
    "ZoneTable",
    "day_of_week",
    "hour_of_day",
    "to_local_ms",
    "zone_table",
]
