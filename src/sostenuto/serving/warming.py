"""A prepared log into a store: the histories that a service starts with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.data.prepared import column_array
from sostenuto.schema.events import Event
from sostenuto.schema.features import FIRST_KNOWN, PADDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sostenuto.data.prepared import PreparedData
    from sostenuto.schema.features import Field
    from sostenuto.serving.stores.store import Store

Array = npt.NDArray[Any]

AT_ONCE = 10_000  # events in one transaction, the most that a store takes
NO_FIELDS: dict[str, str | float] = {}


class RawEvents:
    """The events of prepared data with their raw ids.

    An id that the vocabularies do not hold is gone for good: such an item, action or place is written as the word that
    stands for the unknown, and stays unknown to every bundle. Ids of events name the row of the log, so that a second
    warm-up adds nothing.
    """

    def __init__(self, data: PreparedData) -> None:
        self.data = data
        self.users = data.vocabulary("user")
        self._item = data.vocabulary("item")
        self._action = self._words("action")
        self._place = self._words("place")
        self._fields = [(f, self._words(f.name)) for f in data.features.behaviour_fields]

    def _words(self, name: str) -> list[str]:
        path = self.data.folder / "vocab" / f"{name}.parquet"
        return self.data.vocabulary(name) if path.is_file() else []

    def rows(self, user: int, until_ms: int | None = None) -> range:
        """Return the rows of a user (index) strictly before a moment."""
        b = self.data.behaviours
        start, end = (int(x) for x in b.offsets[user : user + 2])
        if until_ms is not None:
            end = start + int(np.searchsorted(b.time_ms[start:end], until_ms, side="left"))
        return range(start, end)

    def of(self, user: int, rows: Sequence[int]) -> list[Event]:
        """Return events of one user (index)."""
        b = self.data.behaviours
        at = slice(rows[0], rows[-1] + 1) if len(rows) else slice(0, 0)
        columns = zip(
            rows,
            b.time_ms[at].tolist(),
            b.item[at].tolist(),
            b.action[at].tolist(),
            b.place[at].tolist(),
            b.value[at].tolist(),
            strict=True,
        )
        fields = self._field_values(at)
        user_id = self.users[user]
        return [
            Event(
                event_id=f"log-{row}",
                user_id=user_id,
                item_id=self._item[item],
                time_ms=time_ms,
                action=_word(self._action, action),
                value=value,
                place=_word(self._place, place),
                fields=fields[n] if fields else NO_FIELDS,
            )
            for n, (row, time_ms, item, action, place, value) in enumerate(columns)
        ]

    def _field_values(self, at: slice) -> list[dict[str, str | float]]:
        columns: dict[str, list[Any]] = {}
        for f, words in self._fields:
            values = self.data.behaviours.fields[f.name][at].tolist()
            columns[f.name] = [_word(words, v) for v in values] if f.kind == "categorical" else values
        names = list(columns)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def user_fields(self, user: int) -> dict[str, Any]:
        """Return the fields of the user table, raw, that contexts carry."""
        table = self.data.users
        if table is None:
            return {}
        found: dict[str, Any] = {}
        for f in self.data.features.context_fields:
            if f"field.{f.name}" in table.columns:
                value = column_array(table[f"field.{f.name}"])[user]
                found[f.name] = raw_value(f, self._words(f.name), value)
        return found


def raw_value(field: Field, words: list[str], value: Any) -> Any:
    """Return one stored value of a field as it is sent: text by the vocabulary `words`, None where missing.

    Without a vocabulary a category is the index that it is stored as.
    """
    if field.kind == "categorical":
        return _word(words, int(value)) or None if words else int(value)
    if field.kind == "multi":
        return [_word(words, int(x)) for x in value if int(x) != PADDING]
    if field.kind == "vector":
        return [float(x) for x in value]
    return None if np.isnan(value) else float(value)


def _word(words: list[str], index: int) -> str:
    return words[index] if words and index != PADDING else ""


def warm_up(
    store: Store,
    data: PreparedData,
    *,
    until_ms: int | None = None,
    users: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the events of prepared data into a store, and what is known of its users; return how many events were new.

    Interrupted and called again, it adds what is missing.

    Args:
        store:    takes them in.
        data:     prepared.
        until_ms: only events strictly before this moment.
        users:    indices; all when None.
        progress: is told users done and users in all.
    """
    raw = RawEvents(data)
    wanted = range(FIRST_KNOWN, len(raw.users)) if users is None else users
    held: list[Event] = []
    new = 0

    def write() -> int:
        answers = [answer for at in range(0, len(held), AT_ONCE) for answer in store.append(held[at : at + AT_ONCE])]
        held.clear()
        return sum(answer.outcome == "new" for answer in answers)

    for n, user in enumerate(wanted):
        held += raw.of(user, raw.rows(user, until_ms))
        if fields := raw.user_fields(user):
            store.set_user_fields(raw.users[user], fields)
        if len(held) >= AT_ONCE:
            new += write()
            progress(n + 1, len(wanted))
    new += write()
    progress(len(wanted), len(wanted))
    return new


def moments(data: PreparedData, from_ms: int, until_ms: int) -> Iterator[tuple[int, list[tuple[int, range]]]]:
    """Yield the log's moments from a time on and before another, in order.

    Each is its time, and per user (index) the rows of her events then.
    """
    b = data.behaviours
    time_ms = np.asarray(b.time_ms)
    user = np.repeat(np.arange(len(b.offsets) - 1), np.diff(b.offsets))
    late = np.flatnonzero((time_ms >= from_ms) & (time_ms < until_ms))
    order = late[np.lexsort((late, user[late], time_ms[late]))]
    starts = np.flatnonzero(np.diff(time_ms[order], prepend=-1) != 0)
    for at, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        rows = order[at:end]
        cuts = np.flatnonzero(np.diff(user[rows])) + 1
        parts = np.split(rows, cuts)
        yield int(time_ms[rows[0]]), [(int(user[p[0]]), range(int(p[0]), int(p[-1]) + 1)) for p in parts]


__all__ = ["AT_ONCE", "RawEvents", "moments", "raw_value", "warm_up"]
