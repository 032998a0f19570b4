from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from tests.training.toy_prepared import write_toy

from sostenuto.data.prepared import PreparedData

NAMES = [
    "Bread",
    "  bread\n ",
    "Bread",
    "",
    None,
    "Crème brûlée 300 g",
    "漢字 ☃",
    "MOTOR OIL",
    "\t \x00",
    "whole wheat bread",
]


def write_shop(folder: Path) -> PreparedData:
    """Write a prepared folder whose items have texts: doubled, missing, empty, in several scripts."""
    data = write_toy(folder)
    shutil.rmtree(folder / "content")
    num = data.features.num_items
    names = [None, None] + [NAMES[k % len(NAMES)] for k in range(num - 2)]
    details = [None, None] + [f"number {k}" if k % 3 else None for k in range(num - 2)]
    data.items.with_columns(pl.Series("text.name", names), pl.Series("text.detail", details)).write_parquet(
        folder / "items.parquet"
    )
    kinds = ["", "?"] + [f"kind {k}" for k in range(2, data.features.categories[0].size)]
    pl.DataFrame({"id": kinds}).write_parquet(folder / "vocab" / "kind.parquet")
    return PreparedData(folder)


@pytest.fixture
def shop(tmp_path: Path) -> PreparedData:
    return write_shop(tmp_path / "shop")


@pytest.fixture
def of_other_data() -> Callable[[Path], None]:
    """Make a prepared folder look as if it were prepared again from another log."""

    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(manifest | {"arrays_hash": "0" * 64}), encoding="utf-8")

    return change
