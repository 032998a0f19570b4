"""The report: counts add up, every trouble is named, a planted leak is found, a clean log is clean."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sostenuto.data import validation
from sostenuto.data.leaks import find_leaks, rank_auc
from sostenuto.data.preparation import prepare
from sostenuto.data.spec import make_spec
from sostenuto.data.validation import validate

START_S = 1_600_000_000
EVENTS = {"files": "log*.csv", "user": "user", "item": "item", "time": {"column": "time", "unit": "s"}}


def clean_log(folder, *, seed=0, events=800, **more):
    rng = np.random.default_rng(seed)
    columns = {
        "user": [f"u{u}" for u in rng.integers(0, 30, events)],
        "item": [f"i{i}" for i in rng.integers(0, 60, events)],
        "time": START_S + rng.permutation(events) * 3_600,
        "action": rng.choice(["view", "buy"], events, p=[0.8, 0.2]),
        "value": rng.gamma(2, 5, events).round(2),
    }
    frame = pl.DataFrame(columns | {name: make(rng, columns) for name, make in more.items()})
    frame.write_csv(folder / "log.csv")
    return frame


def report_of(folder, *, out=None, events=None, **tables):
    return validate(make_spec({"name": "log", "folder": folder, "events": events or EVENTS, **tables}), out=out)


lines = st.lists(
    st.sampled_from(
        [
            "u1,i1,1600000000,1",
            "u1,i1,1600000000,1",
            "u1,i2,1600000100,2",
            "u2,i1,1600000050,x",
            "u2,i3,1600000050,",
            ",i1,1600000000,1",
            "u1,,1600000000,1",
            "u1,i1,,1",
            "u1,i1,later,1",
            "u1,i1,99999999999,1",
            "u1,i1",
            'u1,"i1,1600000000,1',
            "",
        ]
    ),
    min_size=1,
    max_size=25,
)


@given(lines, st.integers(1, 3))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_is_kept_plus_rejected_and_every_line_is_accounted_for(tmp_path, rows, files):
    for path in tmp_path.glob("log*.csv"):
        path.unlink()
    for part in range(files):
        text = "\n".join(["user,item,time,value", *rows[part::files]]) + "\n"
        (tmp_path / f"log{part}.csv").write_text(text, encoding="utf-8")
    report = report_of(tmp_path, out=tmp_path / "report", events={**EVENTS, "value": "value"})
    rejects = pl.read_parquet(tmp_path / "report" / "rejects.parquet")
    assert report.read == sum(bool(row) for row in rows) == report.kept + len(rejects)
    assert report.rejected == len(rejects)
    assert report.reasons == dict(sorted(Counter(rejects["reason"].to_list()).items()))
    for file, row, _, raw in rejects.iter_rows():
        part = int(file.rsplit("log", 1)[1][0])
        assert raw == rows[part::files][row - 2]
    kept = Counter(
        row for row in rows if row.startswith("u") and row.count(",") == 3 and ",160000" in row and '"' not in row
    )
    kept = Counter({row: n for row, n in kept.items() if row.split(",")[1]})
    assert report.kept == kept.total()
    assert report.bad_numbers.get("value", 0) == kept["u2,i1,1600000050,x"]
    assert report.duplicates == sum(n - 1 for n in kept.values())
    moments = Counter((row.split(",")[0], row.split(",")[2]) for row in kept.elements())
    assert report.moments == len(moments)
    assert report.tied_events == sum(n for n in moments.values() if n > 1)


def test_ties_are_counted_across_pieces(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {"user": rng.integers(0, 5, 400), "item": rng.integers(0, 3, 400), "time": START_S + rng.integers(0, 40, 400)}
    )
    frame.write_csv(tmp_path / "log.csv")
    moments = Counter(frame.select("user", "time").rows())
    for piece in (7, 64, 1 << 20):
        monkeypatch.setattr(validation, "PIECE", piece)
        report = report_of(tmp_path)
        assert report.moments == len(moments)
        assert report.tied_events == sum(n for n in moments.values() if n > 1)
        assert report.duplicates == sum(n - 1 for n in Counter(frame.rows()).values())


def test_a_clean_log_has_nothing_to_look_at(tmp_path):
    frame = clean_log(tmp_path)
    report = report_of(tmp_path, events={**EVENTS, "action": "action", "value": "value"})
    assert report.findings == []
    assert report.leaks == []
    assert (report.events, report.rejected) == (800, 0)
    assert report.users == frame["user"].n_unique()
    assert report.items == frame["item"].n_unique()
    assert (report.first_ms, report.last_ms) == (START_S * 1_000, (START_S + 799 * 3_600) * 1_000)
    lengths = frame["user"].value_counts()["count"]
    assert report.history_length["longest"] == lengths.max()
    assert report.history_length["mean"] == pytest.approx(lengths.mean(), abs=0.01)
    assert report.actions == dict(frame["action"].value_counts(sort=True).rows())


def test_report_is_plain_json_and_prints(tmp_path):
    clean_log(tmp_path)
    report = report_of(tmp_path, out=tmp_path / "report")
    written = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.as_json()))
    assert written["tables"]["events"] == {"read": 800, "kept": 800, "rejected": 0}
    printed = []
    report.show(
        lambda title, columns, rows, *, numbers=(): printed.append((title, len(columns), rows)),
        lambda *lines: printed.append(lines),
    )
    assert all(len(row) == width for title, width, rows in (p for p in printed if len(p) == 3) for row in rows)
    assert "nothing stands in the way" in printed[-1][-1]


def test_prepare_and_validate_agree_on_what_is_kept(tmp_path):
    clean_log(tmp_path)
    with (tmp_path / "log.csv").open("a", encoding="utf-8") as file:
        file.write("u1,i1,never,view,1\nbroken\n")
    spec = make_spec({"name": "log", "folder": tmp_path, "events": EVENTS})
    report, data = validate(spec), prepare(spec, tmp_path / "out")
    counts = data.manifest.counts
    assert (report.read, report.kept) == (counts["rows_read"], counts["rows_kept"]) == (802, 800)
    assert {f"rejected.{reason}": n for reason, n in report.reasons.items()} == {
        name: n for name, n in counts.items() if name.startswith("rejected.")
    }
    assert len(pl.read_parquet(tmp_path / "out" / "rejects.parquet")) == 2


def test_constant_missing_and_unknown_are_reported(tmp_path):
    frame = clean_log(
        tmp_path,
        shop=lambda rng, c: ["one"] * len(c["user"]),
        never=lambda rng, c: pl.Series([None] * len(c["user"]), dtype=pl.String),
        some=lambda rng, c: [None if rng.random() < 0.3 else float(rng.normal()) for _ in c["user"]],
    )
    pl.DataFrame({"id": [f"i{n}" for n in range(5, 80)], "size": 1}).write_csv(tmp_path / "items.csv")
    report = report_of(
        tmp_path,
        events={**EVENTS, "fields": {"shop": "categorical", "never": "categorical", "some": "numeric"}},
        items={"files": "items.csv", "item": "id", "fields": {"size": "numeric"}},
    )
    assert report.constant == {"field.shop": "one", "field.never": "always missing", "items size": "1"}
    assert report.missing["field.some"] == frame["some"].null_count()
    unknown = frame.filter(pl.col("item").is_in([f"i{n}" for n in range(5)]))
    assert report.unknown_items == {"ids": unknown["item"].n_unique(), "events": len(unknown)}
    assert report.unused_items == 75 - frame.filter(~pl.col("item").is_in(unknown["item"].to_list()))["item"].n_unique()
    told = " ".join(finding.what for finding in report.findings)
    assert "field.shop never changes" in told
    assert "item table lacks" in told


def test_fields_that_tell_the_action_are_noticed(tmp_path):
    clean_log(
        tmp_path,
        order=lambda rng, c: [f"o{n}" if a == "buy" else None for n, a in enumerate(c["action"])],
        paid=lambda rng, c: [rng.normal(9 if a == "buy" else 0) for a in c["action"]],
        mood=lambda rng, c: rng.choice(["x", "y"], len(c["user"])),
    )
    fields = {"order": "categorical", "paid": "numeric", "mood": "categorical"}
    report = report_of(tmp_path, events={**EVENTS, "action": "action", "fields": fields})
    assert {leak.column for leak in report.leaks} == {"field.order", "field.paid"}
    assert all(finding.severity == "notice" for finding in report.findings)


def exposure_log(folder, *, seed=0, requests=400):
    rng = np.random.default_rng(seed)
    rows = []
    for request in range(requests):
        taken = int(rng.integers(5))
        for slot in range(5):
            label = int(slot == taken)
            rows.append(
                {
                    "request": request,
                    "user": f"u{request % 20}",
                    "time": START_S + request * 600,
                    "item": f"i{rng.integers(50)}",
                    "label": label,
                    "price": round(float(rng.gamma(2, 5)), 2),
                    "dwell": round(float(rng.gamma(5, 10)), 1) if label else 0.0,
                    "order": f"o{request}" if label and rng.random() < 0.4 else None,
                    "status": "done" if label else str(rng.choice(["open", "seen"])),
                    "colour": str(rng.choice(["red", "blue"])),
                }
            )
    pl.DataFrame(rows, infer_schema_length=None).write_csv(folder / "shown.csv")
    return {
        "files": "shown.csv",
        "user": "user",
        "time": {"column": "time", "unit": "s"},
        "request": "request",
        "item": "item",
        "label": "label",
        "candidate_fields": {
            "price": "numeric",
            "dwell": "numeric",
            "order": "categorical",
            "status": "categorical",
            "colour": "categorical",
        },
    }


def test_planted_leaks_of_exposures_are_found_and_nothing_else(tmp_path):
    spec = make_spec({"name": "shown", "folder": tmp_path, "exposures": exposure_log(tmp_path)})
    report = validate(spec)
    found = {leak.column: leak for leak in report.leaks}
    assert set(found) == {"candidate.dwell", "candidate.order", "candidate.status"}
    assert found["candidate.dwell"].auc > 0.99
    assert "filled for positives only" in found["candidate.order"].reason
    problems = [finding for finding in report.findings if finding.severity == "problem"]
    assert len(problems) == 3
    assert report.exposures["requests"] == 400
    assert report.exposures["positives"] == 400


def test_item_columns_that_count_the_whole_log_are_found(tmp_path):
    frame = clean_log(tmp_path, events=3_000)
    counts = frame["item"].value_counts()
    rng = np.random.default_rng(0)
    table = counts.with_columns(sold=pl.col("count") * 3 + 1, weight=pl.Series(rng.normal(size=len(counts))))
    table.drop("count").write_csv(tmp_path / "items.csv")
    items = {"files": "items.csv", "item": "item", "fields": {"sold": "numeric", "weight": "numeric"}}
    report = report_of(tmp_path, items=items)
    assert [f.what.split()[2] for f in report.findings if f.severity == "problem"] == ["sold"]


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (lambda n: np.full(n, START_S), "one time only"),
        (lambda n: np.arange(n) * 1_000_000 // n, "before 1980"),
        (lambda n: START_S + np.arange(n) // 10, "less than a day"),
    ],
)
def test_times_that_cannot_be_right_are_problems(tmp_path, times, words):
    pl.DataFrame(
        {"user": [f"u{n % 10}" for n in range(200)], "item": [f"i{n % 17}" for n in range(200)], "time": times(200)}
    ).write_csv(tmp_path / "log.csv")
    assert any(words in f.what and f.severity == "problem" for f in report_of(tmp_path).findings)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_rank_auc_equals_counting_pairs(rows):
    score, positive = np.array([s for s, _ in rows]), np.array([p for _, p in rows])
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    found = rank_auc(score, positive)
    assert (np.isnan(found) and not pairs) or found == pytest.approx(np.mean(pairs))


def test_an_identifier_that_never_repeats_is_no_leak():
    rng = np.random.default_rng(0)
    positive = rng.random(2_000) < 0.3
    columns = pl.DataFrame({"id": [f"x{n}" for n in range(2_000)], "number": rng.normal(size=2_000)})
    assert find_leaks(columns, positive, "label") == []
