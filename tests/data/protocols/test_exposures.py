"""Exposure logs become requests with exactly what was shown and taken, in either layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sostenuto.data.preparation import prepare
from sostenuto.data.prepared import SPLITS, PreparedData
from sostenuto.data.spec import make_spec
from sostenuto.data.validation import validate
from sostenuto.schema.errors import SpecError

START_S = 1_600_000_000


def make_requests(count: int = 150, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    requests = []
    for at in range(count):
        size = int(rng.integers(2, 6))
        items = [f"i{i}" for i in rng.choice(40, size, replace=False)]
        clicked = items[int(rng.integers(size))] if rng.random() < 0.7 else None
        requests.append(
            {
                "request": f"r{at:04d}",
                "user": f"u{rng.integers(12)}",
                "time": START_S + int(rng.integers(0, 10_000)) * 60,
                "place": str(rng.choice(["home", "work"])),
                "device": str(rng.choice(["phone", "desk"])),
                "items": items,
                "labels": [int(item == clicked) for item in items],
                "prices": [None if rng.random() < 0.1 else round(float(p), 2) for p in rng.gamma(2, 10, size)],
                "slots": [str(s) for s in range(1, size + 1)],
                "clicked": clicked,
            }
        )
    return requests


def joined(values) -> str:
    return "|".join("" if value is None else str(value) for value in values)


def write(folder: Path, requests: list[dict], layout: str) -> dict:
    """Write the log in a layout; return its [exposures] table."""
    table = {
        "user": "user",
        "time": {"column": "time", "unit": "s"},
        "place": "place",
        "request": "request",
        "candidate_fields": {
            "price": {"kind": "numeric", "column": "prices"},
            "slot": {"kind": "categorical", "column": "slots"},
        },
        "context_fields": {"device": "categorical"},
    }
    plain = ("request", "user", "time", "place", "device")
    if layout == "row per candidate":
        rows = [
            {name: r[name] for name in plain} | {"item": i, "label": label, "prices": price, "slots": slot}
            for r in requests
            for i, label, price, slot in zip(r["items"], r["labels"], r["prices"], r["slots"], strict=True)
        ]
        rng = np.random.default_rng(1)
        rows = [rows[at] for at in rng.permutation(len(rows))]
        pl.DataFrame(rows, infer_schema_length=None).write_csv(folder / "shown.csv")
        return table | {"files": "shown.csv", "item": "item", "label": "label"}
    if layout == "joined, labels":
        rows = [
            {name: r[name] for name in plain} | {n: joined(r[n]) for n in ("items", "labels", "prices", "slots")}
            for r in requests
        ]
        pl.DataFrame(rows).write_csv(folder / "shown.csv")
        return table | {"files": "shown.csv", "candidates": "items", "labels": "labels"}
    if layout == "joined, clicked":
        rows = [
            {name: r[name] for name in (*plain, "clicked")} | {n: joined(r[n]) for n in ("items", "prices", "slots")}
            for r in requests
        ]
        pl.DataFrame(rows).write_csv(folder / "shown.csv")
        return table | {"files": "shown.csv", "candidates": "items", "clicked": "clicked"}
    if layout == "json lists":
        names = (*plain, "items", "labels", "prices", "slots")
        lines = [json.dumps({name: r[name] for name in names}) for r in requests]
        (folder / "shown.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return table | {"files": "shown.jsonl", "candidates": "items", "labels": "labels"}
    names = (*plain, "items", "labels", "prices", "slots")
    pl.DataFrame([{name: r[name] for name in names} for r in requests]).write_parquet(folder / "shown.parquet")
    return table | {"files": "shown.parquet", "candidates": "items", "labels": "labels"}


LAYOUTS = ["row per candidate", "joined, labels", "joined, clicked", "json lists", "parquet lists"]


def prepared(folder: Path, exposures: dict, out: str = "out", *, events=None, **protocol) -> PreparedData:
    tables = {"name": "shown", "folder": folder, "exposures": exposures}
    tables |= {"events": events} if events else {}
    tables |= {"protocol": {"name": "exposures", **protocol}} if protocol else {}
    return prepare(make_spec(tables), folder / out, overwrite=True)


def as_sets(data: PreparedData) -> dict:
    """Return per split the multiset of requests in raw words."""
    users, items = data.vocabulary("user"), data.vocabulary("item")
    places, slots, devices = (data.vocabulary(name) for name in ("place", "slot", "device"))
    found = {}

    def candidate(r, at):
        price, slot = r.candidate["price"][at], slots[r.candidate["slot"][at]]
        return items[r.item[at]], float(r.label[at]), str(np.float32(price)), slot

    for split in SPLITS:
        r = data.requests(split)
        found[split] = sorted(
            (
                int(r.time_ms[at]),
                users[r.user[at]],
                places[r.place[at]],
                devices[r.context["device"][at]],
                sorted(candidate(r, c) for c in range(int(r.offsets[at]), int(r.offsets[at + 1]))),
            )
            for at in range(len(r))
        )
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_requests_hold_exactly_what_was_shown(tmp_path, layout):
    requests = make_requests()
    data = prepared(tmp_path, write(tmp_path, requests, layout))
    found = as_sets(data)
    valid_ms = data.manifest.protocol.settings["valid_from_ms"]
    test_ms = data.manifest.protocol.settings["test_from_ms"]
    training = [r for r in requests if r["time"] * 1_000 < valid_ms]
    known_slots = {slot for r in training for slot in r["slots"]}
    expected: dict = {split: [] for split in SPLITS}
    for r in requests:
        time_ms = r["time"] * 1_000
        split = "train" if time_ms < valid_ms else "valid" if time_ms < test_ms else "test"
        shown = zip(r["items"], r["labels"], r["prices"], r["slots"], strict=True)
        candidates = sorted(
            (i, float(y), str(np.float32("nan" if p is None else p)), s if s in known_slots else "?")
            for i, y, p, s in shown
        )
        expected[split].append((time_ms, r["user"], r["place"], r["device"], candidates))
    assert found == {split: sorted(rows) for split, rows in expected.items()}
    price, slot = data.features.candidate_fields
    values = [p for r in training for p in r["prices"] if p is not None]
    assert (price.name, slot.name) == ("price", "slot")
    assert price.mean == pytest.approx(np.mean(values), rel=1e-5)
    assert price.std == pytest.approx(np.std(values), rel=1e-5)
    assert [f.name for f in data.features.context_fields] == ["device"]
    assert data.manifest.protocol.lists == ("shown",)


def test_all_layouts_give_the_same_requests(tmp_path):
    requests = make_requests()
    found = [as_sets(prepared(tmp_path, write(tmp_path, requests, layout))) for layout in LAYOUTS]
    assert all(other == found[0] for other in found[1:])


def test_what_was_taken_becomes_history_where_no_events_are_given(tmp_path):
    requests = make_requests()
    data = prepared(tmp_path, write(tmp_path, requests, "joined, clicked"))
    clicks = [r for r in requests if r["clicked"]]
    assert data.manifest.counts["events"] == len(clicks)
    users, items = data.vocabulary("user"), data.vocabulary("item")
    b = data.behaviours
    for split in SPLITS:
        r = data.requests(split)
        for at in range(len(r)):
            user, time_ms = users[r.user[at]], int(r.time_ms[at])
            before = [c for c in clicks if c["user"] == user and c["time"] * 1_000 < time_ms]
            assert int(r.prefix[at]) == len(before)
            start = int(b.offsets[r.user[at]])
            history = [items[i] for i in b.item[start : start + len(before)]]
            assert sorted(history) == sorted(c["clicked"] for c in before)
    assert data.vocabulary("action") == ["", "?", "click"]


def test_a_log_of_events_beside_the_exposures_is_the_history(tmp_path):
    exposures = write(tmp_path, make_requests(), "joined, clicked")
    rng = np.random.default_rng(0)
    pl.DataFrame(
        {
            "user": [f"u{u}" for u in rng.integers(0, 15, 300)],
            "item": [f"i{i}" for i in rng.integers(0, 60, 300)],
            "time": START_S + rng.integers(0, 10_000, 300) * 60,
        }
    ).write_csv(tmp_path / "log.csv")
    events = {"files": "log.csv", "user": "user", "item": "item", "time": {"column": "time", "unit": "s"}}
    data = prepared(tmp_path, exposures, events=events, name="exposures", valid_from=0.5, test_from=0.7)
    assert data.manifest.counts["events"] == 300
    assert data.features.num_actions == 2
    both = prepared(tmp_path, exposures | {"positives_are_events": True}, "both", events=events, name="exposures")
    assert both.manifest.counts["events"] == 300 + sum(bool(r["clicked"]) for r in make_requests())


@pytest.mark.parametrize("layout", ["joined, labels", "row per candidate"])
def test_row_order_does_not_matter(tmp_path, layout):
    requests = make_requests()
    hashes = []
    for order in (requests, requests[::-1]):
        exposures = write(tmp_path, order, layout)
        hashes.append(prepared(tmp_path, exposures).manifest.arrays_hash)
    assert hashes[0] == hashes[1]


def test_rows_that_cannot_be_requests_are_named(tmp_path):
    (tmp_path / "shown.csv").write_text(
        "user,time,items,labels,prices\n"
        "u1,1600000000,a|b|c,1|0|0,1|2|3\n"
        "u1,1600000060,a|b,1|0|0,1|2\n"
        "u1,1600000120,a|b,1|0,1|2|3\n"
        "u1,1600000180,,1,1\n"
        "u1,1600000240,a||b,0|1|0,1|2|3\n"
        "u1,1600000300,a|b,x|1,1|2\n"
        "u1,1600000360,a|b,7|1,1|2\n"
        "u1,1600000420,a|b,,1|2\n"
        ",1600000480,a|b,0|1,1|2\n"
        "u1,1600000540,a|b,0|1,\n"
        "u1,1600000600,a|b,0|1,cheap|2\n",
        encoding="utf-8",
    )
    exposures = {
        "files": "shown.csv",
        "user": "user",
        "time": {"column": "time", "unit": "s"},
        "candidates": "items",
        "labels": "labels",
        "candidate_fields": {"price": {"kind": "numeric", "column": "prices"}},
    }
    spec = make_spec({"name": "x", "folder": tmp_path, "exposures": exposures})
    report = validate(spec, out=tmp_path / "report")
    rejects = pl.read_parquet(tmp_path / "report" / "rejects.parquet")
    assert dict(zip(rejects["row"], rejects["reason"], strict=True)) == {
        3: "lists of different lengths",
        4: "lists of different lengths",
        5: "no candidates",
        6: "missing item",
        7: "missing or unreadable label",
        8: "missing or unreadable label",
        9: "missing or unreadable label",
        10: "missing user",
    }
    assert (report.read, report.kept, report.rejected) == (11, 3, 8)
    assert report.bad_numbers == {"candidate.price": 1}
    assert report.exposures["requests"] == 3


def test_a_click_outside_of_the_list_is_named(tmp_path):
    (tmp_path / "shown.csv").write_text(
        "u,t,items,clicked\nu1,1600000000,a|b,b\nu1,1600000060,a|b,z\nu1,1600000120,a|b,\n", encoding="utf-8"
    )
    exposures = {
        "files": "shown.csv",
        "user": "u",
        "time": {"column": "t", "unit": "s"},
        "candidates": "items",
        "clicked": "clicked",
    }
    report = validate(make_spec({"name": "x", "folder": tmp_path, "exposures": exposures}))
    assert report.reasons == {"clicked item not among the candidates": 1}
    assert report.exposures["positives"] == 1


def test_wrong_settings_are_refused(tmp_path):
    exposures = write(tmp_path, make_requests(20), "joined, labels")
    with pytest.raises(SpecError, match="Did you mean 'min_candidates'"):
        prepared(tmp_path, exposures, name="exposures", min_candidate=3)
