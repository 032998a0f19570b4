"""One padded row per sample, for the packages that want [N, L] matrices. Needs numpy only: it runs in a peer's venv."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from measuring import flat_set
from settings import Given

FASTEST = 400_000  # behaviours a second and thread that no padding package reaches: 8,000 samples/s at L = 50
ROWS_AT_ONCE = 512  # small, so that peak memory is the package's


def manifest_of(data: Path) -> dict[str, Any]:
    """Read what the data are: `length`, `item_rows`, `category_rows` and more."""
    found: dict[str, Any] = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    return found


def window_samples(given: Given) -> int:
    """Return how many training samples a measured window can use up; a faster machine sees some of them twice."""
    manifest = manifest_of(given.data)
    fastest = FASTEST * given.threads / manifest["length"]
    wanted = int(given.seconds * fastest) + (given.warmup + given.steps + 2) * given.batch
    return min(wanted, len(flat_set(given.data, "train", given.shape)["label"]))


def matrices(data: Path, split: str, shape: str, *, samples: int | None = None) -> dict[str, Any]:
    """Return the first `samples` samples: user, item, category, length, label (N,), hist_item, hist_category (N, L).

    All int32, but label int8; a history stands at the front of its row, oldest first, and zeros follow.
    """
    flat = {name: np.array(column[:samples]) for name, column in flat_set(data, split, shape).items()}
    history = np.load(data / "history_item.npy", mmap_mode="r")
    starts = np.load(data / "history_offsets.npy")[:-1]
    category = np.load(data / "item_category.npy")
    length = manifest_of(data)["length"]
    count = len(flat["label"])
    made = {name: np.zeros((count, length), np.int32) for name in ("hist_item", "hist_category")}
    place = np.arange(length)
    for at in range(0, count, ROWS_AT_ONCE):
        rows = slice(at, at + ROWS_AT_ONCE)
        # users have `length` behaviours stored each, so no index leaves the array
        drawn = history[starts[flat["user"][rows]][:, None] + place]
        drawn = np.where(place < flat["prefix"][rows][:, None], drawn, 0)
        made["hist_item"][rows] = drawn
        made["hist_category"][rows] = category[drawn]  # the category of item 0 is 0
    columns = {"user": flat["user"], "item": flat["item"], "length": flat["prefix"], "label": flat["label"]}
    return columns | {"category": category[flat["item"]]} | made


def candidate_rows(data: Path, shape: str, count: int) -> dict[str, Any]:
    """Return `count` candidates of the user with the longest history, that history whole, as rows of `matrices`.

    One row of a history is kept and seen `count` times; copying it is part of what is timed.
    """
    flat = flat_set(data, "test", shape)
    longest = int(np.argmax(flat["prefix"]))
    offsets = np.load(data / "history_offsets.npy")
    user = int(flat["user"][longest])
    history = np.load(data / "history_item.npy", mmap_mode="r")[offsets[user] : offsets[user + 1]]
    category = np.load(data / "item_category.npy")
    item = np.asarray(flat["item"][:count], np.int32)
    if len(item) < count:
        raise ValueError(f"candidates must be at most the {len(item)} test samples, got {count}; ask for fewer")
    seen: dict[str, Any] = {"user": np.int32(user), "length": np.int32(len(history)), "label": np.int8(0)}
    rows = {name: np.broadcast_to(value, (count,)) for name, value in seen.items()}
    rows |= {"item": item, "category": category[item]}
    wide = {"hist_item": np.asarray(history), "hist_category": category[history]}
    return rows | {name: np.broadcast_to(row, (count, len(row))) for name, row in wide.items()}


def size_of(made: dict[str, Any]) -> float:
    """Return the bytes of one sample."""
    return float(sum(column.nbytes for column in made.values()) / len(made["label"]))
