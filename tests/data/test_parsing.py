"""Times, numbers and ids: read as the spec says, or refused under their own name."""

from __future__ import annotations

import datetime
import math
import zoneinfo
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sostenuto.data import parsing
from sostenuto.data.parsing import as_number, as_time_ms, not_after_ms, parse_events
from sostenuto.data.reading import REJECT_SCHEMA, RawChunk
from sostenuto.data.spec import EventSource, TimeColumn
from sostenuto.schema.errors import SpecError

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def ms_of(moment: datetime.datetime) -> int:
    return (moment - EPOCH) // datetime.timedelta(milliseconds=1)


def read_times(values, **settings) -> list[int | None]:
    column = values if isinstance(values, pl.Series) else pl.Series(values, dtype=pl.String)
    return as_time_ms(column, TimeColumn(column="t", **settings), ("",))[0].to_list()


@pytest.mark.parametrize(
    ("unit", "text"),
    [("s", "1600000000"), ("ms", "1600000000123"), ("us", "1600000000123456"), ("ns", "1600000000123456789")],
)
def test_epoch_counts_are_read_exactly(unit, text):
    expected = 1_600_000_000_000 if unit == "s" else 1_600_000_000_123
    assert read_times([text, f" {text} ", "x", "", None], unit=unit) == [expected, expected, None, None, None]
    assert read_times(pl.Series([int(text)]), unit=unit) == [expected]


def test_fractions_of_seconds_are_kept_to_the_millisecond():
    assert read_times(["1600000000.5", "1600000000"], unit="s") == [1_600_000_000_500, 1_600_000_000_000]
    assert read_times(pl.Series([1_600_000_000.25, math.nan, math.inf]), unit="s") == [1_600_000_000_250, None, None]


zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"])
moments = st.datetimes(datetime.datetime(1975, 1, 1), datetime.datetime(2035, 1, 1)).map(
    lambda d: d.replace(microsecond=d.microsecond // 1_000 * 1_000)
)


@given(moments, zones)
@settings(max_examples=40)
def test_local_times_equal_those_of_the_standard_library(naive, zone):
    aware = naive.replace(tzinfo=zoneinfo.ZoneInfo(zone), fold=0)
    exists = aware.astimezone(datetime.UTC).astimezone(zoneinfo.ZoneInfo(zone)).replace(tzinfo=None) == naive
    expected = ms_of(aware.astimezone(datetime.UTC)) if exists else None
    assert read_times([naive.isoformat(sep=" ")], zone=zone) == [expected]
    assert read_times([naive.isoformat()], zone=zone, unit="iso") == [expected]
    assert read_times(pl.Series([naive]), zone=zone) == [expected]
    for form in ("%d/%m/%Y %H:%M:%S.%f", "%d/%m/%Y %H:%M:%S%.f"):
        assert read_times([naive.strftime("%d/%m/%Y %H:%M:%S.%f")], zone=zone, format=form) == [expected]


@given(moments, zones)
@settings(max_examples=40)
def test_times_with_an_offset_need_no_zone(naive, zone):
    aware = naive.replace(tzinfo=zoneinfo.ZoneInfo(zone)).astimezone(zoneinfo.ZoneInfo(zone))
    if (aware.utcoffset() or datetime.timedelta()) % datetime.timedelta(minutes=1):
        return
    assert read_times([aware.isoformat()], zone="Asia/Tokyo") == [ms_of(aware)]


def test_the_repeated_hour_means_its_first_and_the_skipped_hour_is_refused():
    berlin = {"zone": "Europe/Berlin"}
    assert read_times(["2023-10-29T02:30:00"], **berlin) == read_times(["2023-10-29T02:30:00+02:00"])
    values = pl.Series(["2023-03-26 02:30:00", "2023-03-26 03:30:00", "2023-03-26T02:30:00Z", "soon"])
    times, skipped = as_time_ms(values, TimeColumn(column="t", zone="Europe/Berlin"), ("",))
    assert skipped.to_list() == [True, False, False, False]
    assert [time is None for time in times.to_list()] == [True, False, False, True]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2020-02-29", "2020-02-29T00:00:00Z"),
        ("2020-02-29 05:06", "2020-02-29T05:06:00Z"),
        ("2020-02-29T05:06:07,25", "2020-02-29T05:06:07.250Z"),
        ("2020-02-29T05:06:07.123456789Z", "2020-02-29T05:06:07.123Z"),
        ("2020-02-29T05:06:07+0530", "2020-02-28T23:36:07Z"),
        ("2020-02-29T05:06:07-03", "2020-02-29T08:06:07Z"),
        ("2020-02-29 05:06:07 UTC", "2020-02-29T05:06:07Z"),
    ],
)
def test_common_spellings_of_iso_times(text, same):
    (found,) = read_times([text])
    assert found == ms_of(datetime.datetime.fromisoformat(same))


