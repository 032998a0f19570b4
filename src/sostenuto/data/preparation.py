"""A raw log in, the prepared folder out: deterministic, atomic, memory bounded.

Way of an event: typed (parsing) -> coded and spilled as a record (spilling) -> cut into ranges of users, sorted by
user and time -> the protocol says which events training may see -> indices in order of training frequency -> arrays.
Everything is written into a sibling `<out>.partial-...`, forced to the disk, and renamed at the very end.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sostenuto.data.exposure_log import ExposureIntake
from sostenuto.data.finishing import partial_folder
from sostenuto.data.parsing import event_columns, not_after_ms, parse_events
from sostenuto.data.prefetching import prefetched
from sostenuto.data.prepared import (
    FORMAT_VERSION,
    Array,
    Behaviours,
    Manifest,
    PreparedData,
    arrays_hash,
    write_manifest,
    write_requests,
)
from sostenuto.data.protocols import load_protocol
from sostenuto.data.protocols.core import Core, MadeRequests, event_users
from sostenuto.data.reading import BLOCK_BYTES, PARQUET_ROWS, read_chunks
from sostenuto.data.rejects import Rejects
from sostenuto.data.side_tables import Built, SideTable, build_fields, indexed, read_table, weighted_moments
from sostenuto.data.spec import DataSpec, ProtocolSpec
from sostenuto.data.spilling import (
    SORT_COPIES,
    ArrayFile,
    Spill,
    mixed,
    order_events,
    records_of,
    user_ranges,
)
from sostenuto.data.vocabularies import GrowingVocabulary, by_frequency, write_vocabulary
from sostenuto.ops.geohash import geohash_centres
from sostenuto.schema.errors import DataError
from sostenuto.schema.features import FIRST_KNOWN, FeatureSpec, Field

Progress = Callable[[str, int, int], None]  # stage, done, total

PIECE = 1 << 20  # rows of a sorted array handled at once; sums run piece by piece, so it is part of the result
SMALLEST_MEMORY_MB = 64
DEFAULT_MEMORY_MB = 1_500
MOST_RANGES = 4_096  # files that the sort may cut the log into


@dataclass(slots=True)
class Intake:
    """What reading the log leaves behind: spilled records, vocabularies by arrival, counts."""

    spec: DataSpec
    spill: Spill
    users: GrowingVocabulary
    items: GrowingVocabulary
    texts: dict[str, GrowingVocabulary]  # action, place, categorical fields
    rejects: Rejects
    item_levels: dict[str, pl.DataFrame] = field(default_factory=dict)  # level -> item code, text, count
    user_counts: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    read: int = 0
    kept: int = 0
    bad_numbers: dict[str, int] = field(default_factory=dict)

    def add(self, frame: pl.DataFrame) -> None:
        """Code and spill typed events."""
        if not len(frame):
            return
        names = self.spill.dtype.names or ()
        user = self.users.encode(frame["user"])
        item = self.items.encode(frame["item"])
        columns: dict[str, Array] = {"user": user, "item": item, "time_ms": frame["time_ms"].to_numpy()}
        for name in names[3:]:
            kind = self.spill.dtype[name]
            if name == "session":
                columns[name] = (
                    frame[name].hash().set(frame[name].is_null(), 0).to_numpy()
                    if name in frame.columns
                    else np.zeros(len(frame), np.uint64)
                )
            elif kind == np.float32:
                columns[name] = (
                    frame[name].to_numpy() if name in frame.columns else np.full(len(frame), np.nan, np.float32)
                )
            elif name in frame.columns:
                columns[name] = self.texts[name].encode(frame[name])
            else:
                columns[name] = np.full(len(frame), -1, np.int32)
        self.spill.append(records_of(columns, self.spill.dtype))
        counts = np.bincount(user, minlength=len(self.users))
        counts[: len(self.user_counts)] += self.user_counts
        self.user_counts = counts
        for level in [name for name in frame.columns if name.startswith("category.")]:
            pairs = pl.DataFrame({"item": item, "text": frame[level]}).drop_nulls()
            pairs = pairs.group_by("item", "text").agg(pl.len().cast(pl.Int64).alias("count"))
            if level in self.item_levels:
                both = pl.concat([self.item_levels[level], pairs])
                pairs = both.group_by("item", "text").agg(pl.col("count").sum())
            self.item_levels[level] = pairs


def has_exposed_places(spec: DataSpec) -> bool:
    """Whether exposures happen at places."""
    return spec.exposures is not None and spec.exposures.place is not None


def record_dtype(spec: DataSpec) -> np.dtype[Any]:
    """Return the fixed-width record of one spilled event: codes, time, value, fields."""
    columns: list[tuple[str, str]] = [("user", "<i4"), ("item", "<i4"), ("time_ms", "<i8")]
    if any(source.action is not None for source in spec.events) or spec.positives_are_events:
        columns.append(("action", "<i4"))
    if any(source.value is not None for source in spec.events):
        columns.append(("value", "<f4"))
    exposed_place = spec.positives_are_events and has_exposed_places(spec)
    if any(source.place is not None for source in spec.events) or exposed_place:
        columns.append(("place", "<i4"))
    if any(source.session is not None for source in spec.events):
        columns.append(("session", "<u8"))
    for name, kind in spec.event_fields.items():
        columns.append((f"field.{name}", "<i4" if kind == "categorical" else "<f4"))
    return np.dtype(columns)


def new_intake(spec: DataSpec, folder: Path, rejects: Rejects) -> Intake:
    """Return an empty intake that spills below `folder`."""
    dtype = record_dtype(spec)
    coded = [name for name in (dtype.names or ())[3:] if dtype[name] == np.int32]
    return Intake(
        spec=spec,
        spill=Spill(folder / "events.records", dtype),
        users=GrowingVocabulary(),
        items=GrowingVocabulary(),
        texts={name: GrowingVocabulary() for name in [*coded, *(["place"] if has_exposed_places(spec) else [])]},
        rejects=rejects,
    )


class Meter:
    """Adds up the bytes read of all files and tells the caller."""

    def __init__(self, progress: Progress | None, stage: str, total: int) -> None:
        self.progress, self.stage, self.total, self.done = progress, stage, total, 0

    def add(self, amount: int) -> None:
        """Say that `amount` more is done."""
        self.done += amount
        if self.progress is not None:
            self.progress(self.stage, min(self.done, self.total), self.total)


def source_files(spec: DataSpec) -> list[Path]:
    """Return every file that the spec names, each once."""
    sources = [*spec.events, *(s for s in (spec.exposures, spec.items, spec.users) if s is not None)]
    return list(dict.fromkeys(path for source in sources for path in spec.paths(source)))


def read_events(
    intake: Intake, *, last_ms: int, block_bytes: int, parquet_rows: int, meter: Meter
) -> Iterator[pl.DataFrame]:
    """Read all event files into the intake; yields the typed rows of every chunk, for those who look on."""
    for source in intake.spec.events:
        columns = event_columns(source)
        for path in intake.spec.paths(source):
            consumed = 0
            chunks = read_chunks(path, source, columns, block_bytes=block_bytes, parquet_rows=parquet_rows)
            typed = ((chunk, parse_events(chunk, source, last_ms=last_ms)) for chunk in chunks)
            for chunk, parsed in prefetched(typed):
                intake.read += chunk.read
                intake.kept += len(parsed.frame)
                intake.rejects.add(parsed.rejects)
                for name, count in parsed.bad_numbers.items():
                    intake.bad_numbers[name] = intake.bad_numbers.get(name, 0) + count
                intake.add(parsed.frame)
                meter.add(chunk.consumed - consumed)
                consumed = chunk.consumed
                yield parsed.frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Arranged:
    """All events sorted by user and time, mapped from disk; indices are ranks in text order (provisional)."""

    behaviours: Behaviours
    session: Array | None
    vocabularies: dict[str, pl.Series]  # provisional, specials included
    indices: dict[str, Array]  # per vocabulary: code by arrival -> provisional index


def _open(folder: Path, name: str) -> Array:
    array: Array = np.load(folder / f"{name}.npy", mmap_mode="r")
    return array


def _sorted_range(spilled: Spill, seed: int) -> dict[str, Array]:
    """Return the columns of a range in order; its file is used up."""
    records = spilled.all()
    spilled.remove()
    names = spilled.dtype.names or ()
    columns = {name: np.ascontiguousarray(records[name]) for name in names}
    del records
    content = [name for name in names if name not in {"user", "time_ms", "session"}]
    order = order_events(columns, seed, content=content)
    return {name: columns.pop(name)[order] for name in names}


def arrange(intake: Intake, folder: Path, *, seed: int, memory_mb: int, progress: Progress | None) -> Arranged:
    """Sort the spilled events by user and time within the memory allowed; the spill is used up."""
    dtype, total = intake.spill.dtype, intake.spill.length
    names = dtype.names or ()
    user_ids, user_index = intake.users.ranks()
    item_ids, item_index = intake.items.ranks()
    vocabularies = {"user": user_ids, "item": item_ids}
    remaps = {"user": user_index, "item": item_index}
    for name, vocabulary in intake.texts.items():
        vocabularies[name], remaps[name] = vocabulary.ranks()
    counts = np.zeros(len(user_ids), np.int64)
    counts[user_index[: len(intake.user_counts)]] = intake.user_counts

    most = max(int(memory_mb * 1e6 / 4 / (dtype.itemsize * SORT_COPIES)), 1)  # two ranges at once, half of the memory
    most = max(most, -(-total // MOST_RANGES))
    bounds = user_ranges(counts, most)
    parts = [Spill(folder / f"range-{at:05d}.records", dtype) for at in range(len(bounds) - 1)]
    part_of_user = np.repeat(np.arange(len(parts), dtype=np.uint16), np.diff(bounds))
    rows = min(PIECE, max(most // 4, 1))
    for piece in intake.spill.pieces(rows):
        for name in set(remaps) & set(names):
            piece[name] = remaps[name][piece[name]]
        if len(parts) == 1:
            parts[0].append(piece)
            continue
        part = part_of_user[piece["user"]]
        order = np.argsort(part, kind="stable")  # a radix sort, for 16 bits
        edges = np.searchsorted(part[order], np.arange(len(parts) + 1))
        for at in np.flatnonzero(np.diff(edges)).tolist():
            parts[at].append(piece[order[edges[at] : edges[at + 1]]])
    intake.spill.remove()

    stored = [name for name in names if name not in {"user", "session"}]
    files = {name: ArrayFile(folder / f"{name}.npy", dtype[name], total) for name in stored}
    if "session" in names:
        files["session"] = ArrayFile(folder / "session.npy", np.int32, total)
    done = 0
    for columns in prefetched(_sorted_range(spilled, seed) for spilled in parts):
        for name in stored:
            files[name].append(columns[name])
        if "session" in names:
            files["session"].append(session_ordinals(*(columns[name] for name in ("user", "time_ms", "session"))))
        done += len(columns["user"])
        if progress is not None:
            progress("sort", done, total)
    for file in files.values():
        file.close()

    def column(name: str, absent: Any, kind: type) -> Array:
        return _open(folder, name) if name in files else np.broadcast_to(np.array(absent, kind), (total,))

    behaviours = Behaviours(
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        item=_open(folder, "item"),
        time_ms=_open(folder, "time_ms"),
        action=column("action", 0, np.int32),
        value=column("value", np.nan, np.float32),
        place=column("place", 0, np.int32),
        fields={name: _open(folder, f"field.{name}") for name in intake.spec.event_fields},
    )
    session = _open(folder, "session") if "session" in files else None
    return Arranged(behaviours=behaviours, session=session, vocabularies=vocabularies, indices=remaps)


def session_ordinals(user: Array, time_ms: Array, session: Array) -> Array:
    """Number the sessions of each user in order of their first event; rows are sorted by user and time.

    An event without a session (0) makes one with the others of its time.
    """
    session = np.where(session == 0, mixed(time_ms.astype(np.int64).view(np.uint64)), session)
    frame = pl.DataFrame({"user": user, "session": session}).with_row_index("row")
    first = pl.col("row").min().over("user", "session")
    return frame.select(first.rank("dense").over("user").cast(pl.Int32))["row"].to_numpy()


def _counted(values: Array, training: Array, size: int) -> Array:
    counts = np.zeros(size, np.int64)
    for start in range(0, len(values), PIECE):
        chosen = values[start : start + PIECE][training[start : start + PIECE]]
        counts += np.bincount(chosen, minlength=size)
    return counts


def _moments(values: Array, training: Array, *, log: bool) -> tuple[float, float]:
    """Return mean and deviation of the finite training values, in two passes of fixed pieces."""

    def pieces() -> Iterator[Array]:
        for start in range(0, len(values), PIECE):
            piece = values[start : start + PIECE][training[start : start + PIECE]].astype(np.float64)
            piece = piece[np.isfinite(piece)]
            yield np.log1p(np.maximum(piece, 0.0)) if log else piece

    count, total = 0, 0.0
    for piece in pieces():
        count, total = count + len(piece), total + float(piece.sum())
    if count == 0:
        return 0.0, 1.0
    mean = total / count
    std = float(np.sqrt(sum(float(np.square(piece - mean).sum()) for piece in pieces()) / count))
    return mean, std if std > 1e-12 * max(1.0, abs(mean)) else 1.0


def _write_column(path: Path, dtype: Any, values: Array, index: Array | None) -> None:
    file = ArrayFile(path, dtype, len(values))
    for start in range(0, len(values), PIECE):
        piece = values[start : start + PIECE]
        file.append(piece if index is None else index[piece])
    file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The final core and what the manifest needs beside it."""

    core: Core
    user_fields: tuple[Field, ...]
    indices: dict[str, Array]  # "item" and perhaps "place": provisional index -> final
    counts: dict[str, int]


