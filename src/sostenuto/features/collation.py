"""Requests in, RequestBatch out: slices of the memory-mapped arrays, never a copy of a history per candidate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.assembly import Asked, Assembler, MetInBatch, offsets_of, tensor_of
from sostenuto.features.popularity import PopularityIndex
from sostenuto.features.view import HistoryView, view_features
from sostenuto.schema.histories import FutureWindow, RequestBatch, SequenceBatch

if TYPE_CHECKING:
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


def _targets(asked: Asked) -> Asked:
    """Return the candidates with label 1 alone."""
    kept = np.asarray(asked.label) > 0
    row = np.repeat(np.arange(len(asked.user)), np.diff(asked.offsets))
    return replace(
        asked,
        offsets=offsets_of(np.bincount(row[kept], minlength=len(asked.user))),
        candidate_fields={name: column[kept] for name, column in asked.candidate_fields.items()},
        item=asked.item[kept],
        label=None if asked.label is None else asked.label[kept],
        list_id=None if asked.list_id is None else asked.list_id[kept],
    )


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
        users = data.users
        in_user_table = set() if users is None else {name.removeprefix("field.") for name in users.columns}
        self.assembler = Assembler(
            features=self.features,
            time_zone=data.manifest.time_zone,
            category=data.item_category,
            item_fields={f.name: data.item_field(f.name) for f in data.features.item_fields},
            user_fields={
                f.name: data.user_field(f.name) for f in data.features.context_fields if f.name in in_user_table
            },
            popularity=PopularityIndex(num_items=data.features.num_items).joined(
                behaviours.item, behaviours.time_ms, behaviours.place
            ),
        )

    def batch(self, requests: Requests, rows: Array) -> RequestBatch:
        """Collate the requests `rows` of a split."""
        behaviours = self.data.behaviours
        user = np.asarray(requests.user[rows], np.int64)
        low = np.asarray(behaviours.offsets, np.int64)[user]
        end = low + np.asarray(requests.prefix[rows], np.int64)
        bounds = zip(low.tolist(), end.tolist(), strict=True)
        start = np.array([self.view.start(behaviours.time_ms, a, z) for a, z in bounds], np.int64)
        return self.assembler.batch(offsets_of(end - start), *self._behaviours(start, end), self._asked(requests, rows))

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
        offsets = offsets_of(prefix[last] - start)
        prefix = prefix - start[timeline]
        asked = self._asked(requests, rows)
        if negatives is not None:
            asked = _targets(asked)
        past, columns = self.assembler.history(offsets, history, event_fields)
        met = None
        if negatives is None:
            bounds = offsets_of(prefix)  # each request sees its timeline from the start
            seen = np.repeat(offsets[timeline] - bounds[:-1], prefix) + np.arange(bounds[-1])
            met = MetInBatch(offsets=bounds, positions=seen, past=columns)
        return SequenceBatch(
            histories=past,
            row=tensor_of(timeline),
            prefix=tensor_of(prefix),
            candidates=self.assembler.candidates(asked, met),
            negatives=None if negatives is None else self.assembler.items(negatives.item, _draws(negatives)),
            log_q=None if negatives is None or negatives.log_q is None else tensor_of(negatives.log_q),
            pool=None if negatives is None or negatives.pool is None else tensor_of(negatives.pool),
            future=None if windows is None else self._future(windows),
            **self.assembler.observed(asked),
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

    def _asked(self, requests: Requests, rows: Array) -> Asked:
        """Return requests of a split without their histories."""
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
        return Asked(
            offsets=offsets_of(last - first),
            item=joined_slices(requests.item, first, last),
            candidate_fields=fields,
            user=np.asarray(requests.user[rows], np.int64),
            time_ms=np.asarray(requests.time_ms[rows], np.int64),
            place=np.asarray(requests.place[rows], np.int64),
            context_fields=context,
            label=joined_slices(requests.label, first, last),
            list_id=joined_slices(requests.list_id, first, last),
            request=np.asarray(rows),
        )

    def _future(self, rows: WindowRows) -> FutureWindow:
        behaviours = self.data.behaviours
        return FutureWindow(
            items=self.assembler.items(np.asarray(behaviours.item)[rows.position], rows.offsets),
            step=tensor_of(rows.step),
            action=tensor_of(np.asarray(behaviours.action)[rows.position]),
        )


__all__ = ["Collator", "joined_slices"]
