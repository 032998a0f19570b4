"""Requests in, RequestBatch out: slices of the memory-mapped arrays, never a copy of a history per candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.clock import local_clock
from sostenuto.features.match import level_keys, match_features
from sostenuto.features.popularity import PopularityIndex
from sostenuto.features.view import HistoryView, view_features
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RequestBatch

if TYPE_CHECKING:
    from torch import Tensor

    from sostenuto.data.prepared import PreparedData, Requests

Array = npt.NDArray[Any]


def joined_slices(array: Array, start: Array, end: Array) -> Array:
    """Return array[start[0]:end[0]], array[start[1]:end[1]], ... one after another."""
    array = np.asarray(array)  # slices of a memory map itself are slow to make
    if not len(start):
        return array[:0]
    return np.concatenate([array[a:b] for a, b in zip(start.tolist(), end.tolist(), strict=True)])


def _offsets(lengths: Array) -> Array:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def _tensor(array: Array) -> Tensor:
    import torch

    if array.dtype.kind in "iub":
        array = array.astype(np.int64)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array, copy=None, order="C"))


class Collator:
    """Builds batches of one prepared data set under one view. Offline and online requests take the same way."""

    def __init__(self, data: PreparedData, view: HistoryView) -> None:
        self.data = data
        self.view = view
        self.features = view_features(data.features, view)
        behaviours = data.behaviours
        self._category = data.item_category
        self._item_fields = {f.name: data.item_field(f.name) for f in data.features.item_fields}
        users = data.users
        in_user_table = set() if users is None else {name.removeprefix("field.") for name in users.columns}
        self._user_fields = {
            f.name: data.user_field(f.name) for f in data.features.context_fields if f.name in in_user_table
        }
        self._popularity = PopularityIndex(
            behaviours.item, behaviours.time_ms, behaviours.place, data.features.num_items
        )

    def batch(self, requests: Requests, rows: Array) -> RequestBatch:
        """Collate the requests `rows` of a split."""
        behaviours = self.data.behaviours
        user = np.asarray(requests.user[rows], np.int64)
        time_ms = np.asarray(requests.time_ms[rows], np.int64)
        place = np.asarray(requests.place[rows], np.int64)
        prefix = np.asarray(requests.prefix[rows], np.int64)
        low = np.asarray(behaviours.offsets, np.int64)[user]
        end = low + prefix
        bounds = zip(low.tolist(), end.tolist(), strict=True)
        start = np.array([self.view.start(behaviours.time_ms, a, z) for a, z in bounds], np.int64)
        history = {
            name: joined_slices(getattr(behaviours, name), start, end)
            for name in ("item", "time_ms", "action", "value", "place")
        }
        event_fields = {
            f.name: joined_slices(behaviours.fields[f.name], start, end) for f in self.features.behaviour_fields
        }
        first, last = requests.offsets[rows], requests.offsets[rows + 1]
        declared = {f.name for f in self.data.features.candidate_fields}
        fields = {
            name: joined_slices(column, first, last) for name, column in requests.candidate.items() if name in declared
        }
        context = {
            f.name: requests.context[f.name][rows]
            for f in self.data.features.context_fields
            if f.name in requests.context
        }
        return self.assemble(
            history_offsets=_offsets(end - start),
            history=history,
            event_fields=event_fields,
            candidate_offsets=_offsets(last - first),
            item=joined_slices(requests.item, first, last),
            candidate_fields=fields,
            user=user,
            time_ms=time_ms,
            place=place,
            context_fields=context,
            label=joined_slices(requests.label, first, last),
            list_id=joined_slices(requests.list_id, first, last),
            request=np.asarray(rows),
        )

    def assemble(
        self,
        *,
        history_offsets: Array,
        history: Mapping[str, Array],
        event_fields: Mapping[str, Array],
        candidate_offsets: Array,
        item: Array,
        candidate_fields: Mapping[str, Array],
        user: Array,
        time_ms: Array,
        place: Array,
        context_fields: Mapping[str, Array],
        label: Array | None = None,
        list_id: Array | None = None,
        request: Array | None = None,
    ) -> RequestBatch:
        """Put flat arrays of any origin (a split, a live request) together; adds item fields, match, popularity, clock.

        Args:
            history_offsets:    (B + 1,) int64; `history` columns item, time_ms, action, value, place are (N,).
            event_fields:       further event columns, (N,).
            candidate_offsets:  (B + 1,) int64; `item` (C,) and `candidate_fields` (C,).
            user, time_ms, place, context_fields: (B,); user 1 is an unknown user.
            label, list_id:     (C,); zeros when absent.
            request:            (B,) identifies the requests; 0.. when absent.
        """
        num_requests, num_candidates = len(user), len(item)
        past_item = np.asarray(history["item"], np.int64)
        past_fields = self._of_items(past_item) | dict(event_fields)
        past_category = np.take(self._category, past_item, axis=0)
        item = np.asarray(item, np.int64)
        row = np.repeat(np.arange(num_requests), np.diff(candidate_offsets))
        fields = dict(candidate_fields) | self._of_items(item)
        fields |= self._popularity.features(item, row, time_ms, place)
        category = np.take(self._category, item, axis=0)
        match = np.zeros((num_candidates, 0), np.float32)
        if self.features.match:
            keys = level_keys(self.features, past_item, past_category, past_fields)
            asked = level_keys(self.features, item, category, fields)
            match = match_features(history_offsets, history["time_ms"], keys, candidate_offsets, time_ms, asked)
        context = dict(context_fields) | local_clock(time_ms, self.data.manifest.time_zone)
        context |= {name: column[user] for name, column in self._user_fields.items()}
        zeros = np.zeros(num_candidates)
        return RequestBatch(
            histories=History(
                offsets=_tensor(history_offsets),
                item=_tensor(past_item),
                category=_tensor(past_category),
                time_ms=_tensor(history["time_ms"]),
                action=_tensor(history["action"]),
                value=_tensor(history["value"]),
                place=_tensor(history["place"]),
                fields={name: _tensor(column) for name, column in past_fields.items()},
            ),
            candidates=Candidates(
                offsets=_tensor(candidate_offsets),
                item=_tensor(item),
                category=_tensor(category),
                match=_tensor(match),
                fields={name: _tensor(column) for name, column in fields.items()},
            ),
            context=Context(
                time_ms=_tensor(time_ms),
                place=_tensor(place),
                fields={name: _tensor(column) for name, column in context.items()},
            ),
            labels=_tensor(np.asarray(zeros if label is None else label, np.float32)),
            list_id=_tensor(np.asarray(zeros if list_id is None else list_id, np.int64)),
            request=_tensor(np.arange(num_requests) if request is None else request),
            user=_tensor(user),
        )

    def catalogue(self) -> Catalogue:
        """Return what the data say of every item, for rankers that keep a table of items."""
        return Catalogue(
            category=_tensor(np.asarray(self._category)),
            fields={name: _tensor(np.asarray(column)) for name, column in self._item_fields.items()},
        )

    def _of_items(self, item: Array) -> dict[str, Array]:
        return {name: np.take(column, item, axis=0) for name, column in self._item_fields.items()}


__all__ = ["Collator", "joined_slices"]