def _event_categories(intake: Intake, level: str) -> pl.DataFrame:
    """Return id and category text of every item: what most of its events say, ties to the smaller text."""
    pairs = intake.item_levels.get(f"category.{level}")
    if pairs is None:
        return pl.DataFrame(schema={"id": pl.String, f"category.{level}": pl.String})
    chosen = pairs.sort("item", pl.col("count"), "text", descending=[False, True, False])
    chosen = chosen.unique("item", keep="first", maintain_order=True)
    ids = intake.items.ids.gather(chosen["item"].cast(pl.UInt32))
    return pl.DataFrame({"id": ids, f"category.{level}": chosen["text"]})


def _item_table(intake: Intake, spec: DataSpec, table: SideTable | None, ids: pl.Series) -> pl.DataFrame:
    """Align all that is raw and known of items with the item vocabulary; null where nothing is known."""
    aligned = pl.DataFrame({"id": ids})
    if table is not None:
        aligned = aligned.join(table.frame, on="id", how="left", maintain_order="left")
    for level in spec.category_levels:
        if f"category.{level}" not in aligned.columns:
            said = _event_categories(intake, level)
            aligned = aligned.join(said, on="id", how="left", maintain_order="left")
    return aligned


def _write_items(
    folder: Path, intake: Intake, spec: DataSpec, table: SideTable | None, ids: pl.Series, training: Array
) -> tuple[pl.DataFrame, tuple[Field, ...], Built]:
    aligned = _item_table(intake, spec, table, ids)
    columns: dict[str, pl.Series] = {"item_id": ids}
    levels = []
    vocabularies: dict[str, pl.Series] = {}
    for level in spec.category_levels:
        names, index = indexed(aligned[f"category.{level}"], training)
        index[1] = 1  # the unknown item is of unknown category
        columns[f"category.{level}"] = pl.Series(index)
        vocabularies[level] = names
        levels.append(Field(name=level, kind="categorical", size=len(names)))
    if spec.items is not None:
        built = build_fields(aligned, spec.items.fields, training, spec.items.missing)
    else:
        built = Built()
    built.vocabularies |= vocabularies
    for name, vocabulary in built.vocabularies.items():
        write_vocabulary(folder, name, vocabulary)
    items = pl.DataFrame(columns | built.columns)
    items.write_parquet(folder / "items.parquet")
    return items, tuple(levels), built


