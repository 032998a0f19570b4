"""The page docs/your-own-data.md: its specs are read, its example logs go through, its table of reasons is whole."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import polars as pl
import pytest

from sostenuto.data import parsing, reading, side_tables
from sostenuto.data.preparation import prepare
from sostenuto.data.protocols.exposures import ExposuresSettings
from sostenuto.data.protocols.popularity_sampling import SamplingSettings
from sostenuto.data.spec import Files, load_spec, make_spec
from sostenuto.data.validation import validate

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your-own-data.md").read_text(encoding="utf-8")
SPECS = dict(re.findall(r"^```toml\n# ([\w-]+\.toml)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = ROOT / "examples" / "your_own_data"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    loaded = importlib.util.spec_from_file_location("make_logs", EXAMPLES / "make_logs.py")
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("my-data")
    module.main(folder)
    return folder


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_spec_of_the_page_is_read(name):
    make_spec(tomllib.loads(SPECS[name]))


def test_the_page_shows_the_specs_of_the_example():
    assert len(SPECS) == 5
    for name in ("shop.toml", "impressions.toml"):
        assert SPECS[name] == (EXAMPLES / name).read_text(encoding="utf-8")


def test_every_bad_row_of_the_shop_is_named_and_the_rest_is_prepared(logs):
    spec = load_spec(logs / "shop.toml")
    report = validate(spec, out=logs / "report")
    rejects = pl.read_parquet(logs / "report" / "rejects.parquet")
    assert sorted(rejects["reason"]) == [
        parsing.FUTURE_TIME,
        reading.BAD_UTF8,
        reading.STRAY_QUOTE,
        parsing.MISSING_ITEM,
        parsing.MISSING_USER,
        parsing.SKIPPED_TIME,
        parsing.BAD_TIME,
        reading.WRONG_FIELDS,
    ]
    assert report.bad_numbers == {"value": 1}
    assert report.read == report.kept + 8
    data = prepare(spec, logs / "shop-prepared")
    assert data.manifest.counts["events"] == report.events
    assert all(len(data.requests(split)) > 300 for split in ("train", "valid", "test"))
    assert [level.name for level in data.features.categories] == ["department", "type"]


def test_the_impressions_are_prepared_as_they_were_shown(logs):
    spec = load_spec(logs / "impressions.toml")
    report = validate(spec)
    assert not report.findings
    data = prepare(spec, logs / "impressions-prepared")
    assert data.manifest.protocol.name == "exposures"
    assert sum(len(data.requests(split)) for split in ("train", "valid", "test")) == 4_000


def test_every_reason_is_on_the_page():
    names = {
        value
        for module in (parsing, reading, side_tables)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and value and name not in {"BAD_NUMBER", "ISO"}
    }
    assert {name for name in names if name not in PAGE} == set()


def test_every_setting_is_on_the_page():
    named = set(re.findall(r"`([a-z_]+)", PAGE))
    assert set(SamplingSettings.model_fields) | set(ExposuresSettings.model_fields) <= named
    assert set(Files.model_fields) - {"files"} <= named