@pytest.mark.parametrize("text", ["2021-02-29", "2020-13-01", "2020-01-01T25:00", "1600000000", "yesterday", "2020-01"])
def test_what_is_no_time_is_null(text):
    assert read_times([text]) == [None]


def test_numbers_without_a_unit_are_refused():
    with pytest.raises(SpecError, match="must have a unit"):
        read_times(pl.Series([1, 2]))


def chunk_of(columns: dict) -> RawChunk:
    frame = pl.DataFrame(columns)
    return RawChunk(
        file=Path("log.csv"),
        rows=np.arange(2, len(frame) + 2),
        frame=frame,
        rejects=pl.DataFrame(schema=REJECT_SCHEMA),
        consumed=0,
        raw=lambda places: [",".join(map(str, frame.row(int(at)))) for at in places],
    )


def test_every_bad_row_is_named_and_a_bad_number_costs_its_cell_only():
    chunk = chunk_of(
        {
            "u": ["a", None, "c", "d", "e", "f", "g", "h", "NULL"],
            "i": ["x", "x", "", "x", "x", "x", "x", "x", "x"],
            "t": ["100", "100", "100", "", "soon", "999999", "100", "99999999999999999", "100"],
            "v": ["1.5", "1", "1", "1", "1", "1", "1,5", "1", "1"],
        }
    )
    source = EventSource(
        files="x", user="u", item="i", time={"column": "t", "unit": "s"}, value="v", missing=("", "NULL")
    )
    parsed = parse_events(chunk, source, last_ms=1_000_000)
    assert parsed.frame["row"].to_list() == [2, 8]
    assert parsed.frame["value"].to_list()[0] == 1.5
    assert math.isnan(parsed.frame["value"].to_list()[1])
    assert parsed.bad_numbers == {"value": 1}
    assert dict(zip(parsed.rejects["row"], parsed.rejects["reason"], strict=True)) == {
        3: parsing.MISSING_USER,
        4: parsing.MISSING_ITEM,
        5: parsing.MISSING_TIME,
        6: parsing.BAD_TIME,
        7: parsing.FUTURE_TIME,
        9: parsing.FUTURE_TIME,
        10: parsing.MISSING_USER,
    }
    assert parsed.rejects["raw"].to_list()[3] == "e,x,soon,1"


def test_numbers_are_read_and_counted_where_they_are_none():
    number, bad = as_number(pl.Series(["1", " 2.5 ", "-3e2", "nan", "", None, "inf", "x", "1,5"]), ("",))
    assert bad == 3
    assert [None if math.isnan(v) else v for v in number] == [1.0, 2.5, -300.0, None, None, None, None, None, None]


def test_not_after_is_a_moment_or_the_whole_day():
    assert not_after_ms(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), "UTC") == ms_of(
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    )
    day = not_after_ms(datetime.date(2020, 1, 1), "Europe/Berlin")
    assert day == ms_of(datetime.datetime(2020, 1, 1, 23, tzinfo=datetime.UTC)) - 1
    assert abs(not_after_ms(None, "UTC") - ms_of(datetime.datetime.now(datetime.UTC))) < 60_000
