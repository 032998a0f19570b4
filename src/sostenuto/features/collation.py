"""Requests in, RequestBatch out: slices of the memory-mapped arrays, never a copy of a history per candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.clock import local_clock
from sostenuto.features.match import level_keys, match_features
from sostenuto.features.popularity import PopularityIndex
from sostenuto.features.view import HistoryView, view_features
from sostenuto.schema.histories import (
    Candidates,
    Catalogue,
    Context,
    FutureWindow,
    History,
    RequestBatch,
    SequenceBatch,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sostenuto.data.prepared import PreparedData, Requests
    from sostenuto.features.negatives import Negatives
    from sostenuto.features.windows import WindowRows

Array = npt.NDArray[Any]


SHORT_SLICES = 64  # mean length below which one gather is quicker than many slices


def joined_slices(array: Array, start: Array, end: Array) -> Array:
    """Return array[start[0]:end[0]], array[start[1]:end[1]], ... one after another."""
    array = np.asarray(array)  # slices of a memory map itself are slow to make
    if not len(start):
        return array[:0]
    lengths = np.asarray(end) - start
    total = int(lengths.sum())
    if total < SHORT_SLICES * len(start):
        first = np.asarray(start) - (np.cumsum(lengths) - lengths)
        return array[np.repeat(first, lengths) + np.arange(total)]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """What match features read of N behaviours."""

    item: Array
    category: Array
    fields: Mapping[str, Array]
    time_ms: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reads:
    """Which behaviours each of R requests may read."""

    offsets: Array  # (R + 1,)
    positions: Array | None  # of the behaviours, request after request; None = all of them, in their order
    columns: _Columns


def _targets(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of the candidates with label 1 alone."""
    kept = np.asarray(asked["label"]) > 0
    row = np.repeat(np.arange(len(asked["user"])), np.diff(asked["candidate_offsets"]))
    return {
        "candidate_offsets": _offsets(np.bincount(row[kept], minlength=len(asked["user"]))),
        "candidate_fields": {name: column[kept] for name, column in asked["candidate_fields"].items()},
        **{name: asked[name][kept] for name in ("item", "label", "list_id")},
    }


def _draws(negatives: Negatives) -> Array:
    """Return the (G + 1,) offsets of draws of one size."""
    size = len(negatives.item) // negatives.draws
    return np.arange(negatives.draws + 1, dtype=np.int64) * size


