"""A line per item that a person can read, whatever the item table holds."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from tests.features.small_prepared import NUM_ITEMS, write_small

from sostenuto.data.prepared import PreparedData
from sostenuto.data.vocabularies import write_vocabulary
from sostenuto.serving.labels import LONGEST, ItemLabels


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return write_small(tmp_path / "small")


def with_texts(data: PreparedData, **texts: dict[int, str]) -> ItemLabels:
    """Add text columns: item index -> text, null elsewhere."""
    columns = [
        pl.Series(name, [values.get(n) for n in range(NUM_ITEMS)], dtype=pl.String) for name, values in texts.items()
    ]
    data.items.with_columns(columns).write_parquet(data.folder / "items.parquet")
    return ItemLabels(PreparedData(data.folder))


def with_categories(data: PreparedData) -> PreparedData:
    write_vocabulary(data.folder, "department", pl.Series(["", "?", "food", "drinks", "garden"]))
    write_vocabulary(data.folder, "type", pl.Series(["", "?", *(f"type {n}" for n in range(2, 11))]))
    return data


def test_a_name_comes_first_and_short_texts_follow(data):
    label = with_texts(data, **{"text.package_size": {5: "6 OZ", 6: "1 L"}, "text.name": {5: "Shrimp"}})
    assert label(5) == "Shrimp, 6 OZ"
    assert label(6) == "1 L"


@pytest.mark.parametrize("column", ["name", "text.title", "text.product_name", "text.Item Title"])
def test_a_name_is_known_by_its_column(data, column):
    assert with_texts(data, **{"text.aisle": {5: "3"}, column: {5: "Shrimp"}})(5) == "Shrimp, 3"


def test_without_texts_the_categories_stand_from_coarse_to_fine(data):
    label = with_texts(with_categories(data), **{"text.name": {5: "", 6: "  "}})
    assert label(5) == "garden / type 7"  # departments are 2 + 5 % 3, types 2 + 5 % 9
    assert label(6) == "food / type 8"


def test_a_level_that_holds_those_above_it_stands_alone(data):
    with_categories(data)
    write_vocabulary(data.folder, "type", pl.Series(["", "?", *["garden > tools"] * 9]))
    assert ItemLabels(data)(5) == "garden > tools"


def test_missing_and_unknown_categories_are_left_out(data):
    with_categories(data)
    items = data.items.with_columns(
        pl.Series("category.department", [None] * NUM_ITEMS, dtype=pl.Int32),
        pl.Series("category.type", [0, 1, 1, 0, None] + [2] * (NUM_ITEMS - 5), dtype=pl.Int32),
    )
    items.write_parquet(data.folder / "items.parquet")
    label = ItemLabels(PreparedData(data.folder))
    assert [label(n) for n in range(2, 6)] == ["i2", "i3", "i4", "type 2"]


def test_the_raw_id_is_the_last_resort(data):
    label = ItemLabels(data)  # this folder has categories without their vocabularies
    assert label(7) == "i7"
    assert label(0) == label(1) == "unknown item"


def test_a_table_of_ids_alone_is_enough(data):
    data.items.select("item_id").write_parquet(data.folder / "items.parquet")
    assert ItemLabels(PreparedData(data.folder))(7) == "i7"


def test_a_label_is_one_short_printable_line(data):
    label = with_texts(data, **{"text.name": {5: "a\tb\r\nc\x1b[31m d", 6: "word " * 40}, "text.more": {6: "x"}})
    assert label(5) == "a b c [31m d"
    assert len(label(6)) <= LONGEST
    assert label(6).endswith("…")
