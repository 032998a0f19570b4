"""How one event lies in a store: a record of fixed size whose bytes sort by time, then by arrival."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import Field

TIME_BIAS = 2**52  # times are stored from here on, unsigned: so bytes sort as times do, and a float64 holds them
MOST_FIELDS = 64  # a page of LMDB must hold a dozen records

FieldKind = Literal["categorical", "numeric"]
# kinds of names that a store keeps codes for; further ones are `field.<name>` of categorical behaviour fields
ITEM, ACTION, PLACE = "item", "action", "place"


@dataclass(frozen=True, kw_only=True)
class RecordLayout:
    """Which behaviour fields a store keeps beside time, item, action, value and place. Fixed when the store is made."""

    fields: tuple[tuple[str, FieldKind], ...] = ()  # in order

    def __post_init__(self) -> None:
        names = [name for name, _ in self.fields]
        if len(set(names)) != len(names) or len(names) > MOST_FIELDS or not all(names):
            raise SpecError(
                f"a store's fields must have different names and be at most {MOST_FIELDS}, got {names}; leave some out"
            )
        for name, kind in self.fields:
            if kind not in ("categorical", "numeric"):
                raise SpecError(f"a store's field {name!r} must be categorical or numeric, got {kind!r}; leave it out")

    @classmethod
    def of(cls, behaviour_fields: Iterable[Field]) -> RecordLayout:
        """Return the layout that holds the behaviour fields of a `FeatureSpec`."""
        fields: list[tuple[str, FieldKind]] = []
        for each in behaviour_fields:
            if each.kind not in ("categorical", "numeric"):
                raise SpecError(
                    f"behaviour field {each.name!r} must be categorical or numeric to be stored, got {each.kind}; "
                    "leave it out of the view"
                )
            fields.append((each.name, "categorical" if each.kind == "categorical" else "numeric"))
        return cls(fields=tuple(fields))

    @classmethod
    def from_json(cls, value: Any) -> RecordLayout:
        """Return what `to_json` wrote."""
        return cls(fields=tuple((str(name), kind) for name, kind in value["fields"]))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-like value."""
        return {"fields": [list(each) for each in self.fields]}

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """One record. `time` is `time_ms + TIME_BIAS`; codes are 0 where missing, `id_hash` names the event."""
        own = [(f"field.{name}", "<u4" if kind == "categorical" else "<f4") for name, kind in self.fields]
        return np.dtype(
            [
                *(("time", ">u8"), ("sequence", ">u8"), ("id_hash", "V16")),
                *(("item", "<u4"), ("action", "<u4"), ("place", "<u4"), ("value", "<f4")),
                *own,
            ]
        )

    @property
    def name_kinds(self) -> tuple[str, ...]:
        """Everything that has codes: item, action, place and the categorical fields."""
        own = (f"field.{name}" for name, kind in self.fields if kind == "categorical")
        return (ITEM, ACTION, PLACE, *own)

    @cached_property
    def kind_of(self) -> Mapping[str, FieldKind]:
        """Kind by field name."""
        return dict(self.fields)


__all__ = ["ACTION", "ITEM", "MOST_FIELDS", "PLACE", "TIME_BIAS", "FieldKind", "RecordLayout"]
