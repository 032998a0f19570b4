"""A prepared folder written array by array, with a taste to learn: users buy from two favourite categories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from tests.content.invented import content_arrays, last_layer_arrays

from sostenuto.data.content_folder import write_content
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
from sostenuto.schema.features import ContentField, FeatureSpec, Field

HOUR_MS = 3_600_000
START_MS = 1_500_000_000_000


def write_toy(
    folder: Path,
    *,
    seed: int = 0,
    users: int = 40,
    events: int = 30,
    num_items: int = 60,
    num_categories: int = 6,
    train_requests: int = 120,
    valid_requests: int = 40,
    candidates: int = 6,
) -> PreparedData:
    """Write behaviours and requests; `events` per user on average, the last third of time holds no behaviours."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    category = np.concatenate(([0, 1], 2 + rng.integers(0, num_categories, num_items - 2)))
    lengths = np.concatenate(([0, 0], rng.integers(max(events // 2, 1), events * 3 // 2 + 1, users)))
    total = int(lengths.sum())
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    user = np.repeat(np.arange(users + 2), lengths)
    favourite = 2 + rng.integers(0, num_categories, (users + 2, 2))
    by_category = [np.flatnonzero(category == c) for c in range(num_categories + 2)]

    def items_of(owner: np.ndarray, loyal: np.ndarray) -> np.ndarray:
        """Draw items: from a favourite category where `loyal`, else from all."""
        drawn = rng.integers(2, num_items, len(owner))
        for n in np.flatnonzero(loyal):
            pool = by_category[favourite[owner[n], rng.integers(2)]]
            drawn[n] = rng.choice(pool) if len(pool) else drawn[n]
        return drawn

    item = items_of(user, rng.random(total) < 0.8)
    time_ms = START_MS + np.sort(rng.integers(0, 24 * 60, total)) * HOUR_MS
    time_ms = np.concatenate([np.sort(rng.choice(time_ms, n)) for n in lengths]) if total else time_ms
    write_behaviours(
        folder,
        Behaviours(
            offsets=offsets,
            item=item.astype(np.int32),
            time_ms=time_ms.astype(np.int64),
            action=np.zeros(total, np.int16),
            value=rng.lognormal(size=total).astype(np.float32),
            place=rng.integers(1, 4, total).astype(np.int32),
        ),
    )
    for split, count in (("train", train_requests), ("valid", valid_requests), ("test", valid_requests)):
        owner = rng.integers(2, users + 2, count)
        first = {"train": 20, "valid": 60, "test": 70}[split] * 24
        moment = START_MS + rng.integers(first, first + 9 * 24, count) * HOUR_MS
        prefix = [int((time_ms[offsets[u] : offsets[u + 1]] < t).sum()) for u, t in zip(owner, moment, strict=True)]
        label = np.tile(np.arange(candidates) < max(candidates // 3, 1), count)
        write_requests(
            folder,
            split,
            Requests(
                user=owner.astype(np.int32),
                time_ms=moment.astype(np.int64),
                prefix=np.array(prefix, np.int32),
                place=rng.integers(1, 4, count).astype(np.int32),
                offsets=np.arange(0, count * candidates + 1, candidates, dtype=np.int64),
                item=items_of(np.repeat(owner, candidates), label).astype(np.int32),
                label=label.astype(np.float32),
                list_id=np.tile(np.arange(candidates) % 2, count).astype(np.uint8),
            ),
        )
    names = ["", "?"] + [f"i{k}" for k in range(2, num_items)]
    (folder / "vocab").mkdir(exist_ok=True)
    pl.DataFrame({"id": names}).write_parquet(folder / "vocab" / "item.parquet")
    pl.DataFrame(
        {"item_id": names, "category.kind": category.tolist()}, schema_overrides={"category.kind": pl.Int32}
    ).write_parquet(folder / "items.parquet")
    write_manifest(
        folder,
        Manifest(
            format_version=FORMAT_VERSION,
            name="toy",
            source={},
            time_zone="UTC",
            seed=seed,
            counts={"events": total},
            features=FeatureSpec(
                num_items=num_items,
                num_item_rows=num_items - 5,
                categories=(Field(name="kind", kind="categorical", size=num_categories + 2),),
                num_places=4,
                has_value=True,
            ),
            protocol=Protocol(name="random", version=1, seed=seed, lists=("even", "odd")),
            arrays_hash=arrays_hash(folder),
        ),
    )
    text = ContentField(name="text", vector_dim=6, num_tokens=4, num_token_ids=11, token_dim=6, has_states=True)
    arrays = content_arrays(text, num_items, seed)
    layer = last_layer_arrays(text.token_dim, np.random.default_rng(seed))
    write_content(folder, "text", **arrays, encoder="invented", last_layer=layer, heads=2)
    return PreparedData(folder)
