"""A world as files somebody could have, with its truth beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from sostenuto.data.prepared import Array
from sostenuto.data.worlds.drawing import world_log
from sostenuto.data.worlds.log import WorldLog
from sostenuto.data.worlds.table import BUY, CANDIDATES, NEWEST, VIEW, WORLDS


def make_world(
    name: str,
    out: str | Path,
    *,
    events: int = 100_000,
    users: int | None = None,
    items: int | None = None,
    requests: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a world as a log somebody could have: events, exposures, items, `spec.toml`; and its truth.

    `truth.parquet` has the true logit of every row of exposures.parquet, `truth.json` the oracle's AUC. A world
    that has content vectors writes them to `<name>.parquet`, for `sostenuto content build --vectors`.

    Args:
        name:     one of `WORLDS`.
        out:      folder to write into; made when absent.
        events:   behaviours, 1e3 to 1e7.
        users:    see `world_log`; so are items and requests.
        items:    number of items.
        requests: number of exposed lists.
        seed:     the same seed gives the same files.
    Returns:
        The path of spec.toml.
    """
    log = world_log(name, events=events, users=users, items=items, requests=requests, seed=seed)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = pl.Datetime("ms", "UTC")
    actions = pl.Series([VIEW, BUY], dtype=pl.Categorical)
    pl.DataFrame(
        {
            "user": log.event_user,
            "item": log.event_item,
            "time": pl.Series(log.event_time_ms).cast(stamp),
            "action": actions.gather(log.event_action.astype(np.uint32)),
            "value": log.event_value,
            "place": log.event_place,
        }
    ).write_parquet(folder / "events.parquet", compression="lz4")
    pl.DataFrame(
        {
            "item": np.arange(len(log.item_kind), dtype=np.int32),
            "group": _words("group", log.item_group),
            "kind": _words("kind", log.item_kind),
            "name": pl.select(
                pl.format("kind {} item {}", pl.Series(log.item_kind), pl.Series(np.arange(len(log.item_kind))))
            ).to_series(),
            "vector": pl.Series(log.item_vector).arr.to_list(),
        }
    ).write_parquet(folder / "items.parquet")
    request = np.repeat(np.arange(len(log.request_user), dtype=np.int32), CANDIDATES)
    pl.DataFrame(
        {
            "request": request,
            "user": log.request_user[request],
            "time": pl.Series(log.request_time_ms[request]).cast(stamp),
            "place": log.request_place[request],
            "item": log.candidate_item.ravel(),
            "position": np.tile(np.arange(1, CANDIDATES + 1, dtype=np.int8), len(log.request_user)),
            "label": log.label.ravel().astype(np.int8),
        }
    ).write_parquet(folder / "exposures.parquet", compression="lz4")
    pl.DataFrame({"request": request, "item": log.candidate_item.ravel(), "logit": log.logit.ravel()}).write_parquet(
        folder / "truth.parquet", compression="lz4"
    )
    for content, vectors in log.item_content.items():
        pl.DataFrame({"item_id": np.arange(len(vectors), dtype=np.int32), "vector": vectors}).write_parquet(
            folder / f"{content}.parquet"
        )
    truth = truth_of(log)
    (folder / "truth.json").write_text(json.dumps(truth, indent=2) + "\n", encoding="utf-8")
    path = folder / "spec.toml"
    path.write_text(_SPEC.format(name=name.replace("_", "-"), title=WORLDS[name].title), encoding="utf-8")
    return path


def _words(stem: str, index: Array) -> pl.Series:
    return pl.select(pl.format(stem + " {}", pl.Series(index))).to_series()


def truth_of(log: WorldLog) -> dict[str, object]:
    """Return what is known of a drawn world, as JSON values."""
    return {
        "world": log.name,
        "title": WORLDS[log.name].title,
        "seen_by": WORLDS[log.name].seen_by,
        "seed": log.seed,
        "oracle_auc": log.oracle_auc,
        "events": len(log.event_user),
        "users": log.num_users,
        "items": len(log.item_kind),
        "requests": len(log.request_user),
        "newest_without_signal": NEWEST if log.name == "long_range" else 0,
    }


_SPEC = """\
# {title}
name = "{name}"
time_zone = "UTC"
terms = "synthetic, no terms"

[events]
files = "events.parquet"
user = "user"
item = "item"
time = "time"
action = "action"
value = "value"
place = "place"

[exposures]
files = "exposures.parquet"
user = "user"
time = "time"
place = "place"
request = "request"
item = "item"
label = "label"

[items]
files = "items.parquet"
item = "item"
categories = ["group", "kind"]

[items.fields]
name = "text"
vector = {{ kind = "vector", width = 8 }}

[protocol]
name = "exposures"
"""


__all__ = ["make_world", "truth_of"]