def _write_users(
    folder: Path, spec: DataSpec, table: SideTable | None, ids: pl.Series, training: Array
) -> tuple[Field, ...]:
    if table is None or spec.users is None:
        return ()
    aligned = pl.DataFrame({"id": ids}).join(table.frame, on="id", how="left", maintain_order="left")
    built = build_fields(aligned, spec.users.fields, (training > 0).astype(np.int64), spec.users.missing)
    for name, vocabulary in built.vocabularies.items():
        write_vocabulary(folder, name, vocabulary)
    pl.DataFrame({"user_id": ids} | built.columns).write_parquet(folder / "users.parquet")
    return tuple(built.fields)


def provisional_core(spec: DataSpec, arranged: Arranged, exposures: Path | None) -> Core:
    """Return the core that a protocol sees before indices are final."""
    sizes = {name: len(ids) for name, ids in arranged.vocabularies.items()}
    return Core(
        name=spec.name,
        time_zone=spec.time_zone,
        behaviours=arranged.behaviours,
        items=pl.DataFrame({"item_id": arranged.vocabularies["item"]}),
        features=FeatureSpec(
            num_items=sizes["item"],
            num_item_rows=sizes["item"],
            num_actions=max(sizes.get("action", 0), FIRST_KNOWN),
            num_places=max(sizes.get("place", 0), FIRST_KNOWN),
            time_zone=spec.time_zone,
        ),
        vocabularies=_named(arranged.vocabularies),
        source_folder=spec.folder,
        exposures=exposures,
        session=arranged.session,
    )


