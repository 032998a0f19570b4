"""What a server showed and what came of it, as a log that `sostenuto data prepare` reads.

Lists come from the log of served lists, what users did from the store. A shown item counts as taken when the same user
did something with it afterwards: within a window, by the newest list that showed it to her before. Events that name
the request they came from (a categorical field `request_id`) are matched with that list and no other. One event takes
one exposure.

Lists whose window is not over are left out: what will come of them is not known. Only what was shown is an exposure;
candidates that were scored and not shown have no label.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sostenuto.data.spec import RESERVED
from sostenuto.schema.errors import DataError, SpecError
from sostenuto.serving.served_log import read_served
from sostenuto.serving.stores.layout import ACTION, ITEM, PLACE
from sostenuto.serving.stores.store import StoredHistory

if TYPE_CHECKING:
    from sostenuto.serving.stores.store import Store

REQUEST_FIELD = "request_id"  # of an event: the list that it came from
# columns that are always written; as candidate fields only where asked for, since nothing may be learnt from them
LOGGED = ("position", "propensity", "logged_score")
EVENTS_AT_ONCE = 200_000
SPEC, EXPOSURES, ITEMS = "spec.toml", "exposures.parquet", "items.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Collecting:
    """How lists and events are put together."""

    taken: tuple[str, ...] = ()  # actions that take an item; () = every action
    within_s: float = 86_400.0  # from a list to what came of it
    time_zone: str = "UTC"  # of local hours in what is trained later
    candidate_fields: tuple[str, ...] = ()  # of LOGGED: hand these over as features, too

    def __post_init__(self) -> None:
        if not self.within_s > 0:
            raise SpecError(f"within_s must be above 0, got {self.within_s}; give the seconds that an outcome may take")
        if unknown := set(self.candidate_fields) - set(LOGGED):
            raise SpecError(f"candidate_fields must be of {', '.join(LOGGED)}, got {sorted(unknown)}; leave them out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What was found."""

    lists: int
    exposures: int
    taken: int
    events: int
    items: int
    open_lists: int  # left out: their window is not over
    spec: Path


def collect(store: Store, served: Path, out: Path, settings: Collecting, *, now_ms: int) -> Collected:
    """Write events, exposures and items of a running service into a folder, with the spec that names them.

    Args:
        store:    what users did.
        served:   folder of the log of served lists.
        out:      folder to make; it must be empty or new.
        settings: what takes an item, and how soon.
        now_ms:   windows that end later are not over.

    Raises:
        SpecError: `out` holds something. DataError: no list has a window that is over.
    """
    if out.exists() and any(out.iterdir()):
        raise SpecError(f"the folder must be new or empty, {out} is not; name another one")
    lists = list(read_served(served))
    window_ms = round(settings.within_s * 1000)
    over = [entry for entry in lists if entry["time_ms"] + window_ms <= now_ms and entry["order"]]
    if not over:
        raise DataError(
            f"there must be a served list whose {settings.within_s:g} s are over, {served} has {len(lists)} lists and "
            f"none such; wait, or give a shorter window"
        )
    out.mkdir(parents=True, exist_ok=True)
    exposures, context_kinds, candidate_kinds = _exposures(over)
    num_events, taking = 0, []
    for number, events in enumerate(_events(store)):
        events.write_parquet(out / f"events-{number:05d}.parquet")
        num_events += len(events)
        takes = events if not settings.taken else events.filter(pl.col("action").is_in(list(settings.taken)))
        named = [REQUEST_FIELD] if f"field.{REQUEST_FIELD}" in events.columns else []
        taking.append(takes.select("user", "item", "time_ms", *(pl.col(f"field.{name}").alias(name) for name in named)))
    taken = _taken(exposures, pl.concat(taking) if taking else None, window_ms)
    exposures = exposures.join(taken, on="row", how="left").with_columns(pl.col("label").fill_null(0.0))
    exposures.drop("row").write_parquet(out / EXPOSURES)
    items = _items(store)
    if items is not None:
        items[0].write_parquet(out / ITEMS)
    field_kinds = dict(store.layout.fields)
    text = _spec(settings, num_events > 0, field_kinds, context_kinds, candidate_kinds, items)
    (out / SPEC).write_text(text, encoding="utf-8")
    return Collected(
        lists=len(over),
        exposures=len(exposures),
        taken=int(exposures["label"].sum()),
        events=num_events,
        items=0 if items is None else len(items[0]),
        open_lists=len(lists) - len(over),
        spec=out / SPEC,
    )


