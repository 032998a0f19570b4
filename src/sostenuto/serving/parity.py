"""Does the service score as training and evaluation did? A prepared log is played to it in order of time.

At every moment the requests of that moment are scored first, then its events are sent: so the service has seen exactly
what happened strictly before. The logits of the same requests, collated from the prepared folder, must be the same up
to rounding (law 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from sostenuto.data.prepared import SPLITS
from sostenuto.schema.features import PADDING
from sostenuto.serving.scoring import Question
from sostenuto.serving.user_states import NEVER_MS
from sostenuto.serving.warming import RawEvents, moments, raw_value

if TYPE_CHECKING:
    from sostenuto.data.prepared import PreparedData, Requests
    from sostenuto.features.collation import Collator
    from sostenuto.schema.events import Event
    from sostenuto.schema.features import Field
    from sostenuto.schema.ranker import Ranker

Array = npt.NDArray[Any]

TOLERANCE = 1e-5  # of max(1, |logit|), law 3


class Service(Protocol):
    """What is played to: a service in this process, or one behind HTTP."""

    def score(self, question: Question, model: str) -> Sequence[float]:
        """Return the logits that a loaded model gives the items, in their order."""
        ...

    def append(self, events: Sequence[Event]) -> None:
        """Store events."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One request, scored by both."""

    model: str
    user_id: str
    time_ms: int
    history_length: int
    offline: Array  # (C,)
    online: Array  # (C,)

    @property
    def difference(self) -> float:
        """Largest difference, as a share of max(1, largest logit)."""
        if not len(self.offline):
            return 0.0
        scale = max(1.0, float(np.abs(self.offline).max()))
        return float(np.abs(self.offline - self.online).max()) / scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Offline:
    """A ranker over prepared data, in evaluation mode."""

    collator: Collator
    ranker: Ranker

    def logits(self, requests: Requests, row: int) -> tuple[Array, int]:
        """Return (C,) float64 logits of one request of a split, and how many behaviours were read."""
        import torch

        batch = self.collator.batch(requests, np.array([row]))
        with torch.inference_mode():
            state = self.ranker.encode(batch.histories)
            logits = self.ranker.score(state, batch.candidates, batch.context).logits
        return logits.double().numpy(force=True), int(batch.histories.lengths[0])


def replay(
    data: PreparedData,
    models: Mapping[str, Offline],
    service: Service,
    *,
    from_ms: int,
    until_ms: int | None = None,
    users: Sequence[int],
    splits: Sequence[str] = SPLITS,
    events_at_once: int | None = None,
    progress: Callable[[int], None] = lambda time_ms: None,
) -> Iterator[Scored]:
    """Play the log from a moment on and yield every request that was scored by both.

    Args:
        data:           prepared.
        models:         by the names that the service knows them by.
        service:        holds everything strictly before `from_ms`, of all users: popularity counts them all.
        from_ms:        the first moment played.
        until_ms:       the moment before which it ends; None = with the log.
        users:          indices of those whose requests are scored; events are sent of all users.
        splits:         where requests are taken from.
        events_at_once: most events of other users sent in one call; None = those of one moment at a time.
        progress:       is told the moment that is played.
    """
    end_ms = NEVER_MS if until_ms is None else until_ms
    raw, asker = RawEvents(data), RawRequests(data)
    due: dict[int, list[tuple[str, int]]] = {}
    chosen = set(users)
    for split in splits:
        requests = data.requests(split)
        time_ms = np.asarray(requests.time_ms)
        for row in np.flatnonzero((time_ms >= from_ms) & (time_ms < end_ms)).tolist():
            if int(requests.user[row]) in chosen:
                due.setdefault(int(requests.time_ms[row]), []).append((split, row))
    held: list[Event] = []
    times = sorted(due)
    played = iter([*moments(data, from_ms, end_ms), (None, [])])
    moment, events = next(played)
    while times or moment is not None:
        at = moment if moment is not None and (not times or moment < times[0]) else times[0]
        progress(at)
        if times and times[0] == at:
            if held:
                service.append(held)
                held = []
            for split, row in due[times.pop(0)]:
                requests = data.requests(split)
                question = asker.question(requests, row)
                for name, offline in models.items():
                    logits, length = offline.logits(requests, row)
                    yield Scored(
                        model=name,
                        user_id=question.user_id,
                        time_ms=question.time_ms,
                        history_length=length,
                        offline=logits,
                        online=np.asarray(service.score(question, name), np.float64),
                    )
        if moment == at:
            for user, rows in events:
                held += raw.of(user, rows)
            if events_at_once is None or len(held) >= events_at_once:
                service.append(held)
                held = []
            moment, events = next(played)
    if held:
        service.append(held)


class RawRequests:
    """Requests of prepared data with raw ids and raw values."""

    def __init__(self, data: PreparedData) -> None:
        self._data = data
        self._users, self._items = data.vocabulary("user"), data.vocabulary("item")
        self._words: dict[str, list[str]] = {}
        for name in ("place", *(f.name for f in (*data.features.candidate_fields, *data.features.context_fields))):
            if (data.folder / "vocab" / f"{name}.parquet").is_file():
                self._words[name] = data.vocabulary(name)
        users = data.users
        self._of_user = set() if users is None else {name.removeprefix("field.") for name in users.columns}

    def question(self, requests: Requests, row: int) -> Question:
        """Return one request of a split."""
        features = self._data.features
        at = slice(int(requests.offsets[row]), int(requests.offsets[row + 1]))
        place = int(requests.place[row])
        return Question(
            user_id=self._users[int(requests.user[row])],
            time_ms=int(requests.time_ms[row]),
            items=[self._items[i] for i in np.asarray(requests.item[at]).tolist()],
            place=self._words["place"][place] if place != PADDING and "place" in self._words else "",
            candidate_fields={
                f.name: [self._raw(f, v) for v in requests.candidate[f.name][at]]
                for f in features.candidate_fields
                if f.name in requests.candidate
            },
            context={
                f.name: self._raw(f, requests.context[f.name][row])
                for f in features.context_fields
                if f.name in requests.context and f.name not in self._of_user
            },
        )

    def _raw(self, field: Field, value: Any) -> Any:
        return raw_value(field, self._words.get(field.name, []), value)


__all__ = ["TOLERANCE", "Offline", "RawRequests", "Scored", "Service", "replay"]
