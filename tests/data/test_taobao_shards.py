"""TAOBAO-MM's published format in both directions (muse.md sections 2, 3 and 7, property 7)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sostenuto.content.building import build_vectors
from sostenuto.content.given import given_vectors
from sostenuto.content.store import ContentStore
from sostenuto.data.preparation import prepare
from sostenuto.data.sources import open_source
from sostenuto.data.taobao_shards import _numbered, are_codes, published_codes, published_vectors, write_shards
from sostenuto.data.worlds import world_prepared
from sostenuto.schema.errors import DataError

COLUMNS = {
    "label_0": pl.List(pl.Int8),
    "129_1": pl.Int64,
    **dict.fromkeys(("130_1", "130_2", "130_3", "130_4", "130_5"), pl.Int64),
    **dict.fromkeys(("205", "206", "213", "214"), pl.Int64),
    "150_2_180": pl.List(pl.Int64),
    "151_2_180": pl.List(pl.Int64),
}
VECTORS = {"205": pl.Int64, "205_c": pl.List(pl.Int8)}


def unit_rows(rng, count, dim=128, clusters=0):
    rows = rng.normal(size=(count, dim))
    if clusters:
        rows = rng.normal(size=(clusters, dim))[rng.integers(0, clusters, count)] + 0.5 * rows
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("clusters", [0, 20])
def test_7_cosines_of_published_codes_are_near_those_of_the_vectors(clusters):
    rows = unit_rows(np.random.default_rng(0), 1_000, clusters=clusters)
    again = published_vectors(published_codes(rows))
    assert np.abs(rows[:50] @ rows.T - again[:50] @ again.T).max() < 0.03


def test_7_searches_over_published_codes_find_nearly_the_same():
    rows = unit_rows(np.random.default_rng(1), 1_050, clusters=20)
    again = published_vectors(published_codes(rows))
    shares = []
    for target in range(50):
        exact = np.argsort(-(rows[50:] @ rows[target]))[:50]
        coded = np.argsort(-(again[50:] @ again[target]))[:50]
        shares.append(len(np.intersect1d(exact, coded)) / 50)
    assert np.mean(shares) >= 0.95


def test_codes_are_those_of_the_release():
    vector = np.zeros((2, 128))
    vector[0, :2] = 0.6, -0.8
    codes = published_codes(vector)
    assert codes[0, :3].tolist() == [76, -101, 0]  # 76.2 and -101.6, cut towards 0
    assert not codes[1].any()
    assert not published_vectors(codes)[1].any()
    assert are_codes(codes)
    assert not are_codes(vector)


def joined(users: pl.DataFrame, samples: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Make a shard of separate tables that do not overlap: sample i is of user i and item i."""
    given = pl.DataFrame({"label_0": samples["label_0"]})
    return pl.concat([given, users, items], how="horizontal").select(*COLUMNS).cast(COLUMNS)


def frames(rng: np.random.Generator, users: int, base: int) -> pl.DataFrame:
    category = rng.integers(-(2**62), 2**62, 40)
    item = rng.integers(-(2**62), 2**62, 40)
    sequences = rng.integers(0, 40, (users, 12))
    padded = np.where(np.arange(12) < rng.integers(0, 9, users)[:, None], -1, sequences)
    at = rng.integers(0, 40, users)
    return pl.DataFrame(
        {
            "label_0": [[1 - i % 2, i % 2] for i in range(users)],
            "129_1": base + np.arange(users),
            **{name: rng.integers(1, 4, users) for name in ("130_1", "130_2", "130_3", "130_4", "130_5")},
            "205": item[at],
            "206": category[at],
            "213": at + 7,
            "214": at + 9,
            "150_2_180": np.where(padded < 0, 0, item[padded]).tolist(),
            "151_2_180": np.where(padded < 0, 0, category[padded]).tolist(),
        },
        schema=COLUMNS,
    )


def there_and_back(folder: Path, train: pl.DataFrame, test: pl.DataFrame, vectors: pl.DataFrame, **how: Any) -> Path:
    """Write published files, prepare them, build their content, and write them again."""
    (folder / "given").mkdir()
    train.write_parquet(folder / "given" / "train-shard-0.parquet")
    test.write_parquet(folder / "given" / "test-shard-0.parquet")
    vectors.write_parquet(folder / "given" / "scl_embedding_int8_p90.parquet")
    data = prepare(open_source("taobao-mm", folder / "cache", folder=folder / "given"), folder / "prepared")
    assert {field.name for field in data.features.item_fields} == {"213", "214"}  # codes come as content alone
    found, known, strangers = given_vectors(data, folder / "given" / "scl_embedding_int8_p90.parquet")
    assert not strangers
    build_vectors(data, "image_text", found, known, encoder="given", settings={}, dtype="int8")
    store = ContentStore(data.folder / "content" / "image_text")
    out = folder / "out"
    counts = write_shards(data, out, vectors=store.rows(slice(None)), known=store.known, **how)
    assert counts == {"train": train.height, "test": test.height, "vectors": vectors.height}
    return out


