"""A tiny random prepared folder, written array by array, for tests of the features room."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import polars as pl

from sostenuto.data.prepared import (
    FORMAT_VERSION,
    Behaviours,
    Manifest,
    PreparedData,
    Protocol,
    Requests,
    arrays_hash,
    write_behaviours,
    write_manifest,
    write_requests,
)
from sostenuto.schema.features import FeatureSpec, Field

DAY_MS = 86_400_000
NUM_ITEMS = 40


def write_small(folder: Path, *, seed: int = 0, users: int = 12) -> PreparedData:
    """Write random behaviours with ties, and requests at random moments with 6 candidates each."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.concatenate(([0, 0, 0, 1], rng.integers(2, 60, users)))
    total = int(lengths.sum())
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    time_ms = rng.integers(0, 40, total) * DAY_MS + 1_500_000_000_000
    for a, b in itertools.pairwise(offsets):
        time_ms[a:b].sort()
    item = rng.integers(2, NUM_ITEMS, total).astype(np.int32)
    behaviours = Behaviours(
        offsets=offsets,
        item=item,
        time_ms=time_ms,
        action=rng.integers(0, 3, total).astype(np.int16),
        value=rng.lognormal(size=total).astype(np.float32),
        place=rng.integers(0, 4, total).astype(np.int32),
        fields={"quantity": rng.normal(size=total).astype(np.float32)},
    )
    write_behaviours(folder, behaviours)
    for split in ("train", "valid", "test"):
        user = rng.integers(1, len(lengths), 15).astype(np.int32)
        moment = rng.integers(0, 45, 15) * DAY_MS + 1_500_000_000_000
        prefix = [int((time_ms[offsets[u] : offsets[u + 1]] < t).sum()) for u, t in zip(user, moment, strict=True)]
        requests = Requests(
            user=user,
            time_ms=moment.astype(np.int64),
            prefix=np.array(prefix, np.int32),
            place=rng.integers(0, 4, 15).astype(np.int32),
            context={"week": np.arange(15)},
            offsets=np.arange(0, 15 * 6 + 1, 6, dtype=np.int64),
            item=rng.integers(1, NUM_ITEMS, 90).astype(np.int32),
            label=(rng.random(90) < 0.3).astype(np.float32),
            list_id=np.tile(np.repeat([0, 1], 3), 15).astype(np.uint8),
            candidate={"display": rng.integers(0, 4, 90)},
        )
        write_requests(folder, split, requests)
    (folder / "vocab").mkdir(exist_ok=True)
    pl.DataFrame({"id": ["", "?"] + [f"i{k}" for k in range(2, NUM_ITEMS)]}).write_parquet(
        folder / "vocab" / "item.parquet"
    )
    pl.DataFrame(
        {
            "item_id": ["", "?"] + [f"i{k}" for k in range(2, NUM_ITEMS)],
            "category.department": [0, 1] + [2 + k % 3 for k in range(2, NUM_ITEMS)],
            "category.type": [0, 1] + [2 + k % 9 for k in range(2, NUM_ITEMS)],
            "field.brand": [0, 1] + [2 + k % 4 for k in range(2, NUM_ITEMS)],
        },
        schema_overrides={"category.department": pl.Int32, "category.type": pl.Int32, "field.brand": pl.Int32},
    ).write_parquet(folder / "items.parquet")
    features = FeatureSpec(
        num_items=NUM_ITEMS,
        num_item_rows=30,
        categories=(
            Field(name="department", kind="categorical", size=5),
            Field(name="type", kind="categorical", size=11),
        ),
        num_actions=3,
        num_places=4,
        item_fields=(Field(name="brand", kind="categorical", size=6),),
        behaviour_fields=(Field(name="quantity", kind="numeric"),),
        candidate_fields=(Field(name="display", kind="categorical", size=4),),
        has_value=True,
    )
    write_manifest(
        folder,
        Manifest(
            format_version=FORMAT_VERSION,
            name="small",
            source={},
            time_zone="America/New_York",
            seed=seed,
            counts={"events": total},
            features=features,
            protocol=Protocol(name="random", version=1, seed=seed, lists=("a", "b")),
            arrays_hash=arrays_hash(folder),
        ),
    )
    return PreparedData(folder)
