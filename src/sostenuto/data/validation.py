"""What is in a log, what cannot be used and why, and what may mislead: read once, before anything is prepared."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from sostenuto.data.exposure_log import ExposureIntake
from sostenuto.data.leaks import Leak, RowSample, find_leaks
from sostenuto.data.parsing import BAD_NUMBER, not_after_ms
from sostenuto.data.preparation import (
    PIECE,
    Arranged,
    Intake,
    Meter,
    Progress,
    arrange,
    new_intake,
    read_events,
    source_files,
)
from sostenuto.data.prepared import Array
from sostenuto.data.reading import BLOCK_BYTES, PARQUET_ROWS
from sostenuto.data.rejects import Rejects
from sostenuto.data.side_tables import SideTable, build_fields, read_table
from sostenuto.data.spec import DataSpec
from sostenuto.data.vocabularies import with_specials

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
MOST_ACTIONS = 20  # actions whose fields are looked at one by one
LOOKS_LIKE_A_COUNT = 0.95  # rank correlation of an item column with the whole log's counts

TablePrinter = Callable[..., None]
LinePrinter = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to look at, with what to do about it."""

    severity: Literal["problem", "notice"]
    what: str
    do: str


@dataclass(slots=True, kw_only=True)
class TableCounts:
    """Rows of one table: read = kept + rejected."""

    read: int = 0
    kept: int = 0

    @property
    def rejected(self) -> int:
        """Rows that cannot be used."""
        return self.read - self.kept