def check_equal(out: Path, train: pl.DataFrame, test: pl.DataFrame, vectors: pl.DataFrame) -> None:
    for split, given in (("train", train), ("test", test)):
        again = pl.concat([pl.read_parquet(path) for path in sorted(out.glob(f"{split}-shard-*.parquet"))])
        assert dict(again.schema) == COLUMNS
        assert again.equals(given)
    again = pl.read_parquet(out / "scl_embedding_int8_p90.parquet")
    assert dict(again.schema) == VECTORS
    assert again.sort("205").equals(vectors.sort("205"))


def test_what_was_read_is_written_again_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = frames(rng, 30, 1_000), frames(np.random.default_rng(0), 30, 2_000)
    items = pl.concat([train["205"], train["150_2_180"].explode()]).unique().sort()
    items = items.filter(items != 0)
    codes = pl.Series(rng.integers(-60, 61, (len(items), 128)).astype(np.int8)).cast(pl.List(pl.Int8))
    vectors = pl.DataFrame({"205": items, "205_c": codes})
    check_equal(there_and_back(tmp_path, train, test, vectors, length=12, pad=True), train, test, vectors)


def test_the_demo_is_written_again_bit_for_bit(tmp_path: Path) -> None:
    """Its separate tables share no user and no item, so they are joined row by row first: every value is published."""
    shared = os.environ.get("SOSTENUTO_DATA")
    if shared is None:
        pytest.skip("set SOSTENUTO_DATA to the folder that holds the data sets' folders")
    demo = Path(shared) / "taobao-mm-demo"
    if not demo.is_dir():
        pytest.skip(f"needs the demo files of TAOBAO-MM, {demo} is not there")
    items = pl.read_parquet(demo / "item_features.parquet")
    train, test = (
        joined(
            pl.read_parquet(demo / f"{split}_user_features.parquet"),
            pl.read_parquet(demo / f"{split}_samples.parquet"),
            items,
        )
        for split in ("train", "test")
    )
    vectors = pl.read_parquet(demo / "scl_embedding_int8_p90.parquet")
    met = pl.concat([frame.select("150_2_180", "151_2_180").explode(pl.all()) for frame in (train, test)])
    first = met.unique("150_2_180", keep="first", maintain_order=True)  # one item of 11,000 has two categories there
    assert met.unique().height - first.height == 1
    category = dict(first.iter_rows())
    train, test = (
        frame.with_columns(
            pl.col("150_2_180")
            .list.eval(pl.element().replace_strict(category, return_dtype=pl.Int64))
            .alias("151_2_180")
        )
        for frame in (train, test)
    )
    check_equal(there_and_back(tmp_path, train, test, vectors), train, test, vectors)


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["", "?", "7", "-3", "12"], [0, 0, 7, -3, 12]),
        (["", "?", "007", "012"], [0, 0, 7, 12]),
        (["", "?", "7", "07", "70"], [0, 0, 2, 3, 4]),  # one number, two items
        (["", "?", "7_0", "70"], [0, 0, 2, 3]),
        (["", "?", "0", "1"], [0, 0, 2, 3]),  # 0 pads
        (["", "?", "a", "1"], [0, 0, 2, 3]),
        (["", "?", str(2**70)], [0, 0, 2]),
    ],
)
def test_no_item_is_written_as_padding_or_as_another(words: list[str], numbers: list[int]) -> None:
    assert _numbered(words, zero_pads=True).tolist() == numbers


def test_other_data_are_written_too_and_read_back(tmp_path: Path) -> None:
    data = world_prepared("mixed_content", tmp_path / "world", events=2_000, requests=60, seed=1)
    store = ContentStore(data.folder / "content" / "text")
    counts = write_shards(data, tmp_path / "out", vectors=store.rows(slice(None)), known=store.known, pad=True)
    assert counts["train"] == 8 * 48
    shard = pl.read_parquet(tmp_path / "out" / "train-shard-00000.parquet")
    assert dict(shard.schema) == COLUMNS
    requests = data.requests("train")
    assert "0" in data.vocabulary("item")  # which would pad, so items are numbered by index
    for at in (0, 8 * 20):
        r = at // 8
        low = int(data.behaviours.offsets[requests.user[r]])
        past = [int(i) for i in data.behaviours.item[low : low + int(requests.prefix[r])]]
        sequence = shard["150_2_180"][at].to_list()
        assert len(sequence) == 1_000
        assert sequence[1_000 - len(past) :] == past
        assert not any(sequence[: 1_000 - len(past)])
    assert shard["label_0"].list.get(1).to_list() == requests.label[: 8 * len(requests)].astype(int).tolist()
    with pytest.raises(DataError, match="the folder must be empty"):
        write_shards(data, tmp_path / "out")
