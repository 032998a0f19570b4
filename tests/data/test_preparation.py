"""The fast preparation against dictionaries and sorted(); the same result however the log is cut."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.slow_preparation import expected_histories, expected_order, read_histories

from sostenuto.data import preparation
from sostenuto.data.preparation import prepare
from sostenuto.data.prepared import arrays_hash
from sostenuto.data.reading import BLOCK_BYTES
from sostenuto.data.spec import DataSpec, make_spec
from sostenuto.schema.errors import DataError

START_S = 1_600_000_000
COLUMNS = ("user", "item", "time", "action", "value", "place")

ids = st.one_of(st.integers(0, 30).map(str), st.sampled_from(["007", "ä b", "x,y", 'say "hi"', "-1", "1e3", "Z" * 40]))
events = st.lists(
    st.fixed_dictionaries(
        {
            "user": ids,
            "item": ids,
            "time": st.integers(START_S, START_S + 12),
            "action": st.sampled_from(["view", "buy", None]),
            "value": st.sampled_from([1.5, 2.25, 0.0, None]),
            "place": st.sampled_from(["p", "q", None]),
        }
    ),
    min_size=1,
    max_size=40,
)


def csv_text(rows: list[dict]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def spec_of(folder: Path, files: list[str] | str, *, protocol: dict | None = None, **events_table) -> DataSpec:
    named = {name: name for name in COLUMNS if name != "time"}
    table = {"files": files, "time": {"column": "time", "unit": "s"}, **named, **events_table}
    protocol = {"name": "global-time", "valid_from": 0.5, "test_from": 0.999} if protocol is None else protocol
    return make_spec({"name": "small", "folder": folder, "events": table, "protocol": protocol})


def as_events(rows: list[dict]) -> list[dict]:
    return [row | {"time_ms": row["time"] * 1_000} for row in rows]


def split_is_possible(rows: list[dict]) -> bool:
    times = sorted(row["time"] for row in rows)
    return times[-1] != times[int(np.ceil(0.5 * (len(times) - 1)))]


@given(events, st.integers(0, 3))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_prepared_histories_equal_those_of_plain_dictionaries(tmp_path, rows, seed):
    if not split_is_possible(rows):
        return
    (tmp_path / "log.csv").write_text(csv_text(rows), encoding="utf-8")
    data = prepare(spec_of(tmp_path, "log.csv"), tmp_path / "out", seed=seed, overwrite=True)
    valid_ms = data.manifest.protocol.settings["valid_from_ms"]

    def is_training(event):
        return event["time_ms"] < valid_ms

    logged = as_events(rows)
    known = {name: {text for text, n in expected_order(logged, name, is_training) if n} for name in ("action", "place")}
    for event in logged:  # actions and places that training never saw are unknown
        for name, texts in known.items():
            if event[name] is not None and event[name] not in texts:
                event[name] = "?"
    assert read_histories(data) == expected_histories(logged)
    order = expected_order(as_events(rows), "item", is_training)
    assert data.vocabulary("item") == ["", "?", *(item for item, _ in order)]
    assert data.features.num_item_rows == 2 + sum(count >= 5 for _, count in order)
    actions = [text for text, count in expected_order(as_events(rows), "action", is_training) if count]
    assert data.vocabulary("action") == ["", "?", *actions]
    values = [np.log1p(row["value"]) for row in as_events(rows) if row["value"] is not None and is_training(row)]
    assert data.features.value_mean == pytest.approx(np.mean(values) if values else 0.0)
    assert data.manifest.counts["events"] == len(rows)


def random_rows(count: int, seed: int = 0) -> list[dict]:
    generator = np.random.default_rng(seed)
    return [
        {
            "user": f"u{generator.integers(20)}",
            "item": str(int(generator.integers(60))),
            "time": START_S + int(generator.integers(0, 300)) * 3_600,
            "action": str(generator.choice(["view", "buy"])),
            "value": round(float(generator.gamma(2, 3)), 2),
            "place": str(generator.choice(["north", "south"])),
        }
        for _ in range(count)
    ]


def write_parts(folder: Path, rows: list[dict], parts: int) -> list[str]:
    names = []
    for part in range(parts):
        names.append(f"part{part}.csv")
        (folder / names[-1]).write_text(csv_text(rows[part::parts]), encoding="utf-8")
    return names


def test_same_log_gives_the_same_arrays_however_it_is_cut(tmp_path, monkeypatch):
    rows = random_rows(600)
    hashes = set()
    for parts in (1, 3):
        names = write_parts(tmp_path, rows, parts)
        for files in (names, names[::-1]):
            for block_bytes, sort_copies in ((BLOCK_BYTES, 6), (997, 6), (1 << 16, 10_000)):
                monkeypatch.setattr(preparation, "BLOCK_BYTES", block_bytes)
                monkeypatch.setattr(preparation, "SORT_COPIES", sort_copies)  # tiny ranges of users
                data = prepare(spec_of(tmp_path, files), tmp_path / "out", seed=3, memory_mb=64, overwrite=True)
                hashes.add(data.manifest.arrays_hash)
    assert len(hashes) == 1
    assert arrays_hash(tmp_path / "out") == hashes.pop()


def test_shuffled_rows_give_the_same_arrays_and_another_seed_others(tmp_path):
    rows = random_rows(400)
    (tmp_path / "a.csv").write_text(csv_text(rows), encoding="utf-8")
    shuffled = [rows[at] for at in np.random.default_rng(1).permutation(len(rows))]
    (tmp_path / "b.csv").write_text(csv_text(shuffled), encoding="utf-8")
    a = prepare(spec_of(tmp_path, "a.csv"), tmp_path / "out_a", seed=0)
    b = prepare(spec_of(tmp_path, "b.csv"), tmp_path / "out_b", seed=0)
    c = prepare(spec_of(tmp_path, "a.csv"), tmp_path / "out_c", seed=1)
    assert a.manifest.arrays_hash == b.manifest.arrays_hash != c.manifest.arrays_hash


def test_events_of_one_moment_are_shuffled_by_the_seed(tmp_path):
    rows = [{"user": "u", "item": f"{at:02d}", "time": START_S} for at in range(20)]
    rows += [{"user": "w", "item": "00", "time": START_S + at} for at in range(1, 30)]
    (tmp_path / "a.csv").write_text(csv_text(rows), encoding="utf-8")
    orders = []
    for seed in range(3):
        data = prepare(spec_of(tmp_path, "a.csv"), tmp_path / f"out{seed}", seed=seed)
        items = data.vocabulary("item")
        orders.append([items[at] for at in data.behaviours.item[:20]])
    assert all(sorted(order) == [f"{at:02d}" for at in range(20)] for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert all(order != sorted(order) for order in orders)


def write_form(path: Path, rows: list[dict], form: str) -> str:
    text = csv_text(rows).encode()
    lines = "".join(json.dumps({name: row[name] for name in COLUMNS}) + "\n" for row in rows).encode()
    if form == "csv":
        data, name = text, "log.csv"
    elif form == "csv.gz":
        data, name = gzip.compress(text), "log.csv.gz"
    elif form == "csv.zst":
        zstandard = pytest.importorskip("zstandard")
        half = len(text) // 2  # two frames in one file
        data = zstandard.compress(text[:half]) + zstandard.compress(text[half:])
        name = "log.csv.zst"
    elif form == "tsv":
        data, name = text.replace(b",", b"\t"), "log.tsv"
    elif form == "jsonl":
        data, name = lines, "log.jsonl"
    elif form == "jsonl.gz":
        data, name = gzip.compress(lines), "log.jsonl.gz"
    else:
        name = "log.parquet"
        pl.DataFrame(rows).select(COLUMNS).with_columns(pl.col("item").cast(pl.Int64)).write_parquet(path / name)
        return name
    (path / name).write_bytes(data)
    return name


@pytest.mark.parametrize("form", ["csv.gz", "csv.zst", "tsv", "jsonl", "jsonl.gz", "parquet"])
def test_every_format_gives_the_arrays_of_plain_csv(tmp_path, form):
    rows = random_rows(300)
    plain = prepare(spec_of(tmp_path, write_form(tmp_path, rows, "csv")), tmp_path / "plain")
    other = prepare(spec_of(tmp_path, write_form(tmp_path, rows, form)), tmp_path / "other")
    assert other.manifest.arrays_hash == plain.manifest.arrays_hash


def test_two_sources_with_constant_actions_become_one_log(tmp_path):
    rows = random_rows(200)
    for action in ("view", "buy"):
        (tmp_path / f"{action}.csv").write_text(csv_text([r for r in rows if r["action"] == action]), encoding="utf-8")
    (tmp_path / "both.csv").write_text(csv_text(rows), encoding="utf-8")
    one = spec_of(tmp_path, "both.csv")
    two = one.model_copy(
        update={
            "events": tuple(
                spec_of(tmp_path, f"{action}.csv", action={"constant": action}).events[0] for action in ("buy", "view")
            )
        }
    )
    assert prepare(one, tmp_path / "one").manifest.arrays_hash == prepare(two, tmp_path / "two").manifest.arrays_hash


def test_further_event_columns_are_carried(tmp_path):
    rows = [row | {"channel": "web" if at % 3 else "shop", "weight": at / 7} for at, row in enumerate(random_rows(120))]
    pl.DataFrame(rows).write_parquet(tmp_path / "log.parquet")
    spec = spec_of(
        tmp_path, "log.parquet", fields={"channel": "categorical", "kg": {"kind": "numeric", "column": "weight"}}
    )
    data = prepare(spec, tmp_path / "out")
    users, channels = data.vocabulary("user"), data.vocabulary("channel")
    b = data.behaviours
    owner = np.repeat(np.arange(len(users)), np.diff(b.offsets))
    items = data.vocabulary("item")
    found = {
        (users[u], items[i], int(t), channels[c], np.float32(w))
        for u, i, t, c, w in zip(owner, b.item, b.time_ms, b.fields["channel"], b.fields["kg"], strict=True)
    }
    assert found == {(r["user"], r["item"], r["time"] * 1_000, r["channel"], np.float32(r["weight"])) for r in rows}
    channel, weight = data.features.behaviour_fields
    assert (channel.name, channel.size) == ("channel", 4)
    training = [r["weight"] for r in rows if r["time"] * 1_000 < data.manifest.protocol.settings["valid_from_ms"]]
    assert weight.mean == pytest.approx(np.mean(training), rel=1e-6)
    assert weight.std == pytest.approx(np.std(training), rel=1e-6)


def test_a_folder_that_holds_files_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text(csv_text(random_rows(100)), encoding="utf-8")
    spec = spec_of(tmp_path, "log.csv")
    out = tmp_path / "out"
    prepare(spec, out)
    with pytest.raises(DataError, match="overwrite"):
        prepare(spec, out)
    prepare(spec, out, overwrite=True)
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        prepare(spec, out, overwrite=True)
    shutil.rmtree(out)
    out.mkdir()
    prepare(spec, out)


def test_a_failed_run_leaves_nothing_and_keeps_the_old_folder(tmp_path):
    (tmp_path / "log.csv").write_text(csv_text(random_rows(100)), encoding="utf-8")
    spec = spec_of(tmp_path, "log.csv")
    before = prepare(spec, tmp_path / "out").manifest.arrays_hash
    broken = spec_of(tmp_path, "log.csv", protocol={"name": "global-time", "positive_actions": ["steal"]})
    with pytest.raises(ValueError, match="steal"):
        prepare(broken, tmp_path / "out", overwrite=True)
    assert arrays_hash(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "out"]


def test_a_log_without_usable_rows_says_so(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,time,action,value,place\n,a,1,,,\n", encoding="utf-8")
    with pytest.raises(DataError, match="missing user"):
        prepare(spec_of(tmp_path, "log.csv"), tmp_path / "out")


def test_the_parts_of_the_log_are_recorded_in_the_manifest(tmp_path):
    (tmp_path / "log.csv").write_text(csv_text(random_rows(100)), encoding="utf-8")
    manifest = prepare(spec_of(tmp_path, "log.csv"), tmp_path / "out", seed=5).manifest
    (record,) = manifest.source["files"]
    assert record["file"] == "log.csv"
    assert record["bytes"] == (tmp_path / "log.csv").stat().st_size
    assert manifest.counts["rows_read"] == manifest.counts["rows_kept"] == 100
    assert manifest.seed == manifest.protocol.seed == 5
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")
