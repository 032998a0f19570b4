"""What encoders and codecs cost and lose on real item texts.

    python benchmarks/content.py data/cj --text department,product_category,name,package_size --out results
    python benchmarks/content.py data/mi --reviews musical_instruments_reviews.parquet --text review --out results

Encodes a seeded sample of the different texts with both text encoders, then stores it with both codecs: texts a second
of processor time, largest and mean cosine error against float32, and how many of the ten nearest texts stay the same.

`--reviews` makes item texts of reviews first, and leaves them beside the results for `sostenuto content build --texts`:
of every item the newest reviews that training may use (those of behaviours before their user's first validation or
test request), so that no held-out word gets in. A training request may still ask about an item whose text holds the
asker's own review: such texts say what an item is, not who will buy it, but they are no proof of that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sostenuto.content.codecs import DTYPES, decoded, encoded
from sostenuto.content.minilm import MiniLM
from sostenuto.content.static import StaticVectors
from sostenuto.content.texts import distinct_units, item_texts
from sostenuto.data.content_folder import cosine_errors
from sostenuto.data.prepared import PreparedData
from sostenuto.features.cooccurrence import training_events

ENCODERS = {"minilm": MiniLM, "static": StaticVectors}
NEAREST = 10
NEWEST = 5  # reviews an item
WORDS = 60  # of a review


def review_texts(data: PreparedData, reviews: Path) -> pl.DataFrame:
    """Return item_id and review: the newest lawful reviews of each item, one after another."""
    at = np.flatnonzero(training_events(data))
    user = np.searchsorted(data.behaviours.offsets, at, side="right") - 1
    users, items = np.array(data.vocabulary("user")), np.array(data.vocabulary("item"))
    lawful = pl.DataFrame(
        {
            "user": users[user],
            "item_id": items[np.asarray(data.behaviours.item)[at]],
            "time_ms": np.asarray(data.behaviours.time_ms)[at],
        }
    )
    written = pl.read_parquet(reviews).select(
        user="reviewerID",
        item_id="asin",
        time_ms=pl.col("time").dt.epoch("ms"),
        review=pl.concat_str("summary", "reviewText", separator=". ", ignore_nulls=True),
    )
    joined = lawful.join(written, on=["user", "item_id", "time_ms"], how="inner").sort("time_ms", descending=True)
    short = pl.col("review").str.split(" ").list.head(WORDS).list.join(" ")
    return (
        joined.with_columns(short)
        .group_by("item_id", maintain_order=True)
        .agg(pl.col("review").head(NEWEST).str.join(" "), pl.len().alias("reviews"))
    )


def overlap(exact: Any, stored: Any, asked: Any) -> float:
    """Return the share of the nearest texts of some rows that both sets of vectors name."""

    def nearest(vectors: Any) -> Any:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosine = unit[asked] @ unit.T
        cosine[np.arange(len(asked)), asked] = -2
        return np.argpartition(-cosine, NEAREST, axis=1)[:, :NEAREST]

    pairs = zip(nearest(exact), nearest(stored), strict=True)
    return float(np.mean([len(set(a) & set(b)) / NEAREST for a, b in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--reviews", type=Path)
    parser.add_argument("--sample", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    data = PreparedData(given.data)
    file = None
    if given.reviews is not None:
        file = given.out / f"{data.manifest.name}-reviews.parquet"
        review_texts(data, given.reviews).write_parquet(file)
    texts, _ = distinct_units(item_texts(data, given.text.split(","), file))
    rng = np.random.default_rng(given.seed)
    chosen = [texts[row] for row in rng.permutation(len(texts))[: given.sample]]
    asked = rng.permutation(len(chosen))[:200]
    told: dict[str, Any] = {
        "data": data.manifest.name,
        "different_texts": len(texts),
        "sample": len(chosen),
        "characters": float(np.mean([len(text) for text in chosen])),
        "processor": platform.processor() or platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "encoders": {},
    }
    for name, make in ENCODERS.items():
        encoder = make()
        encoder.encode(chosen[:16])
        start = time.process_time()
        vectors = encoder.encode(chosen).vectors
        row: dict[str, Any] = {"texts_a_cpu_second": round(len(chosen) / (time.process_time() - start), 1)}
        for dtype in DTYPES:
            stored, scale = encoded(vectors, dtype)
            again = decoded(stored, scale)
            error = cosine_errors(vectors, again)
            row[dtype] = {
                "bytes_a_row": stored.itemsize * stored.shape[1] + (0 if scale is None else 4),
                "cosine_error_mean": float(error.mean()),
                "cosine_error_max": float(error.max()),
                f"nearest_{NEAREST}_kept": overlap(vectors, again, asked),
            }
        told["encoders"][name] = row
        print(name, json.dumps(row))
    path = given.out / f"content-{data.manifest.name}.json"
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
