import numpy as np
import polars as pl
import pytest

from sostenuto.content.given import given_vectors
from sostenuto.schema.errors import DataError, SpecError


def write_lists(path, ids, matrix):
    pl.DataFrame({"item_id": ids, "vector": [list(row) for row in matrix]}).write_parquet(path)


@pytest.mark.parametrize("form", ["list", "columns", "csv", "npy"])
def test_vectors_reach_their_items_in_every_form(shop, tmp_path, form):
    ids, matrix = ["i7", "stranger", "i2"], np.arange(12, dtype=np.float32).reshape(3, 4)
    path, names = tmp_path / "v.parquet", None
    if form == "list":
        write_lists(path, ids, matrix)
    elif form == "npy":
        path, names = tmp_path / "v.npy", tmp_path / "ids.txt"
        np.save(path, matrix)
        names.write_text("\n".join(ids) + "\n", encoding="utf-8")
    else:
        table = pl.DataFrame({"item_id": ids, **{f"x{k}": matrix[:, k] for k in range(4)}})
        if form == "csv":
            path = tmp_path / "v.csv"
            table.write_csv(path)
        else:
            table.write_parquet(path)
    vectors, known, strange = given_vectors(shop, path, names)
    assert np.flatnonzero(known).tolist() == [2, 7]
    np.testing.assert_array_equal(vectors[7], matrix[0])
    np.testing.assert_array_equal(vectors[2], matrix[2])
    assert vectors.shape == (60, 4)
    assert strange == 1


def test_ids_that_no_item_has_are_refused(shop, tmp_path):
    write_lists(tmp_path / "v.parquet", ["a", "b"], np.ones((2, 3)))
    with pytest.raises(DataError, match="ids must be those of the log"):
        given_vectors(shop, tmp_path / "v.parquet")


def test_numbers_that_are_not_finite_are_refused_by_item(shop, tmp_path):
    write_lists(tmp_path / "v.parquet", ["i3", "i4"], [[1.0, 2.0], [np.nan, 1.0]])
    with pytest.raises(DataError, match="item 'i4'"):
        given_vectors(shop, tmp_path / "v.parquet")


def test_a_doubled_id_is_refused(shop, tmp_path):
    write_lists(tmp_path / "v.parquet", ["i3", "i3"], np.ones((2, 3)))
    with pytest.raises(DataError, match="stands twice"):
        given_vectors(shop, tmp_path / "v.parquet")


def test_vectors_of_several_widths_are_refused(shop, tmp_path):
    write_lists(tmp_path / "v.parquet", ["i3", "i4"], [[1.0, 2.0], [1.0]])
    with pytest.raises(DataError, match="one width"):
        given_vectors(shop, tmp_path / "v.parquet")


@pytest.mark.parametrize("matrix", [np.ones(4), np.ones((2, 2, 2)), np.array([["a"], ["b"]])])
def test_an_array_of_a_wrong_shape_or_type_is_refused(shop, tmp_path, matrix):
    np.save(tmp_path / "v.npy", matrix)
    (tmp_path / "ids").write_text("i2\ni3\n")
    with pytest.raises(DataError, match="numbers of shape"):
        given_vectors(shop, tmp_path / "v.npy", tmp_path / "ids")


def test_as_many_ids_as_rows_are_wanted(shop, tmp_path):
    np.save(tmp_path / "v.npy", np.ones((3, 2)))
    (tmp_path / "ids").write_text("i2\ni3\n")
    with pytest.raises(DataError, match=r"2 lines and .* 3 rows"):
        given_vectors(shop, tmp_path / "v.npy", tmp_path / "ids")
    with pytest.raises(SpecError, match="--ids FILE"):
        given_vectors(shop, tmp_path / "v.npy")


def test_a_table_of_words_is_refused(shop, tmp_path):
    pl.DataFrame({"item_id": ["i2"], "x": ["word"]}).write_parquet(tmp_path / "v.parquet")
    with pytest.raises(DataError, match="must be numbers"):
        given_vectors(shop, tmp_path / "v.parquet")
    pl.DataFrame({"item_id": ["i2"]}).write_parquet(tmp_path / "v.parquet")
    with pytest.raises(DataError, match="1 to 8,192"):
        given_vectors(shop, tmp_path / "v.parquet")