def _exposures(lists: Sequence[Mapping[str, Any]]) -> tuple[pl.DataFrame, dict[str, str], dict[str, str]]:
    """Return one row per shown item, and the kinds of context and candidate fields."""
    context_kinds = _kinds(((name, [value]) for entry in lists for name, value in entry["context"].items()))
    candidate_kinds = _kinds(((name, column) for entry in lists for name, column in entry["candidate_fields"].items()))
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("request", "user", "time_ms", "place", "item", *LOGGED, "model", "version", "arm", "policy")
    }
    context: dict[str, list[Any]] = {name: [] for name in context_kinds}
    candidate: dict[str, list[Any]] = {name: [] for name in candidate_kinds}
    for entry in lists:
        order = entry["order"]
        count = len(order)
        columns["request"] += [entry["request_id"]] * count
        columns["user"] += [entry["user_id"]] * count
        columns["time_ms"] += [entry["time_ms"]] * count
        columns["place"] += [entry["place"] or None] * count
        columns["item"] += [entry["candidates"][at] for at in order]
        columns["position"] += range(1, count + 1)
        columns["propensity"] += entry["propensities"]
        columns["logged_score"] += entry["scores"]
        for name in ("model", "version", "arm", "policy"):
            columns[name] += [entry[name]] * count
        for name, kind in context_kinds.items():
            context[name] += [_as(kind, entry["context"].get(name))] * count
        for name, kind in candidate_kinds.items():
            column = entry["candidate_fields"].get(name)
            candidate[name] += [None if column is None else _as(kind, column[at]) for at in order]
    types: dict[str, Any] = {"place": pl.String, "position": pl.Float64}
    frame = pl.DataFrame(
        [
            *(pl.Series(name, column, dtype=types.get(name)) for name, column in columns.items()),
            *(pl.Series(f"context.{n}", c, dtype=_dtype(context_kinds[n])) for n, c in context.items()),
            *(pl.Series(f"candidate.{n}", c, dtype=_dtype(candidate_kinds[n])) for n, c in candidate.items()),
        ]
    )
    return frame.with_row_index("row"), context_kinds, candidate_kinds


def _taken(exposures: pl.DataFrame, takes: pl.DataFrame | None, window_ms: int) -> pl.DataFrame:
    """Return the rows of what was taken, with label 1."""
    nothing = pl.DataFrame({"row": [], "label": []}, schema={"row": pl.UInt32, "label": pl.Float64})
    if takes is None or not len(takes):
        return nothing
    shown = exposures.select("row", "request", "user", "item", "time_ms")
    found = []
    if REQUEST_FIELD in takes.columns:
        named = takes.filter(pl.col(REQUEST_FIELD).is_not_null()).rename({"time_ms": "took_ms"})
        by_name = shown.join(named, left_on=["request", "user", "item"], right_on=[REQUEST_FIELD, "user", "item"])
        late = pl.col("took_ms") - pl.col("time_ms")
        found.append(by_name.filter((late >= 0) & (late <= window_ms)).select("row"))
        takes = takes.filter(pl.col(REQUEST_FIELD).is_null())
    # strictly later: a list does not know what came of it at its own moment
    nearest = takes.sort("time_ms").join_asof(
        shown.sort("time_ms", "row"),
        on="time_ms",
        by=["user", "item"],
        strategy="backward",
        tolerance=window_ms,
        allow_exact_matches=False,
        check_sortedness=False,
    )
    found.append(nearest.filter(pl.col("row").is_not_null()).select(pl.col("row").cast(pl.UInt32)))
    rows = pl.concat(found)["row"].unique().cast(pl.UInt32)
    return pl.DataFrame({"row": rows}).with_columns(label=pl.lit(1.0))


def _events(store: Store) -> Iterator[pl.DataFrame]:
    """Yield all events of a store with raw ids, user by user."""
    kinds = store.layout.kind_of
    for page in store.user_pages(EVENTS_AT_ONCE):
        names = {kind: pl.Series(["", *store.names(kind)]) for kind in store.layout.name_kinds}
        frames = []
        for user in page:
            if not len(user.records):
                continue
            history = StoredHistory.of(user.head, user.records)
            columns: dict[str, Any] = {
                "user": pl.repeat(user.user_id, len(history), eager=True),
                "item": names[ITEM].gather(history.item),
                "time_ms": history.time_ms,
                "action": names[ACTION].gather(history.action),
                "place": names[PLACE].gather(history.place),
                "value": history.value,
            }
            for name, column in history.fields.items():
                of_names = kinds[name] == "categorical"
                columns[f"field.{name}"] = names[f"field.{name}"].gather(column) if of_names else column
            frames.append(pl.DataFrame(columns))
        if frames:
            whole = pl.concat(frames)
            texts = [name for name, kind in whole.schema.items() if kind == pl.String and name not in {"user", "item"}]
            numbers = [name for name, kind in whole.schema.items() if kind == pl.Float32]
            yield whole.with_columns(
                *(pl.col(name).replace("", None) for name in texts), *(pl.col(name).fill_nan(None) for name in numbers)
            )