def _named(vocabularies: dict[str, pl.Series]) -> dict[str, pl.Series]:
    return {name.removeprefix("field."): ids for name, ids in vocabularies.items()}


def finish(
    intake: Intake,
    arranged: Arranged,
    training: Array,
    folder: Path,
    *,
    items: SideTable | None,
    users: SideTable | None,
    progress: Progress | None,
) -> Finished:
    """Give every index its final value and write vocabularies, tables and behaviours."""
    spec, raw = intake.spec, arranged.behaviours
    provisional = arranged.vocabularies
    target = folder / "behaviours"
    total = len(raw.item)
    training = np.asarray(training, bool)
    if training.shape != (total,):
        raise DataError(f"is_training must return ({total},) flags, protocol returned {training.shape}; mend it")
    stages = 4 + len(raw.fields)
    meter = Meter(progress, "write", stages)

    counts = _counted(raw.item, training, len(provisional["item"]))
    item_ids, item_index = by_frequency(provisional["item"], counts, min_count=0)
    by_item = np.zeros(len(counts), np.int64)
    by_item[item_index] = counts
    num_rows = FIRST_KNOWN + int((counts[FIRST_KNOWN:] >= spec.vocabulary.min_item_count).sum())
    _write_column(target / "item.npy", np.int32, raw.item, item_index)
    _write_column(target / "time_ms.npy", np.int64, raw.time_ms, None)
    _write_column(target / "value.npy", np.float32, raw.value, None)
    meter.add(1)

    final: dict[str, pl.Series] = {"user": provisional["user"], "item": item_ids}
    indices = {"item": item_index}
    for name, dtype in (("action", np.int16), ("place", np.int32)):
        column = getattr(raw, name)
        index = None
        if name in provisional:
            ids = provisional[name]
            in_events = name in (intake.spill.dtype.names or ())  # places of exposures alone are all known
            frequency = _counted(column, training, len(ids))
            final[name], index = by_frequency(ids, frequency, min_count=int(in_events))
            indices[name] = index
            if len(final[name]) > np.iinfo(dtype).max:
                raise DataError(
                    f"{name} must have at most {np.iinfo(dtype).max} values, the log has {len(final[name])}"
                )
        _write_column(target / f"{name}.npy", dtype, column, index)
        meter.add(1)
    behaviour_fields = []
    for name, kind in spec.event_fields.items():
        column = raw.fields[name]
        if kind == "categorical":
            ids = provisional[f"field.{name}"]
            final[name], index = by_frequency(ids, _counted(column, training, len(ids)), min_count=1)
            _write_column(target / f"field.{name}.npy", np.int32, column, index)
            behaviour_fields.append(Field(name=name, kind="categorical", size=len(final[name])))
        else:
            _write_column(target / f"field.{name}.npy", np.float32, column, None)
            mean, std = _moments(column, training, log=False)
            behaviour_fields.append(Field(name=name, kind="numeric", mean=mean, std=std))
        meter.add(1)
    np.save(target / "offsets.npy", raw.offsets)
    for name, ids in final.items():
        write_vocabulary(folder, name, ids)

    item_table, levels, built = _write_items(folder, intake, spec, items, item_ids, by_item)
    by_user = np.zeros(len(raw.offsets) - 1, np.int64)
    for start in range(0, total, PIECE):
        stop = min(start + PIECE, total)
        by_user += np.bincount(event_users(raw, start, stop)[training[start:stop]], minlength=len(by_user))
    user_fields = _write_users(folder, spec, users, final["user"], by_user)
    has_value = any(source.value is not None for source in spec.events)
    value_mean, value_std = _moments(raw.value, training, log=True) if has_value else (0.0, 1.0)
    meter.add(1)
    behaviours = Behaviours(
        **{name: _open(target, name) for name in ("offsets", "item", "time_ms", "action", "value", "place")},
        fields={name: _open(target, f"field.{name}") for name in spec.event_fields},
    )
    core = Core(
        name=spec.name,
        time_zone=spec.time_zone,
        behaviours=behaviours,
        items=item_table,
        features=FeatureSpec(
            num_items=len(item_ids),
            num_item_rows=num_rows,
            categories=levels,
            num_actions=max(len(final.get("action", ())), FIRST_KNOWN),
            num_places=max(len(final.get("place", ())), FIRST_KNOWN),
            item_fields=tuple(built.fields),
            behaviour_fields=tuple(behaviour_fields),
            has_value=has_value,
            value_mean=value_mean,
            value_std=value_std,
            time_zone=spec.time_zone,
            place_points=_place_points(spec, final),
        ),
        vocabularies=final | built.vocabularies,
        source_folder=spec.folder,
        session=arranged.session,
    )
    bad_cells = {f"bad_cells.{name}": count for name, count in built.bad_cells.items() if count}
    counted = bad_cells | {
        "events": total,
        "training_events": int(training.sum()),
        "users": int((np.diff(raw.offsets) > 0).sum()),
        "items": len(item_ids) - FIRST_KNOWN,
        "items_with_rows": num_rows - FIRST_KNOWN,
    }
    return Finished(core=core, user_fields=user_fields, indices=indices, counts=counted)