@dataclass(slots=True, kw_only=True)
class ValidationReport:
    """Everything `validate` found."""

    name: str
    tables: dict[str, TableCounts] = field(default_factory=dict)  # events, exposures, items, users
    reasons: dict[str, int] = field(default_factory=dict)  # rejected rows by reason, over all tables
    bad_numbers: dict[str, int] = field(default_factory=dict)  # column -> unreadable cells that became missing
    events: int = 0
    users: int = 0
    items: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    not_after_ms: int = 0
    time_zone: str = "UTC"
    history_length: dict[str, float] = field(default_factory=dict)
    duplicates: int = 0  # events that repeat another in everything the spec names
    tied_events: int = 0  # events that share user and time with another
    moments: int = 0  # distinct (user, time)
    missing: dict[str, int] = field(default_factory=dict)  # column -> kept rows without a value
    constant: dict[str, str] = field(default_factory=dict)  # column -> its only value
    unknown_items: dict[str, int] = field(default_factory=dict)  # not in the item table: items, events
    unknown_users: dict[str, int] = field(default_factory=dict)
    unused_items: int = 0  # in the item table, never in the log
    actions: dict[str, int] = field(default_factory=dict)
    exposures: dict[str, float] = field(default_factory=dict)
    leaks: list[Leak] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Rows read, over all tables."""
        return sum(table.read for table in self.tables.values())

    @property
    def kept(self) -> int:
        """Rows that can be used."""
        return sum(table.kept for table in self.tables.values())

    @property
    def rejected(self) -> int:
        """Rows that cannot be used; read = kept + rejected."""
        return sum(self.reasons.values())

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        whole = asdict(self)
        for name, table in self.tables.items():
            whole["tables"][name]["rejected"] = table.rejected
        return whole | {"read": self.read, "kept": self.kept, "rejected": self.rejected}

    def _local(self, time_ms: int | None) -> str:
        if time_ms is None:
            return "-"
        import zoneinfo

        moment = datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(milliseconds=time_ms)
        return moment.astimezone(zoneinfo.ZoneInfo(self.time_zone)).isoformat(sep=" ", timespec="seconds")

    def sections(self) -> list[tuple[str, tuple[str, ...], list[tuple[Any, ...]], tuple[str, ...]]]:
        """Return what `show` prints: title, columns, rows, and which columns are numbers."""
        rows = [(name, t.read, t.kept, t.rejected) for name, t in self.tables.items()]
        rows.append(("all", self.read, self.kept, self.rejected))
        made = [(f"Rows of {self.name}", ("table", "read", "kept", "rejected"), rows, ("read", "kept", "rejected"))]
        sections: list[tuple[str, tuple[str, ...], list[tuple[Any, ...]], tuple[str, ...]]] = [*made]
        bad: list[tuple[Any, ...]] = [(reason, count, "rejected") for reason, count in self.reasons.items()]
        bad += [(f"{BAD_NUMBER}: {name}", count, "kept") for name, count in self.bad_numbers.items()]
        if bad:
            sections.append(("Bad rows and cells", ("what", "count", "row is"), bad, ("count",)))
        facts: list[tuple[Any, ...]] = [
            ("events", self.events),
            ("users", self.users),
            ("items", self.items),
            ("first event", self._local(self.first_ms)),
            ("last event", self._local(self.last_ms)),
            ("moments (user and time)", self.moments),
            ("events tied in time", self.tied_events),
            ("exact duplicates", self.duplicates),
        ]
        facts += [(f"history length, {name}", value) for name, value in self.history_length.items()]
        facts += [(f"events with action {name}", count) for name, count in list(self.actions.items())[:MOST_ACTIONS]]
        facts += [(f"not in the item table, {name}", count) for name, count in self.unknown_items.items()]
        facts += [(f"not in the user table, {name}", count) for name, count in self.unknown_users.items()]
        if "items" in self.tables:
            facts.append(("in the item table, never in the log", self.unused_items))
        facts += [(f"missing {name}", count) for name, count in self.missing.items() if count]
        facts += [(f"exposures, {name}", value) for name, value in self.exposures.items()]
        sections.append(("What is in it", ("what", "value"), facts, ("value",)))
        if self.leaks:
            told = [(leak.column, leak.label, round(leak.auc, 4), leak.reason) for leak in self.leaks]
            sections.append(("Likely leaks", ("column", "tells", "AUC", "why"), told, ("AUC",)))
        if self.findings:
            found: list[tuple[Any, ...]] = [(f.severity, f.what, f.do) for f in self.findings]
            sections.append(("To look at", ("", "what", "what to do"), found, ()))
        return sections

    def show(self, table: TablePrinter, lines: LinePrinter) -> None:
        """Print for people through `table(title, columns, rows, numbers=...)` and `lines(*texts)`."""
        for at, (title, columns, rows, numbers) in enumerate(self.sections()):
            if at:
                lines("")
            table(title, columns, rows, numbers=numbers)
        lines("", "nothing stands in the way of `sostenuto data prepare`" if not self._problems() else self._advice())

    def _problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "problem"]

    def _advice(self) -> str:
        return f"{len(self._problems())} problems to look at before `sostenuto data prepare`"


class _Columns:
    """Counts missing values and notices columns that never change, chunk by chunk."""

    def __init__(self) -> None:
        self.missing: dict[str, int] = {}
        self.values: dict[str, set[str]] = {}

    def add(self, frame: pl.DataFrame, names: Sequence[str]) -> None:
        for name in names:
            column = frame[name]
            absent = column.is_nan().fill_null(value=True) if column.dtype.is_float() else column.is_null()
            self.missing[name] = self.missing.get(name, 0) + int(absent.sum())
            seen = self.values.setdefault(name, set())
            if len(seen) < 2:
                present = column.filter(~absent)
                if len(present):
                    pair = {str(present[0])}
                    others = present.filter(present != present[0])
                    pair |= {str(others[0])} if len(others) else set()
                    seen |= pair

    def constant(self, total: int) -> dict[str, str]:
        """Return the columns with one value in every row; a column without any value counts as constant too."""
        found = {}
        for name, seen in self.values.items():
            if total and not seen:
                found[name] = "always missing"
            elif len(seen) == 1 and not self.missing[name]:
                found[name] = next(iter(seen))
        return found


def _lengths(counts: Array) -> dict[str, float]:
    if not len(counts):
        return {}
    named = {0.0: "shortest", 0.5: "median", 1.0: "longest"}
    points = np.quantile(counts, QUANTILES, method="nearest")
    found = {named.get(q, f"{q:.0%} of users below"): float(v) for q, v in zip(QUANTILES, points, strict=True)}
    return {"mean": round(float(counts.mean()), 2)} | {name: int(value) for name, value in found.items()}


def _ties(arranged: Arranged, names: Sequence[str]) -> tuple[int, int, int]:
    """Return moments, events that share theirs with another, and exact repetitions."""
    b = arranged.behaviours
    total = len(b.item)
    columns: list[Array] = [b.item]
    columns += [getattr(b, name) for name in ("action", "value", "place") if name in names]
    columns += list(b.fields.values())
    opens_user = np.zeros(total + 1, bool)
    opens_user[b.offsets] = True
    moments = tied = repeated = 0
    was_tied = False
    for start in range(0, total, PIECE):
        stop = min(start + PIECE, total)
        before = slice(max(start - 1, 0), stop - 1)
        present = slice(before.start + 1, stop)
        same = (b.time_ms[present] == b.time_ms[before]) & ~opens_user[present]
        equal = same.copy()
        for column in columns:
            left, right = column[before], column[present]
            alike = left == right
            if left.dtype.kind == "f":
                alike |= np.isnan(left) & np.isnan(right)
            equal &= alike
        repeated += int(equal.sum())
        rows = stop - start
        moments += rows - int(same.sum())
        # an event is tied when it equals its predecessor or its successor in time; count both sides once
        with_previous = same if start else np.concatenate(([False], same))
        runs = np.concatenate((with_previous[1:], [False]))
        tied += int((with_previous | runs).sum())
        if start and len(with_previous) and with_previous[0] and not was_tied:
            tied += 1  # the last event of the piece before is tied to the first of this one
        was_tied = bool(with_previous[-1]) if rows else was_tied
    return moments, tied, repeated


def _event_leaks(sample: pl.DataFrame) -> list[Leak]:
    """Return event columns that tell an action from all others."""
    if "action" not in sample.columns:
        return []
    names = [name for name in sample.columns if name == "value" or name.startswith("field.")]
    counts = sample["action"].drop_nulls().value_counts(sort=True)
    if not names or len(counts) < 2:
        return []
    found = []
    looked_at = 1 if len(counts) == 2 else MOST_ACTIONS  # of two actions, what tells one tells the other
    for action in counts["action"].reverse().head(looked_at):
        positive = (sample["action"] == action).fill_null(value=False).to_numpy()
        found += find_leaks(sample.select(names), positive, f"action {action}", draw=sample["_draw"].to_numpy())
    return found


def _exposure_leaks(sample: pl.DataFrame, items: SideTable | None) -> list[Leak]:
    if "label" not in sample.columns:
        return []
    positive = (sample["label"] > 0).to_numpy()
    names = [name for name in sample.columns if name.startswith(("candidate.", "context.")) or name == "place"]
    columns = sample.select(names)
    if items is not None:
        known = sample.select("item").join(
            items.frame.rename({"id": "item"}), on="item", how="left", maintain_order="left"
        )
        plain = [n for n in known.columns if n != "item" and not isinstance(known[n].dtype, pl.List)]
        columns = columns.with_columns(known[name].alias(f"items.{name}") for name in plain)
    return find_leaks(columns, positive, "label", draw=sample["_draw"].to_numpy())


def _counting_columns(spec: DataSpec, items: SideTable, intake: Intake, item_counts: Array) -> list[Finding]:
    """Find item columns that look like counts over the whole log, its future included."""
    if spec.items is None:
        return []
    from scipy.stats import spearmanr

    counts = pl.DataFrame({"id": intake.items.ids, "count": item_counts[: len(intake.items)]})
    aligned = items.frame.join(counts, on="id", how="inner").filter(pl.col("count") > 0)
    found = []
    for name, given in spec.items.fields.items():
        if given.kind != "numeric" or len(aligned) < 20:
            continue
        values = aligned[name].cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
        good = np.isfinite(values)
        if good.sum() < 20 or len(np.unique(values[good])) < 3:
            continue
        correlation = float(spearmanr(values[good], aligned["count"].to_numpy()[good]).statistic)
        if correlation > LOOKS_LIKE_A_COUNT:
            found.append(
                Finding(
                    severity="problem",
                    what=f"item column {name} follows how often items occur in the whole log ({correlation:.2f})",
                    do="if it counts events, it knows the future: leave it out (popularity is made point-in-time)",
                )
            )
    return found


def _findings(report: ValidationReport, spec: DataSpec, label_leaks: Sequence[Leak]) -> list[Finding]:
    found: list[Finding] = []

    def say(severity: Literal["problem", "notice"], what: str, do: str) -> None:
        found.append(Finding(severity=severity, what=what, do=do))

    for leak in label_leaks:
        say("problem", f"{leak.column} {leak.reason}", "leave it out unless it is truly known before the ranking")
    for leak in report.leaks:
        if leak not in label_leaks:
            do = f"harmless in histories; never use it to predict {leak.label} of the same event"
            say("notice", f"{leak.column} {leak.reason}: {leak.label}", do)
    if report.kept and report.rejected > 0.01 * report.read:
        say("problem", f"{report.rejected / report.read:.1%} of all rows are rejected", "see rejects.parquet for why")
    elif report.rejected:
        say("notice", f"{report.rejected} rows are rejected", "see rejects.parquet for why")
    for name, count in report.bad_numbers.items():
        say("notice", f"{count} cells of {name} are no numbers and count as missing", "check the column")
    for name, value in report.constant.items():
        say("notice", f"{name} never changes ({value})", "leave it out: it tells nothing")
    if report.events and report.duplicates > 0.01 * report.events:
        share = report.duplicates / report.events
        say("notice", f"{share:.1%} of events repeat another exactly", "were files exported twice? they are kept")
    if report.events and report.moments == report.users and report.events > report.users:
        say("problem", "every user has one time only", "no event has a history: is it the right time column?")
    if report.events and report.users and report.events / report.users < 2:
        say("notice", "users have fewer than two events on average", "histories will be empty; is `user` right?")
    if report.unknown_items.get("events", 0) > 0.05 * max(report.events, 1):
        say("notice", "over 5% of events are of items that the item table lacks", "do ids agree in spelling?")
    if report.first_ms is not None and report.last_ms is not None and report.events:
        day = 86_400_000
        if report.last_ms - report.first_ms < day:
            say("problem", "the log spans less than a day", "is the unit of time right? a split by time needs more")
        if report.first_ms < 10 * 365 * day:
            say("problem", "the log begins before 1980", "is the unit of time right?")
    if report.exposures and not 0 < report.exposures["positives"] < report.exposures["candidates"]:
        say("problem", "all exposures have the same label", "is `label` or `clicked` right?")
    return found


def validate(
    spec: DataSpec,
    *,
    out: str | Path | None = None,
    memory_mb: int = 512,
    progress: Progress | None = None,
) -> ValidationReport:
    """Read every file once and report what is in it.

    Args:
        out:       folder for report.json and rejects.parquet (file, row, reason, raw); None writes nothing.
        memory_mb: bound on what reading and sorting hold at once, MB.
        progress:  called with (stage, done, total).
    Raises:
        SpecError: the spec does not fit the files.
        DataError: a file cannot be read as a whole (truncated, not text).
        MissingSource: a file is not there.
    """
    files = source_files(spec)
    last_ms = not_after_ms(spec.not_after, spec.time_zone)
    report = ValidationReport(name=spec.name, time_zone=spec.time_zone, not_after_ms=last_ms)
    block_bytes = min(max(int(memory_mb * 1e6 / 96), 1 << 16), BLOCK_BYTES)
    rows = min(PARQUET_ROWS, max(block_bytes // 32, 1))
    with tempfile.TemporaryDirectory(prefix="sostenuto-validate-") as temporary:
        folder = Path(temporary)
        rejects = Rejects(folder / "rejects" if out is not None else None)
        intake = new_intake(spec, folder, rejects)
        meter = Meter(progress, "read", sum(path.stat().st_size for path in files))
        columns, event_sample, exposure_sample = _Columns(), RowSample(), RowSample()
        item_counts = np.zeros(0, np.int64)
        for frame in read_events(intake, last_ms=last_ms, block_bytes=block_bytes, parquet_rows=rows, meter=meter):
            columns.add(frame, [name for name in frame.columns if name not in {"row", "user", "item", "time_ms"}])
            event_sample.add(frame.drop("row", "user", "item", "time_ms"))
        total_events = intake.kept
        if spec.events:
            report.tables["events"] = TableCounts(read=intake.read, kept=intake.kept)
        if spec.exposures is not None:
            exposures = ExposureIntake(intake, folder / "exposures")
            shown_columns, label_sum = _Columns(), 0
            for frame in exposures.read(last_ms=last_ms, block_bytes=block_bytes, parquet_rows=rows, seen=meter.add):
                named = [name for name in frame.columns if name.startswith(("candidate.", "context.", "place"))]
                shown_columns.add(frame, named)
                exposure_sample.add(frame.select("item", "label", *named))
                label_sum += int((frame["label"] > 0).sum())
                if spec.positives_are_events:
                    events = exposures.events(frame)
                    total_events += len(events)
                    intake.add(events)
            report.tables["exposures"] = TableCounts(read=exposures.read_rows, kept=exposures.kept)
            report.exposures = exposures.summary() | {"positives": label_sum}
            report.missing |= {f"exposures {name}": count for name, count in shown_columns.missing.items()}
            total = int(report.exposures["candidates"])
            report.constant |= {f"exposures {n}": v for n, v in shown_columns.constant(total).items()}
        items = None if spec.items is None else read_table(spec, spec.items, rejects, seen=meter.add)
        users = None if spec.users is None else read_table(spec, spec.users, rejects, seen=meter.add)
        for name, table in (("items", items), ("users", users)):
            if table is not None:
                report.tables[name] = TableCounts(read=table.read, kept=len(table.frame))
        report.missing = columns.missing | report.missing
        report.constant = columns.constant(intake.kept) | report.constant
        report.bad_numbers = {name: count for name, count in intake.bad_numbers.items() if count}
        _add_tables(report, spec, items, users)
        if out is not None:
            rejects.write(Path(out) / "rejects.parquet")
        report.reasons = dict(sorted(rejects.reasons.items()))

        counting: list[Finding] = []
        if intake.spill.length:
            arranged = arrange(intake, folder, seed=0, memory_mb=memory_mb, progress=progress)
            counts = np.diff(arranged.behaviours.offsets)
            provisional = np.zeros(len(arranged.vocabularies["item"]), np.int64)
            first, last = [], []
            for start in range(0, total_events, PIECE):
                provisional += np.bincount(arranged.behaviours.item[start : start + PIECE], minlength=len(provisional))
                times = arranged.behaviours.time_ms[start : start + PIECE]
                first.append(int(times.min()))
                last.append(int(times.max()))
            item_counts = provisional[arranged.indices["item"][: len(intake.items)]]
            report.events, report.users = total_events, int((counts > 0).sum())
            report.items = int((item_counts > 0).sum())
            report.first_ms, report.last_ms = min(first), max(last)
            report.history_length = _lengths(counts[counts > 0])
            report.moments, report.tied_events, report.duplicates = _ties(arranged, intake.spill.dtype.names or ())
            report.actions = _named_counts(arranged, "action")
            report.unknown_items = _unknown(intake.items.ids, item_counts, items)
            user_counts = np.zeros(len(intake.users), np.int64)
            user_counts[: len(intake.user_counts)] = intake.user_counts
            report.unknown_users = _unknown(intake.users.ids, user_counts, users)
            if items is not None:
                report.unused_items = len(items.frame) - (report.items - report.unknown_items["ids"])
                counting = _counting_columns(spec, items, intake, item_counts)
        label_leaks = _exposure_leaks(exposure_sample.frame(), items)
        report.leaks = [*label_leaks, *_event_leaks(event_sample.frame())]
        report.findings = [*_findings(report, spec, label_leaks), *counting]
        report.findings.sort(key=lambda finding: finding.severity != "problem")
    if out is not None:
        text = json.dumps(report.as_json(), indent=2, ensure_ascii=False)
        (Path(out) / "report.json").write_text(text + "\n", encoding="utf-8")
    return report


def _named_counts(arranged: Arranged, name: str) -> dict[str, int]:
    if name not in arranged.vocabularies:
        return {}
    ids = arranged.vocabularies[name]
    column = getattr(arranged.behaviours, name)
    counts = np.zeros(len(ids), np.int64)
    for start in range(0, len(column), PIECE):
        counts += np.bincount(column[start : start + PIECE], minlength=len(ids))
    named = zip(ids.to_list()[2:], counts[2:].tolist(), strict=True)
    return dict(sorted(named, key=lambda pair: (-pair[1], pair[0])))


def _unknown(ids: pl.Series, counts: Array, table: SideTable | None) -> dict[str, int]:
    """Return how many ids of the log, and how many of their events, a table lacks."""
    if table is None:
        return {}
    lacking = pl.DataFrame({"id": ids, "count": counts}).filter(pl.col("count") > 0)
    lacking = lacking.join(table.frame.select("id"), on="id", how="anti")
    return {"ids": len(lacking), "events": int(lacking["count"].sum())}


def _add_tables(report: ValidationReport, spec: DataSpec, items: SideTable | None, users: SideTable | None) -> None:
    """Add what the columns of the side tables lack."""
    for name, table, source in (("items", items, spec.items), ("users", users, spec.users)):
        if table is None or source is None:
            continue
        columns = _Columns()
        plain = [n for n in table.frame.columns if n != "id" and not isinstance(table.frame[n].dtype, pl.List)]
        columns.add(table.frame, plain)
        report.missing |= {f"{name} {column}": count for column, count in columns.missing.items()}
        report.constant |= {f"{name} {column}": v for column, v in columns.constant(len(table.frame)).items()}
        ids = with_specials(table.frame["id"])
        aligned = pl.DataFrame({"id": ids}).join(table.frame, on="id", how="left", maintain_order="left")
        built = build_fields(aligned, source.fields, np.zeros(len(ids), np.int64), source.missing)
        report.bad_numbers |= {f"{name} {column}": count for column, count in built.bad_cells.items() if count}


__all__ = ["Finding", "TableCounts", "ValidationReport", "validate"]
