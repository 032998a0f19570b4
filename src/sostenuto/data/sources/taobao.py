"""TAOBAO-MM: lifelong sequences with int8 image-text vectors, in the format that MUSE published."""

from __future__ import annotations

import datetime
from pathlib import Path

import polars as pl

from sostenuto.data.sources.locating import Source
from sostenuto.data.spec import DataSpec, make_spec

USER, ITEM, LABEL = "129_1", "205", "label_0"
USER_FIELDS = ("130_1", "130_2", "130_3", "130_4", "130_5")
ITEM_FIELDS = ("206", "213", "214")
ITEM_SEQUENCE, CATEGORY_SEQUENCE = "150_2_180", "151_2_180"
VECTOR = "205_c"
VECTOR_FILE = "scl_embedding_int8_p90.parquet"
BASE_MS = {"train": 1_735_689_600_000, "test": 1_738_368_000_000}  # 2025-01-01 and 2025-02-01: order only
STEP_MS = 60_000  # between two behaviours of a sequence
TRAIN_SHARE = 0.9  # of the training samples; the rest validates
UTC = pl.Datetime("ms", "UTC")


def _parts(folder: Path, split: str) -> list[Path]:
    """Return the files of a split: joined shards, or the table of users."""
    shards = sorted(folder.glob(f"{split}-shard-*.parquet"))
    return shards or [folder / f"{split}_user_features.parquet"]


def _events(users: pl.DataFrame, split: str) -> pl.DataFrame:
    """Lay each sequence, oldest first, on the minutes before the split begins."""
    length = pl.col(ITEM_SEQUENCE).list.len().cast(pl.Int64)
    return (
        users.select(
            pl.format(split + ":{}", USER).alias("user"), ITEM_SEQUENCE, CATEGORY_SEQUENCE, length.alias("length")
        )
        .with_columns(pos=pl.int_ranges(0, pl.col("length")))
        .explode(ITEM_SEQUENCE, CATEGORY_SEQUENCE, "pos")
        .filter(pl.col(ITEM_SEQUENCE).fill_null(0) != 0)  # 0 pads
        .select(
            "user",
            pl.col(ITEM_SEQUENCE).alias("item"),
            pl.col(CATEGORY_SEQUENCE).alias("category"),
            (pl.lit(BASE_MS[split], pl.Int64) - (pl.col("length") - pl.col("pos")) * STEP_MS).cast(UTC).alias("time"),
        )
    )


def _samples(table: pl.DataFrame, split: str, first: int) -> pl.DataFrame:
    """One row per sample: a request with one candidate; a second apart, in the order of the files."""
    at = pl.int_range(pl.len(), dtype=pl.Int64) + first
    return table.select(
        pl.format(split + ":{}", at).alias("request"),
        pl.format(split + ":{}", USER).alias("user"),
        (pl.lit(BASE_MS[split], pl.Int64) + at * 1000).cast(UTC).alias("time"),
        pl.col(ITEM).alias("item"),
        pl.col(LABEL).list.get(1).cast(pl.Int8).alias("label"),  # label_0 = [no click, click]
    )


