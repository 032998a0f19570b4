"""A bundle that ranks from a store: codes of the store become indices of the bundle.

What a ranker reads is put together by the same `Assembler` as in training; only where the arrays come from differs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.assembly import Assembler, ItemColumns, offsets_of
from sostenuto.features.missing import missing_column
from sostenuto.features.popularity import PopularityIndex
from sostenuto.schema.errors import DataError, RequestError, did_you_mean
from sostenuto.schema.features import FIRST_KNOWN, PADDING, UNKNOWN
from sostenuto.serving.popularity import NO_PLACE, NOTHING_COUNTED, Counted, ModelPopularity, StorePopularity
from sostenuto.serving.stores.layout import ACTION, ITEM, PLACE

if TYPE_CHECKING:
    from sostenuto.features.assembly import Past
    from sostenuto.schema.features import Field
    from sostenuto.schema.histories import History
    from sostenuto.serving.bundle import Bundle, Vocabulary
    from sostenuto.serving.popularity import Followed
    from sostenuto.serving.stores.store import Store, StoredHistory, StoredItem

Array = npt.NDArray[Any]


class CodeMap:
    """The index that a bundle gives to each name of a store, by the store's code; it grows with the store.

    Args:
        store:      holds the names.
        kind:       of name, see `RecordLayout.name_kinds`.
        vocabulary: of the bundle; None where its data have none, and every name then counts as missing.
    """

    def __init__(self, store: Store, kind: str, vocabulary: Vocabulary | None) -> None:
        self._store, self._kind, self._vocabulary = store, kind, vocabulary
        self._index = np.array([PADDING], np.int64)  # code 0 is missing
        self._growing = threading.Lock()

    def indices(self, code: Array) -> Array:
        """Return (N,) int64 indices of (N,) codes."""
        if self._vocabulary is None:
            return np.zeros(len(code), np.int64)
        if len(code) and int(code.max()) >= len(self._index):
            self._grow()
        return self._index[code]

    def _grow(self) -> None:
        with self._growing:
            new = self._store.names(self._kind, since=len(self._index) - 1)
            if self._vocabulary is not None:
                self._index = np.concatenate([self._index, self._vocabulary.indices(new)])

    def codes(self, missing: int) -> Array:
        """Return (V,) int64 the code of each index of the vocabulary as far as it has grown, `missing` without one.

        Index 1, the unknown, has many codes, and any of them stands there.
        """
        index = self._index
        found = np.full(FIRST_KNOWN if self._vocabulary is None else len(self._vocabulary), missing, np.int64)
        found[index] = np.arange(len(index))
        return found


class LiveModel:
    """A bundle and a store.

    `assembler` puts requests together, `plain` whatever has to do without popularity. `follow` brings popularity up to
    date. Other threads may go on ranking meanwhile: it is replaced as a whole.

    Args:
        bundle:     what ranks.
        store:      what users did.
        popularity: of the store, shared by the models of a process; one of its own by default. Nothing is counted
                    before it is asked for: encoding needs none.
    """

    def __init__(self, bundle: Bundle, store: Store, popularity: StorePopularity | None = None) -> None:
        self.bundle, self.store = bundle, store
        self.popularity = StorePopularity(store) if popularity is None else popularity
        self.features = bundle.features
        vocabulary = bundle.vocabularies.get
        self._item = CodeMap(store, ITEM, vocabulary("item"))
        self._action = CodeMap(store, ACTION, vocabulary("action"))
        self._place = CodeMap(store, PLACE, vocabulary("place"))
        self._fields = {
            f.name: CodeMap(store, f"field.{f.name}", vocabulary(f.name))
            for f in self.features.behaviour_fields
            if f.kind == "categorical"
        }
        stored = store.layout.kind_of
        for f in self.features.behaviour_fields:
            if stored.get(f.name) != f.kind:
                raise RequestError(
                    f"the store must keep the behaviour field {f.name!r} ({f.kind}) that model {bundle.name!r} reads, "
                    f"it has {dict(stored) or 'none'}; make a store with it, or serve a model without it"
                )
        self._taking = threading.Lock()
        self._taken: Counted | None = None  # what the popularity of `_asked` was made of
        self._unknown = PopularityIndex(num_items=self.features.num_items)
        self.plain = Assembler(
            features=self.features,
            time_zone=bundle.time_zone,
            category=bundle.item_category,
            item_fields=bundle.item_fields,
            popularity=NOTHING_COUNTED,
        )
        self._asked = self.plain
        self.ranker = bundle.ranker

    @property
    def assembler(self) -> Assembler:
        """Puts requests together, with popularity as `follow` last left it."""
        if self._taken is None:
            self.take_popularity()
        return self._asked

    @property
    def followed(self) -> int:
        """Sequence of the last change that its popularity has taken in."""
        return 0 if self._taken is None else self._taken.sequence

    def follow(self) -> Followed:
        """Bring popularity up to date; return what came."""
        followed = self.popularity.follow()
        self.take_popularity()
        return followed

    def take_popularity(self) -> None:
        """Take over what the store's popularity counts now."""
        with self._taking:
            counted, taken = self.popularity.counted(), self._taken
            if taken is counted:
                return
            rows = counted.rows
            if taken is not None and taken.era == counted.era:
                rows = rows.take(slice(len(taken.rows), None))
            else:
                self._unknown = PopularityIndex(num_items=self.features.num_items)
            item, place = self._item.indices(rows.item), self._place.indices(rows.place)
            lumped = (item == UNKNOWN) | (place == UNKNOWN)
            self._unknown = self._unknown.joined(item[lumped], rows.time_ms[lumped], place[lumped])
            has_places = "place" in self.bundle.vocabularies
            popularity = ModelPopularity(
                counts=counted.index,
                unknown=self._unknown,
                item_code=self._item.codes(missing=0),
                place_code=self._place.codes(missing=NO_PLACE) if has_places else None,
            )
            self._asked = replace(self.plain, popularity=popularity)
            self._taken = counted

    def history(self, stored: StoredHistory | None, seen: int | None = None) -> tuple[History, Past]:
        """Return one user's behaviours as rankers and the match index read them, cut by the bundle's view.

        Args:
            stored: her events; None for an unknown user.
            seen:   how many of the oldest are read; None = all.
        """
        columns, fields = self.past_columns(stored, seen)
        return self.plain.history(offsets_of(np.array([len(columns["item"])])), columns, fields)

    def past_columns(
        self, stored: StoredHistory | None, seen: int | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the columns and the further fields of one user's behaviours as `Assembler.history` takes them.

        Args:
            stored: her events, None for an unknown user; the newest of them are kept as the bundle's view says.
            seen:   how many of the oldest are read; None = all.
        """
        if stored is None or not len(stored):
            columns: dict[str, Array] = {
                "item": np.zeros(0, np.int64),
                "time_ms": np.zeros(0, np.int64),
                "action": np.zeros(0, np.int64),
                "value": np.zeros(0, np.float32),
                "place": np.zeros(0, np.int64),
            }
            fields = {f.name: missing_column(f, 0) for f in self.features.behaviour_fields}
            return columns, fields
        end = len(stored) if seen is None else seen
        kept = slice(self.bundle.view.start(stored.time_ms, 0, end), end)
        columns = {
            "item": self._item.indices(stored.item[kept]),
            "time_ms": stored.time_ms[kept],
            "action": self._action.indices(stored.action[kept]),
            "value": stored.value[kept],
            "place": self._place.indices(stored.place[kept]),
        }
        fields = {
            f.name: (
                self._fields[f.name].indices(stored.fields[f.name][kept])
                if f.kind == "categorical"
                else stored.fields[f.name][kept]
            )
            for f in self.features.behaviour_fields
        }
        return columns, fields

    def items_of(self, code: Array) -> Array:
        """Return (N,) int64 item indices of (N,) codes of the store; 1 where the bundle does not know an item."""
        return self._item.indices(code)

    def item_indices(self, item_ids: Sequence[str]) -> Array:
        """Return (N,) int64 indices of raw ids; 1 where the bundle does not know an item."""
        found = self.bundle.vocabularies["item"].indices(item_ids)
        return np.where(found < FIRST_KNOWN, UNKNOWN, found)

    def about(self, item_ids: Sequence[str], index: Array) -> ItemColumns | None:
        """Return what is known of (N,) items, with what the store was told of those that the bundle does not know.

        None where the store has nothing to add. Only candidates are told so: a state is a function of events and bundle
        alone, whenever it was made.
        """
        told = {
            n: stored.fields for n in np.flatnonzero(index == UNKNOWN).tolist() if (stored := self._told(item_ids[n]))
        }
        if not told:
            return None
        known = self.plain.of_items(index)
        for n, record in told.items():
            levels = zip(self.features.categories, record.get("categories", ()), strict=False)
            for k, (level, name) in enumerate(levels):
                known.category[n, k] = self.bundle.vocabularies[level.name].index(name)
            for f in self.features.item_fields:
                value = record.get("fields", {}).get(f.name)
                if value is not None:
                    with contextlib.suppress(RequestError):  # told to a model that read it otherwise
                        known.fields[f.name][n] = self._column("fields", f, [value])[0]
        return known

    def _told(self, item_id: str) -> StoredItem | None:
        try:
            return self.store.item(item_id)
        except DataError:  # no id that an item could have, so nothing was told of it
            return None

    def check_item(self, categories: Sequence[str], fields: Mapping[str, Any]) -> None:
        """Refuse what `about` could not read: a path that is too long, or a field that is none or of another kind."""
        if len(categories) > len(self.features.categories):
            names = ", ".join(level.name for level in self.features.categories) or "none"
            raise RequestError(
                f"categories must be at most those of the model ({names}), got {len(categories)}; leave some out"
            )
        self.columns("fields", self.features.item_fields, {name: [value] for name, value in fields.items()}, 1)

    def place_index(self, place: str) -> int:
        """Return the index of a place; 0 for none, and where the bundle's data have no places."""
        vocabulary = self.bundle.vocabularies.get("place")
        return PADDING if vocabulary is None else vocabulary.index(place)

    def columns(
        self, what: str, fields: Sequence[Field], given: Mapping[str, Sequence[Any]], rows: int
    ) -> dict[str, Array]:
        """Return columns of fields: those given by their kind, those not given as missing.

        Raises:
            RequestError: a name that is no field, or a value that does not fit its kind.
        """
        known = {f.name: f for f in fields}
        for name in given:
            if name not in known:
                raise RequestError(
                    f"{what} must be fields of the model ({', '.join(known) or 'it has none'}), got {name!r}; "
                    f"leave it out.{did_you_mean(name, known)}"
                )
        return {
            name: self._column(what, f, given[name]) if name in given else missing_column(f, rows)
            for name, f in known.items()
        }

    def _column(self, what: str, field: Field, values: Sequence[Any]) -> Array:
        try:
            if field.kind == "numeric":
                return np.array([np.nan if v is None else _number(v) for v in values], np.float32)
            if field.kind == "vector":
                return np.array(
                    [[0.0] * field.width if v is None else _row(v, field.width) for v in values], np.float32
                )
            if field.kind == "multi":
                rows = np.zeros((len(values), field.width), np.int64)
                for n, v in enumerate(values):
                    found = self._indices(field, v or ())[: field.width]
                    rows[n, : len(found)] = found
                return rows
            return np.array(self._indices(field, values), np.int64)
        except (TypeError, ValueError) as error:
            wanted = {
                "numeric": "numbers",
                "vector": f"lists of {field.width} numbers",
                "multi": "lists of texts",
                "categorical": "texts",
            }[field.kind]
            raise RequestError(f"{what}.{field.name} must be {wanted} or null: {error}; send it so") from error

    def _indices(self, field: Field, values: Sequence[Any]) -> list[int]:
        """Return the indices of values of a field; without a vocabulary they are indices already."""
        vocabulary = self.bundle.vocabularies.get(field.name)
        if vocabulary is not None:
            return [PADDING if v is None else vocabulary.index(v if type(v) is str else _text(v)) for v in values]
        found = [PADDING if v is None else int(_number(v)) for v in values]
        return [index if 0 <= index < field.size else UNKNOWN for index in found]


def _number(value: Any) -> float:
    if isinstance(value, bool | int | float) and np.isfinite(value):
        return float(value)
    raise ValueError(f"got {value!r}")


def _row(value: Any, width: int) -> list[float]:
    row = [_number(x) for x in value]
    if len(row) != width:
        raise ValueError(f"got {len(row)} numbers")
    return row


def _text(value: Any) -> str:
    if isinstance(value, bool | int):
        return str(int(value))
    raise ValueError(f"got {value!r}")


__all__ = ["CodeMap", "LiveModel"]
