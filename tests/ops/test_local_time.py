"""Local time by a table of offset changes against the zone database itself, over changes of the clocks."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.ops.local_time import HOUR_MS, ZoneTable, day_of_week, hour_of_day, to_local_ms, zone_table

ZONES = [
    "UTC",
    "America/New_York",
    "Europe/Berlin",
    "Asia/Kathmandu",  # 5:45, 5:30 before 1986
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "Africa/Casablanca",  # back for the month of Ramadan
    "America/Sao_Paulo",  # gave daylight saving up
    "Pacific/Apia",  # skipped a day
]
START_MS, END_MS = 0, 4_000_000_000_000


def assert_as_on_the_wall(times: list[int], zone: str) -> None:
    local = to_local_ms(torch.tensor(times), zone_table(zone))
    walls = [dt.datetime.fromtimestamp(t // 1000, ZoneInfo(zone)) for t in times]
    assert hour_of_day(local).tolist() == [w.hour for w in walls]
    assert day_of_week(local).tolist() == [w.weekday() for w in walls]


@pytest.mark.parametrize("zone", ZONES)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(START_MS, END_MS), min_size=1, max_size=50))
def test_hour_and_weekday_are_those_of_the_zone_database(zone: str, times: list[int]) -> None:
    assert_as_on_the_wall(times, zone)


@pytest.mark.parametrize("zone", ZONES)
def test_every_change_of_the_clocks_is_hit_to_the_second(zone: str) -> None:
    starts = zone_table(zone).starts_ms[1:].tolist()
    assert_as_on_the_wall([s + d for s in starts for d in (-HOUR_MS, -1000, 0, 1000, HOUR_MS)] or [0], zone)


def test_new_york_changes_twice_a_year() -> None:
    """Sunday 13 March 2016, 2:00 became 3:00; Sunday 6 November 2016, 2:00 became 1:00."""
    zone = zone_table("America/New_York")
    spring, autumn = 1_457_852_400_000, 1_478_412_000_000
    hours = hour_of_day(to_local_ms(torch.tensor([spring - 1, spring, autumn - 1, autumn]), zone))
    assert hours.tolist() == [1, 3, 1, 1]


def test_before_the_table_its_first_offset_stands() -> None:
    zone = ZoneTable(torch.tensor([0, 100]), torch.tensor([7, 9]))
    assert to_local_ms(torch.tensor([-50, 0, 99, 100]), zone).tolist() == [-43, 7, 106, 109]


def test_times_before_1970_have_hours_and_weekdays_too() -> None:
    local = to_local_ms(torch.tensor([-1]), zone_table("UTC"))
    assert (hour_of_day(local).item(), day_of_week(local).item()) == (23, 2)  # Wednesday
