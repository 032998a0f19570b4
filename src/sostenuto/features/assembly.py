"""Flat arrays in, what a ranker reads out. Training, evaluation and serving all take this way; no folder is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from sostenuto.features.clock import local_clock
from sostenuto.features.match import MatchIndex, level_keys, match_features
from sostenuto.features.popularity import Popularity, popularity_features
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RequestBatch

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]


def offsets_of(lengths: Array) -> Array:
    """Return (B + 1,) int64 row starts of rows of these lengths."""
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def tensor_of(array: Array) -> Tensor:
    """Return an array as a tensor: whole numbers as int64, others as float32; shared where the type is right."""
    import torch

    if array.dtype.kind in "iub":
        array = array.astype(np.int64, copy=False)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemColumns:
    """What is known of N items."""

    category: Array  # (N, K)
    fields: Mapping[str, Array]  # item fields, (N,) or (N, V)

    def part(self, rows: slice | Array) -> ItemColumns:
        """Return some of the items; those of a slice are not copied."""
        return ItemColumns(
            category=self.category[rows], fields={name: column[rows] for name, column in self.fields.items()}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What match features read of N behaviours."""

    time_ms: Array  # (N,) never decreasing inside a row
    keys: list[Array]  # per level (N,)


class Met(Protocol):
    """What the users of B requests have met before."""

    def match(self, offsets: Array, time_ms: Array, keys: list[Array]) -> Array:
        """Return (C, F) match features.

        Args:
            offsets: (B + 1,) of the candidates.
            time_ms: (B,) of the requests.
            keys:    per level (C,) of the candidates.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MetInBatch:
    """Behaviours of a batch, and which of them each request may read."""

    offsets: Array  # (B + 1,)
    past: Past
    positions: Array | None = None  # of the behaviours, request after request; None = all of them, in their order

    def match(self, offsets: Array, time_ms: Array, keys: list[Array]) -> Array:
        """Hold candidates against behaviours; see `Met`."""
        met, moments = self.past.keys, self.past.time_ms
        if self.positions is not None:
            met, moments = [key[self.positions] for key in met], moments[self.positions]
        return match_features(self.offsets, moments, met, offsets, time_ms, keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetInIndex:
    """Indices that were kept: one row per request."""

    index: MatchIndex

    def match(self, offsets: Array, time_ms: Array, keys: list[Array]) -> Array:
        """Look candidates up; see `Met`."""
        return self.index.features(np.repeat(np.arange(len(time_ms)), np.diff(offsets)), time_ms, keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """B requests and their C candidates as flat arrays of any origin: a split, a live request."""

    offsets: Array  # (B + 1,) int64
    item: Array  # (C,)
    candidate_fields: Mapping[str, Array]  # (C,) or (C, V): those the data declare
    user: Array  # (B,); 1 is an unknown user
    time_ms: Array  # (B,)
    place: Array  # (B,)
    context_fields: Mapping[str, Array]  # (B,): those the data declare, but for user fields
    label: Array | None = None  # (C,); zeros when absent
    list_id: Array | None = None  # (C,); zeros when absent
    request: Array | None = None  # (B,) identifies the requests; 0.. when absent
    about: ItemColumns | None = None  # of the candidates' items, where the assembler does not know better


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembler:
    """Puts behaviours, candidates and moments together, and adds item fields, match features, popularity and clock."""

    features: FeatureSpec  # of a view, see `features.view`
    time_zone: str
    category: Array  # (I, K) of every item index
    item_fields: Mapping[str, Array]  # (I,) or (I, V)
    popularity: Popularity
    user_fields: Mapping[str, Array] = field(default_factory=dict)  # (U,) context fields that follow from the user

    def of_items(self, item: Array) -> ItemColumns:
        """Look (N,) items up."""
        return ItemColumns(
            category=np.take(self.category, item, axis=0),
            fields={name: np.take(column, item, axis=0) for name, column in self.item_fields.items()},
        )

    def history(
        self,
        offsets: Array,
        columns: Mapping[str, Array],
        event_fields: Mapping[str, Array],
        about: ItemColumns | None = None,
    ) -> tuple[History, Past]:
        """Return the behaviours of B rows, and what match features read of them.

        Args:
            offsets:      (B + 1,) int64.
            columns:      item, time_ms, action, value, place, (N,) each.
            event_fields: further event columns, (N,) or (N, V).
            about:        what is known of their items, where the assembler does not know better.
        """
        item = np.asarray(columns["item"], np.int64)
        about = self.of_items(item) if about is None else about
        past = History(
            offsets=tensor_of(offsets),
            item=tensor_of(item),
            category=tensor_of(about.category),
            time_ms=tensor_of(columns["time_ms"]),
            action=tensor_of(columns["action"]),
            value=tensor_of(columns["value"]),
            place=tensor_of(columns["place"]),
            fields={name: tensor_of(column) for name, column in (dict(about.fields) | dict(event_fields)).items()},
        )
        return past, Past(time_ms=columns["time_ms"], keys=self.keys(item, about))

    def keys(self, item: Array, about: ItemColumns) -> list[Array]:
        """Return what match features tell (N,) items apart by, per level; nothing where the view has none."""
        return level_keys(self.features, item, about.category, about.fields) if self.features.match else []

    def candidates(self, asked: Asked, met: Met | None) -> Candidates:
        """Return candidates with item fields, popularity and match features.

        Where nothing is said of what the users met they are targets of a search, which knows an item by itself: they
        carry neither popularity nor match features.
        """
        item = np.asarray(asked.item, np.int64)
        about = self.of_items(item) if asked.about is None else asked.about
        fields = dict(asked.candidate_fields) | dict(about.fields)
        match = np.zeros((len(item), 0), np.float32)
        if met is not None:
            row = np.repeat(np.arange(len(asked.time_ms)), np.diff(asked.offsets))
            fields |= popularity_features(self.popularity, item, row, asked.time_ms, asked.place)
            if self.features.match:
                match = met.match(asked.offsets, asked.time_ms, self.keys(item, about))
        return Candidates(
            offsets=tensor_of(asked.offsets),
            item=tensor_of(item),
            category=tensor_of(about.category),
            match=tensor_of(match),
            fields={name: tensor_of(column) for name, column in fields.items()},
        )

    def context(self, asked: Asked) -> Context:
        """Return moment, place and circumstances, with the local clock and what follows from the user."""
        fields = dict(asked.context_fields) | local_clock(asked.time_ms, self.time_zone)
        fields |= {name: column[asked.user] for name, column in self.user_fields.items()}
        return Context(
            time_ms=tensor_of(asked.time_ms),
            place=tensor_of(asked.place),
            fields={name: tensor_of(column) for name, column in fields.items()},
        )

    def observed(self, asked: Asked) -> dict[str, Any]:
        """Return context and labels, the fields that both kinds of batch share."""
        zeros = np.zeros(len(asked.item))
        label, list_id, request = asked.label, asked.list_id, asked.request
        return {
            "context": self.context(asked),
            "labels": tensor_of(np.asarray(zeros if label is None else label, np.float32)),
            "list_id": tensor_of(np.asarray(zeros if list_id is None else list_id, np.int64)),
            "request": tensor_of(np.arange(len(asked.user)) if request is None else request),
            "user": tensor_of(asked.user),
        }

    def batch(
        self, offsets: Array, columns: Mapping[str, Array], event_fields: Mapping[str, Array], asked: Asked
    ) -> RequestBatch:
        """Put B requests and the histories they read together; arguments as in `history` and `candidates`."""
        past, seen = self.history(offsets, columns, event_fields)
        met = MetInBatch(offsets=offsets, past=seen)
        return RequestBatch(histories=past, candidates=self.candidates(asked, met), **self.observed(asked))

    def items(self, item: Array, offsets: Array | None = None) -> Candidates:
        """Return items that no request shows, as one row or in rows: without what only a request gives them."""
        item = np.asarray(item, np.int64)
        about = self.of_items(item)
        return Candidates(
            offsets=tensor_of(np.array([0, len(item)]) if offsets is None else offsets),
            item=tensor_of(item),
            category=tensor_of(about.category),
            match=tensor_of(np.zeros((len(item), 0), np.float32)),
            fields={name: tensor_of(column) for name, column in about.fields.items()},
        )

    def catalogue(self) -> Catalogue:
        """Return what is known of every item, for rankers that keep a table of items."""
        return Catalogue(
            category=tensor_of(np.asarray(self.category)),
            fields={name: tensor_of(np.asarray(column)) for name, column in self.item_fields.items()},
        )


__all__ = [
    "Asked",
    "Assembler",
    "ItemColumns",
    "Met",
    "MetInBatch",
    "MetInIndex",
    "Past",
    "offsets_of",
    "tensor_of",
]