def _items(store: Store) -> tuple[pl.DataFrame, int, dict[str, str]] | None:
    """Return the item table, how many category levels it has, and the kinds of its fields; None without one."""
    found = [(item.item_id, item.fields) for item in store.items()]
    if not found:
        return None
    levels = max(len(fields["categories"]) for _, fields in found)
    kinds = _kinds(((name, [value]) for _, fields in found for name, value in fields["fields"].items()), lists=True)
    columns: dict[str, pl.Series] = {"item": pl.Series([item_id for item_id, _ in found])}
    for level in range(levels):
        path = [fields["categories"][level] if len(fields["categories"]) > level else None for _, fields in found]
        columns[f"level_{level + 1}"] = pl.Series(path, dtype=pl.String)
    for name, kind in kinds.items():
        values = [_as(kind, fields["fields"].get(name)) for _, fields in found]
        columns[f"field.{name}"] = pl.Series(values, dtype=_dtype(kind))
    return pl.DataFrame(columns), levels, kinds


def _kinds(found: Iterator[tuple[str, Sequence[Any]]] | Any, *, lists: bool = False) -> dict[str, str]:
    """Return the kind of every field: numeric where all its values are numbers, else categorical, or multi."""
    kinds: dict[str, str] = {}
    for name, values in found:
        for value in values:
            if value is None:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            kind = "multi" if isinstance(value, list) else "numeric" if is_number else "categorical"
            known = kinds.setdefault(name, kind)
            if known != kind:
                kinds[name] = "multi" if "multi" in (known, kind) else "categorical"
    if clash := sorted(set(kinds) & RESERVED):
        raise DataError(f"fields must not be called {', '.join(clash)}: prepared data have such columns; rename them")
    return {name: kind for name, kind in sorted(kinds.items()) if lists or kind != "multi"}


def _as(kind: str, value: Any) -> Any:
    if value is None:
        return None
    if kind == "numeric":
        return float(value)
    if kind == "multi":
        return [str(one) for one in (value if isinstance(value, list) else [value])]
    return str(value)


def _dtype(kind: str) -> Any:
    return {"numeric": pl.Float64, "multi": pl.List(pl.String)}.get(kind, pl.String)


def _spec(
    settings: Collecting,
    has_events: bool,
    event_fields: Mapping[str, str],
    context_fields: Mapping[str, str],
    candidate_fields: Mapping[str, str],
    items: tuple[pl.DataFrame, int, dict[str, str]] | None,
) -> str:
    """Return the spec as TOML."""
    quote = json.dumps  # a JSON string is a TOML string
    lines = ['name = "served"', f"time_zone = {quote(settings.time_zone)}"]

    def table(name: str, kinds: Mapping[str, str], prefix: str) -> None:
        if kinds:
            lines.extend(["", f"[{name}]"])
            for field, kind in kinds.items():
                lines.append(f"{quote(field)} = {{ kind = {quote(kind)}, column = {quote(prefix + field)} }}")

    if has_events:
        lines += ["", "[events]", 'files = "events-*.parquet"', 'user = "user"', 'item = "item"']
        lines += ['time = { column = "time_ms", unit = "ms" }', 'action = "action"', 'value = "value"']
        lines += ['place = "place"']
        table("events.fields", {n: k for n, k in event_fields.items() if n != REQUEST_FIELD}, "field.")
    lines += ["", "[exposures]", f"files = {quote(EXPOSURES)}", 'user = "user"', 'request = "request"']
    lines += ['time = { column = "time_ms", unit = "ms" }', 'place = "place"', 'item = "item"', 'label = "label"']
    lines += ["positives_are_events = false"] if has_events else []
    table("exposures.candidate_fields", candidate_fields, "candidate.")
    if settings.candidate_fields:
        if not candidate_fields:
            lines += ["", "[exposures.candidate_fields]"]
        lines += [f'{name} = {{ kind = "numeric", column = {quote(name)} }}' for name in settings.candidate_fields]
    table("exposures.context_fields", context_fields, "context.")
    if items is not None:
        _, levels, kinds = items
        lines += ["", "[items]", f"files = {quote(ITEMS)}", 'item = "item"']
        if levels:
            lines += ["categories = [" + ", ".join(quote(f"level_{n + 1}") for n in range(levels)) + "]"]
        table("items.fields", kinds, "field.")
    lines += ["", "[protocol]", 'name = "exposures"', ""]
    return "\n".join(lines)


__all__ = ["LOGGED", "Collected", "Collecting", "collect"]
