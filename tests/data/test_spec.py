"""A spec says what it means or is refused with the nearest word."""

from __future__ import annotations

import datetime

import pytest

from sostenuto.data.spec import RESERVED, load_spec, make_spec
from sostenuto.features.clock import CLOCK_FIELDS
from sostenuto.features.popularity import POPULARITY_FIELDS
from sostenuto.schema.errors import MissingSource, SpecError

EVENTS = {"files": "log.csv", "user": "u", "item": "i", "time": {"column": "t", "unit": "s"}}


def refused(**tables) -> str:
    with pytest.raises(SpecError) as error:
        make_spec({"name": "x", **tables})
    return str(error.value)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"events": {**EVENTS, "uesr": "u"}}, ["uesr is not a known key", "Did you mean 'user'?"]),
        ({"events": {**EVENTS, "time": {"column": "t", "unti": "s"}}}, ["unti", "Did you mean 'unit'?"]),
        ({"events": {**EVENTS, "fields": {"a": {"knd": "numeric"}}}}, ["a.knd", "Did you mean 'kind'?"]),
        ({"evnets": EVENTS}, ["evnets is not a known key", "Did you mean 'events'?"]),
        ({"events": EVENTS, "items": {"files": "i.csv", "itme": "i"}}, ["itme", "Did you mean 'item'?"]),
        ({"events": EVENTS, "vocabulary": {"min_item_cuont": 3}}, ["Did you mean 'min_item_count'?"]),
        ({"events": {k: v for k, v in EVENTS.items() if k != "user"}}, ["user is required"]),
        ({"events": EVENTS, "time_zone": "Europe/Berln"}, ["Did you mean 'Europe/Berlin'?"]),
        ({"events": {**EVENTS, "time": {"column": "t", "unit": "hours"}}}, ["unit", "hours"]),
        ({"events": {**EVENTS, "time": {"column": "t", "format": "%Q"}}}, ["format", "%Q"]),
        ({"events": {**EVENTS, "time": {"column": "t", "format": "%Y", "unit": "s"}}}, ["unit or a format"]),
        ({"events": {**EVENTS, "fields": {"time_ms": "numeric"}}}, ["must be unique", "time_ms"]),
        ({"events": {**EVENTS, "fields": {"day_of_week": "categorical"}}}, ["must be unique", "day_of_week"]),
        ({"events": {**EVENTS, "separator": "||"}}, ["separator must be one ASCII character"]),
        ({}, ["[events] or [exposures]"]),
        ({"events": EVENTS, "protocol": {"valid_from": 0.5}}, ["protocol.name is required"]),
        ({"events": EVENTS, "protocol": "exposures"}, ["needs the table [exposures]"]),
        (
            {"exposures": {"files": "e", "user": "u", "time": "t", "candidates": "c"}},
            ["either `labels` or `clicked`"],
        ),
        (
            {"exposures": {"files": "e", "user": "u", "time": "t", "item": "i", "label": "l"}},
            ["must name `label` and `request`"],
        ),
    ],
)
def test_a_wrong_spec_is_refused_in_words_that_help(tables, words):
    text = refused(**tables)
    for word in words:
        assert word in text


def test_no_field_can_take_the_name_of_one_that_every_view_adds():
    assert {field.name for field in POPULARITY_FIELDS + CLOCK_FIELDS} <= RESERVED


def test_shorthands_mean_the_long_forms():
    short = make_spec(
        {"name": "x", "events": {**EVENTS, "time": "t", "fields": {"a": "numeric"}}, "protocol": "global-time"}
    )
    long = make_spec(
        {
            "name": "x",
            "events": [{**EVENTS, "time": {"column": "t"}, "files": ["log.csv"], "fields": {"a": {"kind": "numeric"}}}],
            "protocol": {"name": "global-time"},
        }
    )
    assert short == long


def test_toml_is_read_with_paths_from_its_own_folder(tmp_path):
    (tmp_path / "logs").mkdir()
    for name in ("b.csv", "a.csv"):
        (tmp_path / "logs" / name).write_text("u,i,t\n", encoding="utf-8")
    (tmp_path / "spec.toml").write_text(
        'name = "x"\nnot_after = 2024-05-01\n[events]\nfiles = ["logs/*.csv", "logs/a.csv"]\n'
        'user = "u"\nitem = "i"\ntime = { column = "t", unit = "ms" }\n'
        '[protocol]\nname = "global-time"\nvalid_from = 2024-01-01T00:00:00Z\n',
        encoding="utf-8",
    )
    spec = load_spec(tmp_path / "spec.toml")
    assert [path.name for path in spec.paths(spec.events[0])] == ["a.csv", "b.csv"]
    assert spec.not_after == datetime.date(2024, 5, 1)
    assert spec.protocol.settings == {"valid_from": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)}


def test_files_that_are_not_there_are_named(tmp_path):
    spec = make_spec({"name": "x", "folder": tmp_path, "events": EVENTS})
    with pytest.raises(MissingSource, match=r"log\.csv"):
        spec.paths(spec.events[0])
    with pytest.raises(MissingSource, match=r"nowhere\.toml"):
        load_spec(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("name = ", encoding="utf-8")
    with pytest.raises(SpecError, match=r"bad\.toml"):
        load_spec(tmp_path / "bad.toml")
