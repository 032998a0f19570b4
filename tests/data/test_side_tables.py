"""Item and user tables: every kind of column ends under the index of its id."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from sostenuto.data.preparation import prepare
from sostenuto.data.spec import make_spec
from sostenuto.schema.errors import DataError

START_S = 1_600_000_000


def write_log(folder, seed=0):
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user": [f"u{u}" for u in rng.integers(0, 20, 600)],
            "item": [f"i{int(i)}" for i in 30 * rng.random(600) ** 2],
            "time": START_S + rng.integers(0, 5_000_000, 600),
            "kind": rng.choice(["a", "b"], 600),
        }
    )
    frame.write_csv(folder / "log.csv")
    return frame


EVENTS = {"files": "log.csv", "user": "user", "item": "item", "time": {"column": "time", "unit": "s"}}

ITEMS = [
    {"id": f"i{n}", "dept": f"d{n % 3}", "type": f"t{n % 7}" if n % 5 else None, "brand": f"b{n % 4}", "weight": n / 3}
    | {"tags": "|".join(f"g{k}" for k in range(n % 4)), "title": f"thing, {n}", "vector": f"{n}|{-n}|0.5"}
    for n in range(0, 40)
]
ITEM_TABLE = {
    "item": "id",
    "categories": ["dept", "type"],
    "fields": {
        "brand": "categorical",
        "weight": "numeric",
        "tags": "multi",
        "title": "text",
        "shape": {"kind": "vector", "column": "vector"},
    },
}


def prepared(folder, **tables):
    spec = make_spec({"name": "tables", "folder": folder, "events": EVENTS, **tables})
    return prepare(spec, folder / "out", overwrite=True)


def write_items(folder, form):
    rows = ITEMS
    if form == "csv":
        pl.DataFrame(rows).write_csv(folder / "items.csv")
        return "items.csv"
    lists = [
        row | {"tags": [t for t in row["tags"].split("|") if t], "vector": [float(v) for v in row["vector"].split("|")]}
        for row in rows
    ]
    if form == "jsonl":
        (folder / "items.jsonl").write_text("\n".join(map(json.dumps, lists)), encoding="utf-8")
        return "items.jsonl"
    pl.DataFrame(lists).write_parquet(folder / "items.parquet")
    return "items.parquet"


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_every_kind_of_item_column_stands_at_its_index(tmp_path, form):
    log = write_log(tmp_path)
    data = prepared(tmp_path, items={"files": write_items(tmp_path, form), **ITEM_TABLE})
    items, known = data.vocabulary("item"), {row["id"]: row for row in ITEMS}
    assert set(items[2:]) == set(log["item"]) | set(known)
    assert data.items["item_id"].to_list() == items
    named = {name: data.vocabulary(name) for name in ("dept", "type", "brand", "tags")}
    category = data.item_category
    brand, weight = data.item_field("brand"), data.item_field("weight")
    tags, shape = data.item_field("tags"), data.item_field("shape")
    assert tags.shape == (len(items), 3)
    assert tags.dtype == np.int32
    assert shape.shape == (len(items), 3)
    assert shape.dtype == np.float32
    for at, item in enumerate(items[2:], 2):
        row = known[item]
        assert named["dept"][category[at, 0]] == row["dept"]
        assert (named["type"][category[at, 1]] if row["type"] else category[at, 1]) == (row["type"] or 0)
        assert named["brand"][brand[at]] == row["brand"]
        assert weight[at] == pytest.approx(row["weight"])
        assert [named["tags"][t] for t in tags[at] if t] == [t for t in row["tags"].split("|") if t]
        assert shape[at].tolist() == [float(v) for v in row["vector"].split("|")]
        assert data.items["text.title"][at] == row["title"]
    assert category[0].tolist() == [0, 0]
    assert category[1].tolist() == [1, 1]
    valid_ms = data.manifest.protocol.settings["valid_from_ms"]
    training = log.filter(pl.col("time") * 1_000 < valid_ms)["item"]
    weights = [known[item]["weight"] for item in training]
    field = next(f for f in data.features.item_fields if f.name == "weight")
    assert field.mean == pytest.approx(np.mean(weights), rel=1e-5)
    assert field.std == pytest.approx(np.std(weights), rel=1e-5)
    counts = {}
    for item in training:
        counts[known[item]["dept"]] = counts.get(known[item]["dept"], 0) + 1
    assert named["dept"][2:] == sorted(counts, key=lambda dept: (-counts[dept], dept))


def test_items_that_only_the_table_knows_come_last(tmp_path):
    log = write_log(tmp_path)
    data = prepared(tmp_path, items={"files": write_items(tmp_path, "csv"), **ITEM_TABLE})
    unseen = {row["id"] for row in ITEMS} - set(log["item"])
    assert unseen
    valid_ms = data.manifest.protocol.settings["valid_from_ms"]
    trained = set(log.filter(pl.col("time") * 1_000 < valid_ms)["item"])
    assert set(data.vocabulary("item")[2 : 2 + len(trained)]) == trained


def test_a_path_column_is_cut_into_levels_that_keep_their_parents(tmp_path):
    write_log(tmp_path)
    paths = ["a > other", "b > other", "a > x > deep", "b", None]
    pl.DataFrame({"id": [f"i{n}" for n in range(5)], "path": paths}).write_csv(tmp_path / "items.csv")
    items = {"files": "items.csv", "item": "id", "category_path": "path", "path_levels": ["top", "sub"]}
    data = prepared(tmp_path, items=items)
    top, sub = data.vocabulary("top"), data.vocabulary("sub")
    found = {}
    for at, item in enumerate(data.vocabulary("item")):
        found[item] = tuple(words[i] for words, i in zip((top, sub), data.item_category[at], strict=True))
    assert found["i0"] == ("a", "a > other")
    assert found["i1"] == ("b", "b > other")
    assert found["i2"] == ("a", "a > x")
    assert found["i3"] == ("b", "")
    assert found["i4"] == ("", "")


def test_categories_may_come_from_the_log_itself(tmp_path):
    log = write_log(tmp_path)
    data = prepared(tmp_path, events={**EVENTS, "item_categories": ["kind"]})
    kinds = data.vocabulary("kind")
    for at, item in enumerate(data.vocabulary("item")[2:], 2):
        counts = log.filter(pl.col("item") == item)["kind"].value_counts().rows()
        expected = sorted(counts, key=lambda pair: (-pair[1], pair[0]))[0][0]
        assert kinds[data.item_category[at, 0]] == expected


def test_user_fields_become_context_fields(tmp_path):
    write_log(tmp_path)
    pl.DataFrame(
        {"id": [f"u{n}" for n in range(15)], "age": [None, *range(1, 15)], "club": ["x", "y", None] * 5}
    ).write_csv(tmp_path / "users.csv")
    users = {"files": "users.csv", "user": "id", "fields": {"age": "numeric", "club": "categorical"}}
    data = prepared(tmp_path, users=users)
    assert [field.name for field in data.features.context_fields] == ["age", "club"]
    names, clubs = data.vocabulary("user"), data.vocabulary("club")
    age, club = data.user_field("age"), data.user_field("club")
    for at, user in enumerate(names[2:], 2):
        n = int(user[1:])
        if n >= 15:
            assert np.isnan(age[at])
            assert club[at] == 0
        else:
            assert (np.isnan(age[at]) and n == 0) or age[at] == n
            assert (clubs[club[at]] or None) == ["x", "y", None][n % 3]


def test_rows_without_or_with_a_second_id_are_rejected(tmp_path):
    write_log(tmp_path)
    (tmp_path / "items.csv").write_text("id,dept,x\ni1,a,1\n,b,2\ni1,c,3\ni2,d,oops\n", encoding="utf-8")
    data = prepared(
        tmp_path, items={"files": "items.csv", "item": "id", "categories": ["dept"], "fields": {"x": "numeric"}}
    )
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert rejects.select("row", "reason", "raw").rows() == [
        (3, "missing item", ",b,2"),
        (4, "id already seen", "i1,c,3"),
    ]
    counts = data.manifest.counts
    assert (counts["item_rows_read"], counts["item_rows_kept"], counts["bad_cells.x"]) == (4, 2, 1)


def test_lists_in_a_plain_column_are_refused(tmp_path):
    write_log(tmp_path)
    pl.DataFrame({"id": ["i1"], "tags": [["a", "b"]]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match="kind 'multi' or 'vector'"):
        prepared(tmp_path, items={"files": "items.parquet", "item": "id", "fields": {"tags": "categorical"}})


def test_vectors_of_another_width_are_zero_and_counted(tmp_path):
    write_log(tmp_path)
    pl.DataFrame({"id": ["i1", "i2", "i3"], "v": ["1;2", "1;2;3", "1;x"]}).write_csv(tmp_path / "items.csv")
    field = {"kind": "vector", "delimiter": ";", "width": 2}
    data = prepared(tmp_path, items={"files": "items.csv", "item": "id", "fields": {"v": field}})
    found = dict(zip(data.vocabulary("item"), data.item_field("v").tolist(), strict=True))
    assert found["i1"] == [1.0, 2.0]
    assert found["i2"] == found["i3"] == found["i0"] == [0.0, 0.0]
    assert data.manifest.counts["bad_cells.v"] == 2
