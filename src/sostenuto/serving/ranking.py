"""Rank items for one user at one moment, and say which past behaviours carried each score.

The request goes through the same `Assembler.batch`, `encode` and `score` as in training and evaluation. Explanations
are by deletion, for any ranker; see `explaining.py`.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.assembly import Asked, offsets_of
from sostenuto.features.collation import Collator
from sostenuto.features.missing import missing_column
from sostenuto.schema.errors import DataError, did_you_mean
from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.schema.ranker import ItemKeeper
from sostenuto.serving.explaining import Carrier, explain_by_deletion
from sostenuto.serving.labels import ItemLabels
from sostenuto.serving.scoring import SCORED_AT_ONCE, probabilities

if TYPE_CHECKING:
    from sostenuto.data.prepared import PreparedData
    from sostenuto.schema.histories import RequestBatch
    from sostenuto.schema.ranker import Ranker

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRequest:
    """One user at one moment, and the behaviours that the ranker sees of her."""

    user: int  # index
    time_ms: int
    place: int  # of the newest behaviour seen; 0 when there is none
    past: Array  # (L,) int64 rows of the data's behaviours, oldest first, all strictly before `time_ms`


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
    # of the training protocol's label; calibrated only as far as the run's report says. None: scores only order items
    probability: float | None
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
    items: tuple[Ranked, ...] = ()


class HistoryRanker:
    """A ranker opened on prepared data: ranks for any user of it, at any time, from what came before.

    What a ranker can compute of items alone is computed here, once for the whole catalogue.

    Args:
        data:                prepared.
        collator:            of the data and the view that the ranker was trained with.
        ranker:              put into evaluation mode.
        gives_probabilities: see `models.table.ModelEntry`; False leaves `Ranked.probability` out.
    """

    def __init__(
        self, data: PreparedData, collator: Collator, ranker: Ranker, *, gives_probabilities: bool = True
    ) -> None:
        self.data = data
        self.gives_probabilities = gives_probabilities
        self.collator = collator
        self.ranker = ranker
        self.label = ItemLabels(data)
        if callable(evaluation_mode := getattr(ranker, "eval", None)):
            evaluation_mode()
        if isinstance(ranker, ItemKeeper):
            ranker.keep_items(collator.assembler.catalogue())

    @cached_property
    def _user_index(self) -> dict[str, int]:
        return {raw: n for n, raw in enumerate(self.data.vocabulary("user")) if n >= FIRST_KNOWN}

    @cached_property
    def _item_ids(self) -> list[str]:
        return self.data.vocabulary("item")

    @cached_property
    def _item_index(self) -> dict[str, int]:
        return {raw: n for n, raw in enumerate(self._item_ids) if n >= FIRST_KNOWN}

    @cached_property
    def _after_the_log(self) -> int:
        return int(self.data.behaviours.time_ms.max(initial=0)) + 1

    @cached_property
    def _default_candidates(self) -> Array:
        pool = self.data.folder / "pools" / "candidate_items.npy"
        if pool.is_file():
            return np.sort(np.load(pool).astype(np.int64))
        return np.arange(FIRST_KNOWN, self.data.features.num_item_rows)

    def rank(
        self,
        user_id: str,
        *,
        time_ms: int | None = None,
        candidates: Sequence[str] | None = None,
        k: int = 10,
        explain: bool = True,
    ) -> Ranking:
        """Rank candidates for a user; equal scores stand in order of the items' training frequency.

        Args:
            user_id:     raw id.
            time_ms:     moment of the request, epoch ms; default: just after the last event of the whole log.
            candidates:  raw item ids, each once; default: the protocol's candidate items, else every item with an
                         embedding row.
            k:           items returned, at least 1.
            explain:     name the behaviours that carried each score.

        Raises:
            DataError: unknown user or item; no candidates, or one twice.
            ValueError: `k` below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}; ask for one item or more")
        request = self.request(user_id, time_ms)
        items = self._default_candidates if candidates is None else self.item_indices(candidates)
        if not len(items):
            raise DataError(f"candidates must be at least one item of {self.data.folder}, got none; name some")
        logits = np.concatenate(
            [
                self.logits(request, [request.past], items[at : at + SCORED_AT_ONCE])[0]
                for at in range(0, len(items), SCORED_AT_ONCE)
            ]
        )
        best = np.lexsort((items, -logits))[:k]
        reasons: list[tuple[tuple[Reason, ...], float]] = [((), 0.0)] * len(best)
        if explain and len(request.past):
            reasons = self._explain(request, items[best], logits[best])
        ranked = tuple(
            Ranked(
                rank=n + 1,
                item_id=self._item_ids[items[b]],
                label=self.label(int(items[b])),
                logit=float(logits[b]),
                probability=float(probabilities(logits[b])) if self.gives_probabilities else None,
                reasons=reasons[n][0],
                joint_drop=reasons[n][1],
            )
            for n, b in enumerate(best)
        )
        return Ranking(
            user_id=str(user_id),
            time_ms=request.time_ms,
            place=self._place(request.place),
            history_length=len(request.past),
            num_candidates=len(items),
            items=ranked,
        )

    def request(self, user_id: str, time_ms: int | None = None) -> LiveRequest:
        """Return what the ranker sees of a user at a moment, under the run's view.

        Raises:
            DataError: unknown user.
        """
        behaviours = self.data.behaviours
        user = self._user(str(user_id))
        moment = self._after_the_log if time_ms is None else int(time_ms)
        start, end = (int(x) for x in behaviours.offsets[user : user + 2])
        end = start + int(np.searchsorted(behaviours.time_ms[start:end], moment, side="left"))
        start = self.collator.view.start(behaviours.time_ms, start, end)
        return LiveRequest(
            user=user,
            time_ms=moment,
            place=int(behaviours.place[end - 1]) if end > start else 0,
            past=np.arange(start, end),
        )

    def logits(self, request: LiveRequest, histories: Sequence[Array], items: Array) -> Array:
        """Score the same candidates for several versions of a user's past.

        Args:
            request:   who asks, when and where.
            histories: V versions of the past: rising rows of the data's behaviours.
            items:     (C,) item indices.

        Returns:
            (V, C) float64.
        """
        import torch

        with torch.inference_mode():
            batch = self._assemble(request, histories, items)
            state = self.ranker.encode(batch.histories)
            output = self.ranker.score(state, batch.candidates, batch.context)
        return np.asarray(output.logits.cpu().numpy(), np.float64).reshape(len(histories), len(items))

    def _assemble(self, request: LiveRequest, histories: Sequence[Array], items: Array) -> RequestBatch:
        b, features = self.data.behaviours, self.data.features
        rows = np.concatenate(histories)
        versions = len(histories)
        asked = Asked(
            offsets=np.arange(versions + 1, dtype=np.int64) * len(items),
            item=np.tile(items, versions),
            candidate_fields={f.name: missing_column(f, versions * len(items)) for f in features.candidate_fields},
            user=np.full(versions, request.user, np.int64),
            time_ms=np.full(versions, request.time_ms, np.int64),
            place=np.full(versions, request.place, np.int64),
            context_fields={f.name: missing_column(f, versions) for f in features.context_fields},
        )
        return self.collator.assembler.batch(
            offsets_of(np.array([len(past) for past in histories])),
            {name: getattr(b, name)[rows] for name in ("item", "time_ms", "action", "value", "place")},
            {f.name: b.fields[f.name][rows] for f in features.behaviour_fields},
            asked,
        )

    def _explain(self, request: LiveRequest, items: Array, logits: Array) -> list[tuple[tuple[Reason, ...], float]]:
        """Return per candidate the groups whose removal lowers its score most, and the drop of removing them all."""
        past, b = request.past, self.data.behaviours

        def ask(versions: Sequence[Array], candidates: Array) -> Array:
            return self.logits(request, [past[kept] for kept in versions], items[candidates])

        found = explain_by_deletion(
            ask,
            np.asarray(b.item[past], np.int64),
            np.asarray(b.time_ms[past]),
            items,
            logits,
            self.data.item_category,
        )
        return [(tuple(self._reason(carrier) for carrier in why.carriers), why.joint_drop) for why in found]

    def _reason(self, carrier: Carrier) -> Reason:
        return Reason(
            item_id=self._item_ids[carrier.item],
            label=self.label(carrier.item),
            count=carrier.count,
            last_time_ms=carrier.last_time_ms,
            drop=carrier.drop,
        )

    def _user(self, user_id: str) -> int:
        found = self._user_index.get(user_id)
        if found is None:
            some = ", ".join(list(self._user_index)[:3])
            hint = did_you_mean(user_id, near_words(user_id, self._user_index))
            raise DataError(
                f"user must be one of the {len(self._user_index)} users of {self.data.folder}, got {user_id!r}; "
                f"name one of them, for example {some}.{hint}"
            )
        return found

    def item_indices(self, item_ids: Iterable[str]) -> Array:
        """Return the indices of raw item ids.

        Raises:
            DataError: an id that the data do not hold, or one given twice.
        """
        wanted = [str(raw) for raw in item_ids]
        unknown = [raw for raw in wanted if raw not in self._item_index]
        if unknown:
            hint = did_you_mean(unknown[0], near_words(unknown[0], self._item_index))
            raise DataError(
                f"candidates must be item ids of {self.data.folder}, {unknown[0]!r} is not "
                f"({len(unknown)} of {len(wanted)} unknown); leave them out.{hint}"
            )
        if twice := [raw for raw, count in Counter(wanted).items() if count > 1]:
            raise DataError(f"candidates must be distinct, got {twice[0]!r} more than once; leave the doubles out")
        return np.array([self._item_index[raw] for raw in wanted], np.int64)

    def _place(self, place: int) -> str:
        known = place >= FIRST_KNOWN and self.data.has_vocabulary("place")
        return self.data.vocabulary("place")[place] if known else ""


def near_words(word: str, known: Iterable[str], *, each: int = 100) -> list[str]:
    """Return the words that share the longest beginning or the longest end with `word`, `each` to every side.

    One wrong character leaves half of a word right. So the one that was meant is nearly always among these few hundred,
    and a slow comparison need not see a whole catalogue.

    >>> near_words("ham", ["hat", "jam", "beer", "cheese", "wine", "zebra"], each=1)
    ['cheese', 'hat', 'jam']
    """
    forward = sorted(known)
    backward = sorted(text[::-1] for text in forward)
    at, back = bisect.bisect_left(forward, word), bisect.bisect_left(backward, word[::-1])
    ends = (text[::-1] for text in backward[max(0, back - each) : back + each])
    return sorted({*forward[max(0, at - each) : at + each], *ends})


__all__ = ["HistoryRanker", "LiveRequest", "Ranked", "Ranking", "Reason", "near_words"]