def _place_points(spec: DataSpec, vocabularies: dict[str, pl.Series]) -> tuple[tuple[float, float], ...]:
    """Return where the known places are, where their ids are geohashes."""
    if spec.places == "names" or "place" not in vocabularies:
        return ()
    try:
        centres = geohash_centres(vocabularies["place"].to_list()[FIRST_KNOWN:])
    except ValueError as error:
        raise DataError(f"places = 'geohash' needs geohashes in `place`: {error}") from error
    return tuple((round(a, 7), round(b, 7)) for a, b in centres.tolist())  # a centimetre


def _file_records(spec: DataSpec, files: list[Path]) -> list[dict[str, Any]]:
    records = []
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        inside = path.is_relative_to(spec.folder)
        name = str(path.relative_to(spec.folder)) if inside else path.name
        records.append({"file": name, "bytes": path.stat().st_size, "sha256": digest})
    return sorted(records, key=lambda record: str(record["file"]))


def protocol_of(spec: DataSpec) -> ProtocolSpec:
    """Return the protocol that the spec names, or the one that fits: true impressions first, else by time."""
    if spec.protocol is not None:
        return spec.protocol
    return ProtocolSpec(name="global-time" if spec.exposures is None else "exposures")


def prepare(
    spec: DataSpec,
    out: str | Path,
    *,
    seed: int = 0,
    memory_mb: int = DEFAULT_MEMORY_MB,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PreparedData:
    """Write the prepared folder of a log.

    The same log, spec and seed give the same arrays, whatever the memory, the order of the files and their cut.

    Args:
        spec:      what the columns mean; see `load_spec`.
        out:       folder to make; must not exist or be empty, unless `overwrite`.
        seed:      draws the order of events of one moment, and whatever the protocol samples.
        memory_mb: bound on what reading and sorting hold at once, MB. Vocabularies, side tables and requests come on
            top: they grow with distinct ids and with requests. Flags and the starts of moments add about 10 bytes an
            event; everything longer is mapped from files, whose pages the system takes back when it needs them.
        overwrite: replace an earlier prepared folder; any other folder is refused.
        progress:  called with (stage, done, total).
    Raises:
        SpecError: the spec does not fit the files.
        DataError: a file cannot be read, no usable event is in the log, or `out` is taken.
        MissingSource: a file is not there.
    """
    out = Path(out)
    if memory_mb < SMALLEST_MEMORY_MB:
        raise DataError(f"memory_mb must be at least {SMALLEST_MEMORY_MB}, got {memory_mb}; give it more")
    chosen = protocol_of(spec)
    protocol = load_protocol(chosen.name)
    files = source_files(spec)
    last_ms = not_after_ms(spec.not_after, spec.time_zone)
    block_bytes = min(max(int(memory_mb * 1e6 / 96), 1 << 16), BLOCK_BYTES)
    with partial_folder(out, overwrite=overwrite) as folder, ThreadPoolExecutor(1) as background:
        file_records = background.submit(_file_records, spec, files)
        spill = folder / "spill"
        spill.mkdir()
        rejects = Rejects(spill / "rejects")
        intake = new_intake(spec, spill, rejects)
        meter = Meter(progress, "read", sum(path.stat().st_size for path in files))
        rows = min(PARQUET_ROWS, max(block_bytes // 32, 1))
        for _ in read_events(intake, last_ms=last_ms, block_bytes=block_bytes, parquet_rows=rows, meter=meter):
            pass
        exposures = ExposureIntake(intake, spill / "exposures") if spec.exposures is not None else None
        if exposures is not None:
            for shown in exposures.read(last_ms=last_ms, block_bytes=block_bytes, parquet_rows=rows, seen=meter.add):
                if spec.positives_are_events:
                    intake.add(exposures.events(shown))
        items = None if spec.items is None else read_table(spec, spec.items, rejects, seen=meter.add)
        users = None if spec.users is None else read_table(spec, spec.users, rejects, seen=meter.add)
        if items is not None:
            intake.items.encode(items.frame["id"])
        rejects.write(folder / "rejects.parquet")
        if not intake.spill.length and (exposures is None or not exposures.kept):
            raise DataError(
                f"a log must have at least one usable event, all {intake.read} rows were rejected "
                f"({dict(rejects.reasons)}); run `sostenuto data validate`"
            )
        counts = {"rows_read": intake.read, "rows_kept": intake.kept}
        counts |= {f"rejected.{reason}": count for reason, count in sorted(rejects.reasons.items())}
        counts |= {f"bad_numbers.{name}": count for name, count in sorted(intake.bad_numbers.items()) if count}

        arranged = arrange(intake, spill, seed=seed, memory_mb=memory_mb, progress=progress)
        log = None if exposures is None else exposures.arrange(arranged.indices)
        training = protocol.is_training(provisional_core(spec, arranged, log), settings=chosen.settings)
        finished = finish(intake, arranged, training, folder, items=items, users=users, progress=progress)
        del training, arranged  # the provisional arrays are mapped: let go of their pages
        core = finished.core
        for name, table in (("item", items), ("user", users)):
            if table is not None:
                counts |= {f"{name}_rows_read": table.read, f"{name}_rows_kept": len(table.frame)}
        if exposures is not None:
            core = replace(core, exposures=exposures.finish(finished.indices))
            counts |= {"exposure_rows_read": exposures.read_rows, "exposure_rows_kept": exposures.kept}
        if progress is not None:
            progress("requests", 0, 1)
        made = protocol.make_requests(core, folder, seed=seed, settings=chosen.settings)
        for split, requests in made.requests.items():
            write_requests(folder, split, requests)
        features = _with_request_fields(core.features, made, finished.user_fields)
        if progress is not None:
            progress("requests", 1, 1)
        counts |= finished.counts | dict(made.counts)
        shutil.rmtree(spill)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=spec.name,
            source={
                "files": file_records.result(),
                "spec": spec.model_dump(mode="json", exclude={"folder"}, exclude_defaults=True),
                "terms": spec.terms,
                "not_after_ms": last_ms,
            },
            time_zone=spec.time_zone,
            seed=seed,
            counts=counts,
            features=features,
            protocol=made.protocol,
            arrays_hash=arrays_hash(folder),
            made_with={"python": platform.python_version(), "numpy": np.__version__, "polars": pl.__version__},
        )
        write_manifest(folder, manifest)
    return PreparedData(out)


def _with_request_fields(features: FeatureSpec, made: MadeRequests, users: tuple[Field, ...]) -> FeatureSpec:
    return replace(
        features, candidate_fields=tuple(made.candidate_fields), context_fields=(*made.context_fields, *users)
    )


__all__ = [
    "DEFAULT_MEMORY_MB",
    "PIECE",
    "SMALLEST_MEMORY_MB",
    "Arranged",
    "Finished",
    "Intake",
    "Meter",
    "Progress",
    "arrange",
    "finish",
    "new_intake",
    "prepare",
    "protocol_of",
    "provisional_core",
    "read_events",
    "record_dtype",
    "session_ordinals",
    "source_files",
    "weighted_moments",
]