class Collator:
    """Builds batches of one prepared data set under one view. Offline and online requests take the same way."""

    def __init__(self, data: PreparedData, view: HistoryView) -> None:
        self.data = data
        self.view = view
        content = tuple(manifest.sizes for manifest in data.content().values())
        self.features = view_features(replace(data.features, content=content), view)
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
        low = np.asarray(behaviours.offsets, np.int64)[user]
        end = low + np.asarray(requests.prefix[rows], np.int64)
        bounds = zip(low.tolist(), end.tolist(), strict=True)
        start = np.array([self.view.start(behaviours.time_ms, a, z) for a, z in bounds], np.int64)
        history, event_fields = self._behaviours(start, end)
        return self.assemble(
            history_offsets=_offsets(end - start),
            history=history,
            event_fields=event_fields,
            **self._asked(requests, rows),
        )

    def sequences(
        self,
        requests: Requests,
        rows: Array,
        timeline: Array,
        start: Array,
        negatives: Negatives | None = None,
        windows: WindowRows | None = None,
    ) -> SequenceBatch:
        """Collate requests of a split that share timelines.

        Args:
            requests:  of the split.
            rows:      (R,) rows of it; those of one timeline lie together and rise by prefix.
            timeline:  (R,) int64 0 .. U - 1, never decreasing: requests of one timeline are of one user.
            start:     (U,) int64 how many of the user's oldest behaviours each timeline leaves out.
            negatives: items that all requests are held against; then candidates are the targets (label 1) alone, and
                       carry neither match features nor popularity.
            windows:   rows of the log that are targets of each request.
        """
        timeline, start = np.asarray(timeline, np.int64), np.asarray(start, np.int64)
        user = np.asarray(requests.user[rows], np.int64)
        prefix = np.asarray(requests.prefix[rows], np.int64)
        last = np.append(np.flatnonzero(np.diff(timeline)), len(rows) - 1)  # of each timeline, the longest prefix
        low = np.asarray(self.data.behaviours.offsets, np.int64)[user[last]]
        history, event_fields = self._behaviours(low + start, low + prefix[last])
        offsets = _offsets(prefix[last] - start)
        prefix = prefix - start[timeline]
        asked = self._asked(requests, rows)
        if negatives is not None:
            asked |= _targets(asked)
        past, columns = self._history(offsets, history, event_fields)
        reads = None
        if negatives is None:
            bounds = _offsets(prefix)  # each request sees its timeline from the start
            seen = np.repeat(offsets[timeline] - bounds[:-1], prefix) + np.arange(bounds[-1])
            reads = _Reads(offsets=bounds, positions=seen, columns=columns)
        return SequenceBatch(
            histories=past,
            row=_tensor(timeline),
            prefix=_tensor(prefix),
            candidates=self._candidates(asked, reads),
            negatives=None if negatives is None else self.items(negatives.item, _draws(negatives)),
            log_q=None if negatives is None or negatives.log_q is None else _tensor(negatives.log_q),
            pool=None if negatives is None or negatives.pool is None else _tensor(negatives.pool),
            future=None if windows is None else self._future(windows),
            **self._observed(asked),
        )

    def _behaviours(self, start: Array, end: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the columns and the further fields of slices of the log, one after another."""
        behaviours = self.data.behaviours
        history = {
            name: joined_slices(getattr(behaviours, name), start, end)
            for name in ("item", "time_ms", "action", "value", "place")
        }
        fields = {f.name: joined_slices(behaviours.fields[f.name], start, end) for f in self.features.behaviour_fields}
        return history, fields

    def _asked(self, requests: Requests, rows: Array) -> dict[str, Any]:
        """Return what `assemble` takes of requests of a split, beside their histories."""
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
        return {
            "candidate_offsets": _offsets(last - first),
            "item": joined_slices(requests.item, first, last),
            "candidate_fields": fields,
            "user": np.asarray(requests.user[rows], np.int64),
            "time_ms": np.asarray(requests.time_ms[rows], np.int64),
            "place": np.asarray(requests.place[rows], np.int64),
            "context_fields": context,
            "label": joined_slices(requests.label, first, last),
            "list_id": joined_slices(requests.list_id, first, last),
            "request": np.asarray(rows),
        }

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
        asked = {
            "candidate_offsets": candidate_offsets,
            "item": item,
            "candidate_fields": candidate_fields,
            "user": user,
            "time_ms": time_ms,
            "place": place,
            "context_fields": context_fields,
            "label": label,
            "list_id": list_id,
            "request": request,
        }
        past, columns = self._history(history_offsets, history, event_fields)
        reads = _Reads(offsets=history_offsets, positions=None, columns=columns)
        return RequestBatch(histories=past, candidates=self._candidates(asked, reads), **self._observed(asked))

    def _history(
        self, offsets: Array, history: Mapping[str, Array], event_fields: Mapping[str, Array]
    ) -> tuple[History, _Columns]:
        item = np.asarray(history["item"], np.int64)
        fields = self._of_items(item) | dict(event_fields)
        category = np.take(self._category, item, axis=0)
        tensors = History(
            offsets=_tensor(offsets),
            item=_tensor(item),
            category=_tensor(category),
            time_ms=_tensor(history["time_ms"]),
            action=_tensor(history["action"]),
            value=_tensor(history["value"]),
            place=_tensor(history["place"]),
            fields={name: _tensor(column) for name, column in fields.items()},
        )
        return tensors, _Columns(item=item, category=category, fields=fields, time_ms=history["time_ms"])

    def _candidates(self, asked: Mapping[str, Any], reads: _Reads | None) -> Candidates:
        """Return candidates with item fields, popularity, and match features of what their requests may read.

        Without `reads` they are targets of a search, which knows an item by itself: neither popularity nor match.
        """
        offsets, time_ms = asked["candidate_offsets"], asked["time_ms"]
        item = np.asarray(asked["item"], np.int64)
        row = np.repeat(np.arange(len(time_ms)), np.diff(offsets))
        fields = dict(asked["candidate_fields"]) | self._of_items(item)
        if reads is not None:
            fields |= self._popularity.features(item, row, time_ms, asked["place"])
        category = np.take(self._category, item, axis=0)
        match = np.zeros((len(item), 0), np.float32)
        if self.features.match and reads is not None:
            past, at = reads.columns, reads.positions
            keys = level_keys(self.features, past.item, past.category, past.fields)
            moments = past.time_ms
            if at is not None:
                keys, moments = [key[at] for key in keys], moments[at]
            wanted = level_keys(self.features, item, category, fields)
            match = match_features(reads.offsets, moments, keys, offsets, time_ms, wanted)
        return Candidates(
            offsets=_tensor(offsets),
            item=_tensor(item),
            category=_tensor(category),
            match=_tensor(match),
            fields={name: _tensor(column) for name, column in fields.items()},
        )

    def items(self, item: Array, offsets: Array | None = None) -> Candidates:
        """Return items that no request shows, as one row or in rows: without what only a request gives them."""
        item = np.asarray(item, np.int64)
        offsets = np.array([0, len(item)]) if offsets is None else offsets
        return Candidates(
            offsets=_tensor(offsets),
            item=_tensor(item),
            category=_tensor(np.take(self._category, item, axis=0)),
            match=_tensor(np.zeros((len(item), 0), np.float32)),
            fields={name: _tensor(column) for name, column in self._of_items(item).items()},
        )

    def _future(self, rows: WindowRows) -> FutureWindow:
        behaviours = self.data.behaviours
        return FutureWindow(
            items=self.items(np.asarray(behaviours.item)[rows.position], rows.offsets),
            step=_tensor(rows.step),
            action=_tensor(np.asarray(behaviours.action)[rows.position]),
        )

    def _observed(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return context and labels, the fields that both kinds of batch share."""
        user, time_ms = asked["user"], asked["time_ms"]
        context = dict(asked["context_fields"]) | local_clock(time_ms, self.data.manifest.time_zone)
        context |= {name: column[user] for name, column in self._user_fields.items()}
        zeros = np.zeros(len(asked["item"]))
        label, list_id, request = asked["label"], asked["list_id"], asked["request"]
        return {
            "context": Context(
                time_ms=_tensor(time_ms),
                place=_tensor(asked["place"]),
                fields={name: _tensor(column) for name, column in context.items()},
            ),
            "labels": _tensor(np.asarray(zeros if label is None else label, np.float32)),
            "list_id": _tensor(np.asarray(zeros if list_id is None else list_id, np.int64)),
            "request": _tensor(np.arange(len(user)) if request is None else request),
            "user": _tensor(user),
        }

    def catalogue(self) -> Catalogue:
        """Return what the data say of every item, for rankers that keep a table of items."""
        return Catalogue(
            category=_tensor(np.asarray(self._category)),
            fields={name: _tensor(np.asarray(column)) for name, column in self._item_fields.items()},
        )

    def _of_items(self, item: Array) -> dict[str, Array]:
        return {name: np.take(column, item, axis=0) for name, column in self._item_fields.items()}


__all__ = ["Collator", "joined_slices"]
