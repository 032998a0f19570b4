"""Rows that cannot be used: written as they are found, counted by reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl

from sostenuto.data.reading import REJECT_SCHEMA


class Rejects:
    """Collects rejected rows in pieces on disk, so that a log of nothing but bad rows fits too."""

    def __init__(self, folder: Path | None) -> None:
        """Collect into pieces below `folder`; None counts only."""
        self.folder = folder
        self.reasons: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        self._pieces = 0

    @property
    def total(self) -> int:
        """Rows rejected so far."""
        return self.reasons.total()

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows of REJECT_SCHEMA."""
        if not len(rows):
            return
        for column, counter in (("reason", self.reasons), ("file", self.files)):
            for name, count in rows[column].value_counts().iter_rows():
                counter[name] += count
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            rows.write_parquet(self.folder / f"{self._pieces:06d}.parquet")
            self._pieces += 1

    def write(self, path: Path) -> None:
        """Write all of them as one Parquet file: file, row, reason, raw; an empty table where there are none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.folder is None or not self._pieces:
            pl.DataFrame(schema=REJECT_SCHEMA).write_parquet(path)
        else:
            pl.scan_parquet(sorted(self.folder.glob("*.parquet"))).sink_parquet(path)


__all__ = ["Rejects"]