def _convert(folder: Path, cache: Path) -> dict[str, int]:
    """Write events, exposures, users and items, one published file at a time; return the samples of each split."""
    counts = {}
    targets = []
    known: list[pl.DataFrame] = []
    for split in ("train", "test"):
        seen = pl.Series(USER, [], dtype=pl.Int64)
        count = 0
        for number, path in enumerate(_parts(folder, split)):
            table = pl.read_parquet(path)
            joined = LABEL in table.columns
            samples = table if joined else pl.read_parquet(folder / f"{split}_samples.parquet")
            # joined shards repeat a user's sequence with every sample: the first one counts
            users = table.unique(USER, keep="first", maintain_order=True)
            users = users.filter(~pl.col(USER).is_in(seen.implode()))
            seen = pl.concat([seen, users[USER]])
            events = _events(users, split)
            events.drop("category").write_parquet(cache / f"events-{split}-{number:05d}.parquet")
            known.append(events.select("item", "category").unique("item", keep="first", maintain_order=True))
            _samples(samples, split, count).write_parquet(cache / f"exposures-{split}-{number:05d}.parquet")
            count += samples.height
            counts[split] = count
            users.select(pl.format(split + ":{}", USER).alias("user"), *USER_FIELDS).write_parquet(
                cache / f"users-{split}-{number:05d}.parquet"
            )
            if joined:
                targets.append(table.select(ITEM, *ITEM_FIELDS).unique(ITEM, keep="first", maintain_order=True))
    if (folder / "item_features.parquet").is_file():
        targets.append(pl.read_parquet(folder / "item_features.parquet").select(ITEM, *ITEM_FIELDS))
    target = pl.concat(targets).unique(ITEM, keep="first", maintain_order=True).rename({ITEM: "item"})
    met = pl.concat(known).unique("item", keep="first", maintain_order=True)
    items = met.join(target, on="item", how="full", coalesce=True, maintain_order="left_right")
    items = items.with_columns(pl.coalesce("category", "206").alias("category")).drop("206")
    if (folder / VECTOR_FILE).is_file():  # their ids alone: codes are content, no column of the item
        coded = pl.read_parquet(folder / VECTOR_FILE, columns=[ITEM]).rename({ITEM: "item"})
        items = items.join(coded, on="item", how="full", coalesce=True, maintain_order="left_right")
    items.write_parquet(cache / "items.parquet")
    return counts


def build(folder: Path, cache: Path) -> DataSpec:
    """Unfold the sequences into events and the samples into exposures of one candidate each."""
    valid_ms = BASE_MS["train"] + int(_convert(folder, cache)["train"] * TRAIN_SHARE) * 1000
    fields = dict.fromkeys(ITEM_FIELDS[1:], "categorical")
    return make_spec(
        {
            "name": SOURCE.name,
            "folder": str(cache),
            "time_zone": "UTC",
            "terms": SOURCE.terms,
            "events": {"files": "events-*.parquet", "user": "user", "item": "item", "time": "time"},
            "exposures": {
                "files": "exposures-*.parquet",
                "user": "user",
                "time": "time",
                "request": "request",
                "item": "item",
                "label": "label",
                "positives_are_events": False,
            },
            "items": {"files": "items.parquet", "item": "item", "categories": ["category"], "fields": fields},
            "users": {"files": "users-*.parquet", "user": "user", "fields": dict.fromkeys(USER_FIELDS, "categorical")},
            "protocol": {
                "name": SOURCE.protocol,
                "min_candidates": 1,
                "valid_from": datetime.datetime.fromtimestamp(valid_ms / 1000, datetime.UTC),
                "test_from": datetime.datetime.fromtimestamp(BASE_MS["test"] / 1000, datetime.UTC),
            },
        },
        origin=SOURCE.name,
    )


SOURCE = Source(
    name="taobao-mm",
    title="TAOBAO-MM: 1,000 behaviours a user with image-text vectors of items",
    terms="Demo files: Apache-2.0 (repository of MUSE); the full set has its own terms on its page.",
    protocol="exposures",
    build=build,
    files=(
        ("train-shard-*.parquet", "test-shard-*.parquet"),
        (
            *("train_samples.parquet", "test_samples.parquet"),
            *("train_user_features.parquet", "test_user_features.parquet", "item_features.parquet"),
        ),
    ),
    statistics={"events": 19_351, "users": 20, "requests": 20},
    notes=(
        "Accepted: joined shards as the published reader takes them, or the demo's separate tables (whose figures are "
        "stated here; its samples, users and items do not overlap, so it shows the format and nothing else). Order "
        "only: behaviours stand one minute apart before the split's first request, requests one second apart; train "
        "and test histories of a user are two users. A request has one candidate: read GAUC by user. The label is the "
        "second number of label_0 (inferred: [1, 0] without a click). Item vectors are content: hand their file to "
        "`sostenuto content build --vectors`."
    ),
    home="https://taobao-mm.github.io/",
)

__all__ = ["SOURCE", "build"]
