import polars as pl
import pytest

from sostenuto.content.texts import distinct_units, item_texts, text_columns
from sostenuto.schema.errors import DataError, SpecError


def test_columns_are_joined_and_missing_ones_left_out(shop):
    texts = item_texts(shop, ["name", "detail"])
    assert len(texts) == shop.features.num_items
    assert texts[:2] == [None, None]
    assert texts[2] == "Bread"
    assert texts[3] == "bread, number 1"
    assert texts[6] == "number 4"  # without a name
    assert texts[8] == "漢字 ☃"


def test_an_item_whose_columns_are_all_empty_has_no_text(shop):
    texts = item_texts(shop, ["name"])
    assert texts[5] is None  # ""
    assert texts[6] is None  # missing
    assert texts[10] is None  # white space and a control character


def test_categories_go_by_their_words(shop):
    texts = item_texts(shop, ["kind", "name"])
    kind = shop.items["category.kind"][2]
    assert texts[2] == f"kind {kind}, Bread"
    assert set(text_columns(shop)) == {"name", "detail", "kind"}


def test_a_level_that_repeats_the_one_above_stands_once(shop):
    items = shop.items.with_columns(pl.lit("Food").alias("text.a"), pl.lit("Food > Bread").alias("text.b"))
    items.write_parquet(shop.folder / "items.parquet")
    del shop.items
    assert item_texts(shop, ["a", "b"])[2] == "Food > Bread"


def test_an_unknown_column_is_refused_with_the_nearest(shop):
    with pytest.raises(SpecError, match="Did you mean 'name'"):
        item_texts(shop, ["nam"])
    with pytest.raises(SpecError, match="at least one column"):
        item_texts(shop, [])


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv"])
def test_texts_may_come_from_a_file(shop, tmp_path, suffix):
    path = tmp_path / f"texts{suffix}"
    table = pl.DataFrame({"item_id": ["i3", "i2", "nobody"], "plot": ["A, b", None, "x"]})
    if suffix == ".parquet":
        table.write_parquet(path)
    else:
        table.write_csv(path, separator="\t" if suffix == ".tsv" else ",")
    texts = item_texts(shop, ["plot"], path)
    assert texts[3] == "A, b"
    assert [row for row, text in enumerate(texts) if text] == [3]


def test_a_file_with_a_doubled_or_no_known_id_is_refused(shop, tmp_path):
    path = tmp_path / "texts.parquet"
    pl.DataFrame({"item_id": ["i3", "i3"], "plot": ["a", "b"]}).write_parquet(path)
    with pytest.raises(DataError, match="'i3' stands twice"):
        item_texts(shop, ["plot"], path)
    pl.DataFrame({"item_id": ["x", "y"], "plot": ["a", "b"]}).write_parquet(path)
    with pytest.raises(DataError, match="write the raw ids"):
        item_texts(shop, ["plot"], path)
    with pytest.raises(SpecError, match="has no 'title'"):
        item_texts(shop, ["title"], path)


def test_equal_texts_are_one_unit():
    units, place = distinct_units([None, "bb", "a", "bb", None])
    assert units == ["a", "bb"]
    assert place.tolist() == [-1, 1, 0, 1, -1]
