"""A generated log for load tests: users with 1,000, 10,000 and 100,000 behaviours, and many ordinary ones to train on.

    python benchmarks/serving_data.py OUT

writes OUT/log.parquet, OUT/items.parquet and OUT/log.toml, and prepares them into OUT/prepared. Which items a user
meets follows a few favourite kinds; nothing here is meant to be learnt well, only to have the sizes of the real thing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl

ITEMS, KINDS, BRANDS, PLACES = 50_000, 500, 2_000, 100
YEARS_S, START_S = 3 * 365 * 86_400, 1_600_000_000
# users by the length of their history, and their names begin with it
LENGTHS = {100: 4_000, 1_000: 100, 10_000: 100, 100_000: 4}
SPEC = """name = "load"
time_zone = "UTC"

[events]
files = ["log.parquet"]
user = "user"
item = "item"
time = { column = "time", unit = "s" }
action = "action"
value = "value"
place = "place"

[items]
files = "items.parquet"
item = "item"
categories = ["kind"]

[items.fields]
brand = "categorical"
price = "numeric"

[protocol]
name = "global-time"
valid_from = 0.8
test_from = 0.9
positive_actions = ["buy"]
"""


def write_log(folder: Path, seed: int = 0) -> None:
    """Write log, items and spec."""
    generator = np.random.default_rng(seed)
    kind = generator.integers(0, KINDS, ITEMS)
    by_kind = np.argsort(kind, kind="stable")
    starts = np.searchsorted(kind[by_kind], np.arange(KINDS + 1))
    parts = []
    for length, users in LENGTHS.items():
        for n in range(users):
            favourites = generator.integers(0, KINDS, 12)
            kinds = np.where(generator.random(length) < 0.7, generator.choice(favourites, length), -1)
            low = np.where(kinds < 0, 0, starts[kinds])
            size = np.where(kinds < 0, ITEMS, np.maximum(starts[kinds + 1] - starts[kinds], 1))
            place = (size * generator.random(length) ** 2).astype(np.int64)
            parts.append(
                pl.DataFrame(
                    {
                        "user": pl.repeat(f"u{length}-{n}", length, eager=True),
                        "item": by_kind[np.minimum(low + place, ITEMS - 1)],
                        "time": START_S + generator.integers(0, YEARS_S, length),
                        "action": generator.choice(["view", "cart", "buy"], length, p=[0.8, 0.12, 0.08]),
                        "value": generator.gamma(2.0, 5.0, length).astype(np.float32),
                        "place": generator.integers(0, PLACES, length),
                    }
                )
            )
    folder.mkdir(parents=True, exist_ok=True)
    pl.concat(parts).write_parquet(folder / "log.parquet")
    pl.DataFrame(
        {
            "item": np.arange(ITEMS),
            "kind": kind,
            "brand": generator.integers(0, BRANDS, ITEMS),
            "price": generator.gamma(2.0, 20.0, ITEMS).astype(np.float32),
        }
    ).write_parquet(folder / "items.parquet")
    (folder / "log.toml").write_text(SPEC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    if not (out / "log.toml").is_file():
        write_log(out)
    if not (out / "prepared" / "manifest.json").is_file():
        command = ["data", "prepare", str(out / "log.toml"), "--out", str(out / "prepared")]
        subprocess.run([sys.executable, "-m", "sostenuto", *command], check=True)


if __name__ == "__main__":
    main()
