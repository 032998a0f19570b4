"""DataSpec: a small TOML file says what the columns of a log mean.

Tables: `[events]` (one, or several as `[[events]]`), `[exposures]`, `[items]`, `[users]`, `[protocol]`, `[vocabulary]`.
Unknown keys are refused, with the nearest known one. docs/your-own-data.md has complete examples.
"""

from __future__ import annotations

import datetime
import glob
import json
import tomllib
import zoneinfo
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sostenuto.schema.errors import MissingSource, SpecError, did_you_mean

Unit = Literal["s", "ms", "us", "ns", "iso"]
FieldKind = Literal["categorical", "numeric"]
TableFieldKind = Literal["categorical", "numeric", "text", "multi", "vector"]

# names that other columns of the prepared folder already carry
RESERVED = {"user", "item", "time_ms", "action", "value", "place", "offsets", "prefix", "label", "list_id"}
# and names that every view of prepared data adds
RESERVED |= {"popularity", "popularity_28d", "popularity_place", "hour_of_day", "day_of_week"}


def _known_zone(zone: str) -> str:
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        near = did_you_mean(zone, zoneinfo.available_timezones())
        raise ValueError(f"must be an IANA time zone such as 'Europe/Berlin', got {zone!r}.{near}") from error
    return zone


Zone = Annotated[str, AfterValidator(_known_zone)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TimeColumn(_Table):
    """The column that holds event times.

    `unit` counts epoch seconds (s), ms, us or ns, or `iso` for ISO 8601 text; typed date and time columns of Parquet
    need no unit. `format` is a strptime format instead of a unit. `zone` is the zone of times that carry none.
    In the hour that clocks repeat, the earlier moment is meant; a time that clocks skip is rejected.
    """

    column: str
    unit: Unit | None = None
    format: str | None = None
    zone: Zone = "UTC"

    @model_validator(mode="after")
    def _one_way_to_read(self) -> TimeColumn:
        if self.format is not None and self.unit is not None:
            raise ValueError("time takes a unit or a format, got both; leave one out")
        if self.format is not None:
            probe = pl.Series([datetime.datetime(2020, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)])
            try:
                parsed = probe.dt.strftime(self.parsing_format).str.to_datetime(self.parsing_format, strict=False)
            except pl.exceptions.PolarsError as error:
                raise ValueError(f"format must be a strptime format, got {self.format!r}: {error}") from error
            if parsed.null_count():
                raise ValueError(f"format must tell a date, got {self.format!r}, which cannot read what it writes")
        return self

    @property
    def parsing_format(self) -> str:
        """The format as polars wants it: there `%.f` are the digits behind the point, `%f` would be nanoseconds."""
        return (self.format or "").replace(".%f", "%.f")


class Constant(_Table):
    """One value for all rows of a source, where the log has no such column."""

    constant: str


class EventField(_Table):
    """A further column of events or candidates."""

    kind: FieldKind
    column: str | None = None  # the field's own name where absent


class TableField(_Table):
    """A column of an item or user table."""

    kind: TableFieldKind
    column: str | None = None
    delimiter: str = "|"  # between the values of a multi-valued or vector column that is text
    width: int | None = Field(default=None, ge=1)  # columns kept of multi (the first ones) or vector
    # multi: default the longest row, at most 16; vector: default the length of the first row


class Files(_Table):
    """Where rows come from and how they are written. `files` are paths or globs, relative to the spec."""

    files: tuple[str, ...]
    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None  # default: by suffix
    separator: str | None = None  # one character; default "," for csv and tab for tsv
    quote: str = '"'  # "" where quote characters mean nothing
    header: tuple[str, ...] | None = None  # column names of a file that has no header line
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    multiline: bool = False  # quoted fields may hold line ends; slower
    missing: tuple[str, ...] = ("",)  # texts that mean "no value"

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _readable(self) -> Files:
        if not self.files:
            raise ValueError("files must name at least one path, got none")
        if self.separator is not None and len(self.separator.encode()) != 1:
            raise ValueError(f"separator must be one ASCII character, got {self.separator!r}")
        if len(self.quote.encode()) > 1:
            raise ValueError(f"quote must be one ASCII character or empty, got {self.quote!r}")
        return self


def _as_fields(value: Any) -> Any:
    """Let `channel = "categorical"` stand for `channel = { kind = "categorical" }`."""
    if not isinstance(value, dict):
        return value
    return {name: {"kind": given} if isinstance(given, str) else given for name, given in value.items()}


def _as_time(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


class EventSource(Files):
    """A log of what users did: one row, one event."""

    user: str
    item: str
    time: TimeColumn
    action: str | Constant | None = None
    value: str | None = None  # number: amount, rating, dwell; text that is no number counts as missing
    place: str | None = None
    session: str | None = None
    item_categories: tuple[str, ...] = ()  # the item's category path, coarse to fine, where the log itself carries it
    fields: dict[str, EventField] = {}

    _fields = field_validator("fields", mode="before")(_as_fields)
    _time = field_validator("time", mode="before")(_as_time)


class ExposureSource(Files):
    """A log of what users were shown, and of what they took.

    Either one row per request (`candidates`, and `labels` or `clicked`) or one row per candidate (`item`, `label`,
    `request`). Candidate fields are then lists like the candidates, or one value a row.
    """

    user: str
    time: TimeColumn
    place: str | None = None
    request: str | None = None  # request id; needed with one row per candidate
    item: str | None = None
    label: str | None = None  # 0 / 1, or a number
    candidates: str | None = None  # list, or text joined by `delimiter`
    labels: str | None = None  # list of the same length
    clicked: str | None = None  # the item or items taken, in place of `labels`
    delimiter: str = "|"
    candidate_fields: dict[str, EventField] = {}
    context_fields: dict[str, EventField] = {}
    positives_are_events: bool | None = None  # default: only where the spec has no events

    _fields = field_validator("candidate_fields", "context_fields", mode="before")(_as_fields)
    _time = field_validator("time", mode="before")(_as_time)

    @property
    def by_candidate(self) -> bool:
        """Whether a row is one candidate (else one request)."""
        return self.item is not None

    @model_validator(mode="after")
    def _one_layout(self) -> ExposureSource:
        if self.by_candidate:
            if self.candidates or self.labels or self.clicked:
                raise ValueError("exposures take `item`, `label` (row per candidate) or `candidates`, got both")
            if not self.label or not self.request:
                raise ValueError("exposures with one row per candidate must name `label` and `request`")
        else:
            if not self.candidates:
                raise ValueError("exposures must name `item` (row per candidate) or `candidates` (row per request)")
            if bool(self.labels) == bool(self.clicked) or self.label:
                raise ValueError("exposures with one row per request must name either `labels` or `clicked`")
            if not self.delimiter:
                raise ValueError("delimiter must not be empty")
        return self


class ItemTable(Files):
    """What is known of items, whatever the time."""

    item: str
    categories: tuple[str, ...] = ()  # columns of the category path, coarse to fine
    category_path: str | None = None  # or one column that holds the whole path, joined by `path_delimiter`
    path_delimiter: str = ">"
    path_levels: tuple[str, ...] = ()  # names of its levels, coarse to fine
    fields: dict[str, TableField] = {}

    _fields = field_validator("fields", mode="before")(_as_fields)

    @model_validator(mode="after")
    def _one_path(self) -> ItemTable:
        if self.categories and self.category_path:
            raise ValueError("items take `categories` or `category_path`, got both; leave one out")
        if bool(self.category_path) != bool(self.path_levels):
            raise ValueError("items must name `path_levels`, coarse to fine, together with `category_path`")
        return self

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the category levels, coarse to fine."""
        return self.path_levels if self.category_path else self.categories


class UserTable(Files):
    """What is known of users, whatever the time."""

    user: str
    fields: dict[str, TableField] = {}

    _fields = field_validator("fields", mode="before")(_as_fields)


class VocabularySpec(_Table):
    """How raw ids become indices."""

    min_item_count: int = Field(default=5, ge=1)  # training events that earn an item its own embedding row


class ProtocolSpec(_Table):
    """How requests are made: the protocol's name; every further key is a setting of that protocol."""

    name: str
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "settings" not in value:
            name = {"name": value["name"]} if "name" in value else {}
            return name | {"settings": {key: given for key, given in value.items() if key != "name"}}
        return value


class DataSpec(_Table):
    """A log and its side tables: files, columns, protocol."""

    name: str
    folder: Path = Path()  # files are relative to it; it is relative to the spec's own folder
    time_zone: Zone = "UTC"  # zone of local hours and weekdays
    places: Literal["names", "geohash"] = "names"  # what the ids in `place` columns are; geohashes have coordinates
    not_after: datetime.datetime | datetime.date | None = None  # later times are rejected as future; default: now
    events: tuple[EventSource, ...] = ()
    exposures: ExposureSource | None = None
    items: ItemTable | None = None
    users: UserTable | None = None
    protocol: ProtocolSpec | None = None
    vocabulary: VocabularySpec = VocabularySpec()
    terms: str = ""  # licence or terms of use, shown and kept in the manifest

    @field_validator("events", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict | EventSource) else value

    @model_validator(mode="after")
    def _whole(self) -> DataSpec:
        if not self.events and self.exposures is None:
            raise ValueError("a spec must have [events] or [exposures], got neither")
        if self.protocol is not None and self.protocol.name == "exposures" and self.exposures is None:
            raise ValueError("protocol 'exposures' needs the table [exposures]")
        for source in self.events[1:]:
            same = {name: field.kind for name, field in source.fields.items()}
            first = {name: field.kind for name, field in self.events[0].fields.items()}
            if any(first.get(name, kind) != kind for name, kind in same.items()):
                raise ValueError("events fields of one name must have one kind in all sources")
        if len({source.item_categories for source in self.events if source.item_categories}) > 1:
            raise ValueError("item_categories must be the same in all event sources")
        if self.category_levels != self._event_levels and self._event_levels:
            raise ValueError("a category path comes from [events] item_categories or from [items], got both")
        names = [*self.category_levels, *self.event_fields]
        names += [] if self.items is None else [*self.items.fields]
        names += [] if self.users is None else [*self.users.fields]
        if self.exposures is not None:
            names += [*self.exposures.candidate_fields, *self.exposures.context_fields]
        for name in names:
            if name in RESERVED or names.count(name) > 1 or not name or "/" in name or "." in name:
                raise ValueError(
                    f"field and category names must be unique, without '.' or '/', and not one of "
                    f"{', '.join(sorted(RESERVED))}; got {name!r}; rename it and give `column`"
                )
        return self

    @property
    def _event_levels(self) -> tuple[str, ...]:
        return next((source.item_categories for source in self.events if source.item_categories), ())

    @property
    def category_levels(self) -> tuple[str, ...]:
        """Names of the category path, coarse to fine."""
        levels = () if self.items is None else self.items.levels
        return levels or self._event_levels

    @property
    def event_fields(self) -> dict[str, FieldKind]:
        """Further event columns by name, over all sources."""
        return {name: field.kind for source in self.events for name, field in source.fields.items()}

    @property
    def positives_are_events(self) -> bool:
        """Whether what was taken in an exposure becomes an event."""
        if self.exposures is None:
            return False
        given = self.exposures.positives_are_events
        return not self.events if given is None else given

    def paths(self, source: Files) -> list[Path]:
        """Return the files of `source` in a fixed order.

        Raises:
            MissingSource: a path or glob matches no file.
        """
        found: list[Path] = []
        for pattern in source.files:
            whole = self.folder / Path(pattern).expanduser()
            # glob.glob, not Path.glob: patterns may be absolute
            named = [str(whole)] if whole.is_file() else sorted(glob.glob(str(whole), recursive=True))  # noqa: PTH207
            files = [path for path in map(Path, named) if path.is_file()]
            if not files:
                raise MissingSource(f"files must match at least one file, {str(whole)!r} matches none; check `files`")
            found += files
        return list(dict.fromkeys(found))


def _models_at(location: Iterable[int | str]) -> type[BaseModel] | None:
    """Return the table that an error location lies in, to name its keys."""
    table: type[BaseModel] | None = DataSpec
    steps: dict[str, type[BaseModel]] = {
        "events": EventSource,
        "exposures": ExposureSource,
        "items": ItemTable,
        "users": UserTable,
        "vocabulary": VocabularySpec,
        "protocol": ProtocolSpec,
        "time": TimeColumn,
    }
    previous = ""
    for step in location:
        if isinstance(step, int):
            continue
        if previous in {"fields", "candidate_fields", "context_fields"}:
            table = TableField if table in (ItemTable, UserTable) else EventField
        elif step in steps:
            table = steps[step]
        previous = step
    return table


def explain(error: ValidationError, origin: str) -> str:
    """Say in one line per problem what a spec must be, and which known key is nearest."""
    lines = []
    for problem in error.errors():
        location = [step for step in problem["loc"] if step not in {"Constant", "str"}]
        name = ".".join(str(step) for step in location) or "spec"
        if problem["type"] == "extra_forbidden":
            table = _models_at(location[:-1])
            known = sorted(table.model_fields) if table is not None else []
            hint = did_you_mean(str(location[-1]), known)
            lines.append(f"{name} is not a known key.{hint} Known here: {', '.join(known)}")
        elif problem["type"] == "missing":
            lines.append(f"{name} is required, got nothing; add it")
        elif problem["type"] == "value_error":
            lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            shown = json.dumps(problem.get("input"), default=str)[:80]
            lines.append(f"{name}: {problem['msg']}, got {shown}")
    return f"{origin} is refused:\n  " + "\n  ".join(dict.fromkeys(lines))


def make_spec(tables: dict[str, Any], *, origin: str = "data spec") -> DataSpec:
    """Return the spec that the tables of a TOML file (or a dict of the same shape) describe.

    Raises:
        SpecError: an unknown key, a missing one, or a value that cannot be.
    """
    try:
        return DataSpec.model_validate(tables)
    except ValidationError as error:
        raise SpecError(explain(error, origin)) from error


def load_spec(path: str | Path) -> DataSpec:
    """Read a spec; its relative paths count from the folder that the spec lies in.

    Raises:
        SpecError: the file is not TOML, or says something we refuse.
        MissingSource: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingSource(
            f"spec must be a TOML file, {path} is not there; docs/your-own-data.md shows how to write one"
        )
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"spec must be TOML, {path} is not: {error}") from error
    tables["folder"] = path.parent / Path(tables.get("folder", "")).expanduser()
    return make_spec(tables, origin=str(path))


__all__ = [
    "Constant",
    "DataSpec",
    "EventField",
    "EventSource",
    "ExposureSource",
    "Files",
    "ItemTable",
    "ProtocolSpec",
    "TableField",
    "TimeColumn",
    "UserTable",
    "VocabularySpec",
    "explain",
    "load_spec",
    "make_spec",
]
