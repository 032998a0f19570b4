"""Rank items for one user at one moment, and say which past behaviours carried each score.

The request goes through the same `Collator.assemble`, `encode` and `score` as in training and evaluation.
Explanations are by deletion, for any ranker: behaviours are grouped by item, each group of a shortlist is taken out of
the history, and the ranker is asked again (match features included). What is reported lowered the score when it was
removed; that is what "carried it" means here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.collation import Collator
from sostenuto.features.missing import missing_column
from sostenuto.schema.errors import DataError, did_you_mean
from sostenuto.schema.features import FIRST_KNOWN, UNKNOWN

if TYPE_CHECKING:
    from sostenuto.data.prepared import PreparedData
    from sostenuto.schema.histories import RequestBatch
    from sostenuto.schema.ranker import Ranker

Array = npt.NDArray[Any]

SCORED_AT_ONCE = 2_048  # candidates per call: bounds memory, changes no score (law 2)
SHORTLIST = 24  # item groups tried per explained candidate
REASONS = 3  # groups named per candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Past behaviours with one item, and what their removal does to the score."""

    item_id: str
    label: str
    count: int  # behaviours with that item
    last_time_ms: int
    drop: float  # logit with them minus logit without them, > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One ranked item."""

    rank: int
    item_id: str
    label: str
    logit: float
    probability: float  # of the training protocol's label; calibrated only as far as the run's report says
    reasons: tuple[Reason, ...] = ()
    joint_drop: float = 0.0  # logit minus logit without all behaviours named in `reasons`


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The answer to one request."""

    user_id: str
    time_ms: int
    place: str
    history_length: int
    num_candidates: int
    items: tuple[Ranked, ...] = field(default_factory=tuple)


class HistoryRanker:
    """A ranker opened on prepared data: ranks for any user of it, at any time, from what came before."""

    def __init__(self, data: PreparedData, collator: Collator, ranker: Ranker) -> None:
        self.data = data
        self.collator = collator
        self.ranker = ranker

    @cached_property
    def _user_index(self) -> dict[str, int]:
        return {raw: n for n, raw in enumerate(self.data.vocabulary("user")) if n >= FIRST_KNOWN}

    @cached_property
    def _item_ids(self) -> list[str]:
        return self.data.vocabulary("item")

    @cached_property
    def _item_index(self) -> dict[str, int]:
        return {raw: n for n, raw in enumerate(self._item_ids) if n >= FIRST_KNOWN}

    def rank(
        self,
        user_id: str,
        *,
        time_ms: int | None = None,
        candidates: Sequence[str] | None = None,
        k: int = 10,
        explain: bool = True,
    ) -> Ranking:
        """Rank candidates for a user.

        Args:
            user_id:     raw id.
            time_ms:     moment of the request, epoch ms; default: just after the last event of the whole log.
            candidates:  raw item ids; default: the protocol's candidate items, else every item with an embedding row.
            k:           items returned, at least 1.
            explain:     name the behaviours that carried each score.

        Raises:
            DataError: unknown user or item.
            ValueError: `k` below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        behaviours = self.data.behaviours
        user = self._user(user_id)
        moment = int(behaviours.time_ms.max()) + 1 if time_ms is None else int(time_ms)
        start, end = (int(x) for x in behaviours.offsets[user : user + 2])
        end = start + int(np.searchsorted(behaviours.time_ms[start:end], moment, side="left"))
        if self.collator.view.recent is not None:
            start = max(start, end - self.collator.view.recent)
        past = np.arange(start, end)
        place = int(behaviours.place[end - 1]) if end > start else 0
        items = self._candidates(candidates)
        logits = np.concatenate(
            [
                self._logits([past], items[at : at + SCORED_AT_ONCE], user, moment, place)[0]
                for at in range(0, len(items), SCORED_AT_ONCE)
            ]
        )
        best = np.lexsort((items, -logits))[:k]
        reasons: list[tuple[tuple[Reason, ...], float]] = [((), 0.0)] * len(best)
        if explain and len(past):
            reasons = self._explain(past, items[best], logits[best], user, moment, place)
        ranked = tuple(
            Ranked(
                rank=n + 1,
                item_id=self._item_ids[items[b]],
                label=self._label(int(items[b])),
                logit=float(logits[b]),
                probability=float(1.0 / (1.0 + np.exp(-logits[b]))),
                reasons=tuple(reasons[n][0]),
                joint_drop=reasons[n][1],
            )
            for n, b in enumerate(best)
        )
        return Ranking(
            user_id=user_id,
            time_ms=moment,
            place=self._place(place),
            history_length=len(past),
            num_candidates=len(items),
            items=ranked,
        )

    def _logits(self, histories: list[Array], items: Array, user: int, moment: int, place: int) -> Array:
        """Return (len(histories), len(items)) logits: the same candidates for each variant of the history."""
        import torch

        with torch.inference_mode():
            batch = self._assemble(histories, items, user, moment, place)
            state = self.ranker.encode(batch.histories)
            output = self.ranker.score(state, batch.candidates, batch.context)
        return np.asarray(output.logits.cpu().numpy(), np.float64).reshape(len(histories), len(items))

    def _assemble(self, histories: list[Array], items: Array, user: int, moment: int, place: int) -> RequestBatch:
        b, features = self.data.behaviours, self.data.features
        rows = np.concatenate(histories) if histories else np.zeros(0, np.int64)
        variants = len(histories)
        lengths = np.array([len(h) for h in histories])
        return self.collator.assemble(
            history_offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            history={name: getattr(b, name)[rows] for name in ("item", "time_ms", "action", "value", "place")},
            event_fields={f.name: b.fields[f.name][rows] for f in features.behaviour_fields},
            candidate_offsets=np.arange(variants + 1, dtype=np.int64) * len(items),
            item=np.tile(items, variants),
            candidate_fields={f.name: missing_column(f, variants * len(items)) for f in features.candidate_fields},
            user=np.full(variants, user, np.int64),
            time_ms=np.full(variants, moment, np.int64),
            place=np.full(variants, place, np.int64),
            context_fields={f.name: missing_column(f, variants) for f in features.context_fields},
        )

    def _explain(
        self, past: Array, items: Array, logits: Array, user: int, moment: int, place: int
    ) -> list[tuple[tuple[Reason, ...], float]]:
        """Return per candidate the groups whose removal lowers its score most, and the drop of removing them all."""
        past_item = np.asarray(self.data.behaviours.item[past], np.int64)
        groups = self._shortlist(past_item, items)
        rows_of = [np.flatnonzero(past_item == g) for g in groups]
        without = [np.delete(past, rows) for rows in rows_of]
        budget = max(1, 200_000 // max(len(past), 1))  # behaviours per call, bounds memory
        drops = logits - np.concatenate(
            [
                self._logits(without[at : at + budget], items, user, moment, place)
                for at in range(0, len(without), budget)
            ]
        )
        answers: list[tuple[tuple[Reason, ...], float]] = []
        for c in range(len(items)):
            order = [int(g) for g in np.argsort(-drops[:, c], kind="stable") if drops[g, c] > 0]
            answer: tuple[tuple[Reason, ...], float] = ((), 0.0)
            for kept in (order[:REASONS], order[:1]):  # together they may cancel; the strongest alone cannot
                if not kept:
                    break
                gone = np.concatenate([rows_of[g] for g in kept])
                left = self._logits([np.delete(past, gone)], items[c : c + 1], user, moment, place)[0, 0]
                if logits[c] - left > 0:
                    named = tuple(self._reason(int(groups[g]), past[rows_of[g]], float(drops[g, c])) for g in kept)
                    answer = (named, float(logits[c] - left))
                    break
            answers.append(answer)
        return answers

    def _shortlist(self, past_item: Array, items: Array) -> Array:
        """Return item groups worth trying: the same item, then the same kind from fine to coarse, then the frequent."""
        met, count = np.unique(past_item, return_counts=True)
        category = self.data.item_category
        chosen: list[int] = []
        for item in items:
            same = (met == item).astype(np.int64)
            if category.shape[1]:
                kin = (category[met] == category[item]) & (category[met] >= FIRST_KNOWN)
                same = same + kin.sum(1)
            order = np.lexsort((met, -count, -same))
            chosen += met[order[:SHORTLIST]].tolist()
        return np.unique(np.array(chosen, np.int64))

    def _reason(self, item: int, rows: Array, drop: float) -> Reason:
        return Reason(
            item_id=self._item_ids[item],
            label=self._label(item),
            count=len(rows),
            last_time_ms=int(self.data.behaviours.time_ms[rows].max()),
            drop=drop,
        )

    def _user(self, user_id: str) -> int:
        found = self._user_index.get(str(user_id))
        if found is None:
            some = ", ".join(list(self._user_index)[:3])
            raise DataError(
                f"user must be one of the {len(self._user_index)} users of {self.data.folder}, "
                f"got {user_id!r}; for example {some}"
            )
        return found

    def _candidates(self, wanted: Sequence[str] | None) -> Array:
        ids = self._item_ids
        if wanted is not None:
            unknown = [raw for raw in wanted if raw not in self._item_index]
            if unknown:
                hint = did_you_mean(unknown[0], ids[:20_000])
                raise DataError(
                    f"candidates must be item ids of {self.data.folder}, {unknown[0]!r} is not "
                    f"({len(unknown)} of {len(wanted)} unknown); leave them out.{hint}"
                )
            return np.array([self._item_index[raw] for raw in wanted], np.int64)
        pool = self.data.folder / "pools" / "candidate_items.npy"
        if pool.is_file():
            return np.sort(np.load(pool).astype(np.int64))
        return np.arange(FIRST_KNOWN, self.data.features.num_item_rows)

    def _label(self, item: int) -> str:
        """Return what a person can read: the item's texts, else its category names, coarse to fine."""
        row = self.data.items.row(item, named=True)
        hidden = ("category.", "field.")
        texts = [
            str(v) for k, v in row.items() if isinstance(v, str) and v and k != "item_id" and not k.startswith(hidden)
        ]
        if texts:
            return " - ".join(texts)
        names = []
        for level in self.data.features.categories:
            index = int(row[f"category.{level.name}"])
            if index > UNKNOWN:
                names.append(self.data.vocabulary(level.name)[index])
        return " / ".join(names) or self._item_ids[item]

    def _place(self, place: int) -> str:
        path = self.data.folder / "vocab" / "place.parquet"
        return self.data.vocabulary("place")[place] if place >= FIRST_KNOWN and path.is_file() else ""


__all__ = ["HistoryRanker", "Ranked", "Ranking", "Reason"]
