"""MovieLens 100k, as the recbole wheel ships it."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from sostenuto.data.sources.locating import Source
from sostenuto.data.spec import DataSpec, make_spec


def build(folder: Path, cache: Path) -> DataSpec:
    """Take the first genre as the category and keep all genres as a multi-valued field."""
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
    return make_spec(
        {
            "name": SOURCE.name,
            "folder": str(folder),
            "time_zone": "UTC",
            "terms": SOURCE.terms,
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
            "protocol": SOURCE.protocol,
        },
        origin=SOURCE.name,
    )


SOURCE = Source(
    name="movielens-100k",
    title="MovieLens 100k: 100,000 movie ratings of 943 people",
    terms="GroupLens: research use; no redistribution or commercial use without permission. Cite Harper and Konstan.",
    protocol="global-time",
    build=build,
    files=(("ml-100k.inter", "ml-100k.item", "ml-100k.user"),),
    statistics={"events": 100_000, "users": 943, "items": 1_682},
    notes=(
        "Every rating is an event: the rating is its action (1 to 5, a category) and its value. What is predicted is "
        "which movie is rated next, not how. The category is the first genre. Most people rated everything within an "
        "hour, often several movies in one second."
    ),
    package="recbole==1.2.1",
    module="recbole",
    inner="dataset_example/ml-100k",
)

__all__ = ["SOURCE", "build"]
