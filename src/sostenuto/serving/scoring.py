"""One ranking from a live model: what the request says and what the user did, through `score`, to an order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from sostenuto.features.assembly import Asked, MetInIndex
from sostenuto.features.clock import CLOCK_FIELDS
from sostenuto.schema.features import UNKNOWN
from sostenuto.serving.drift import Drift, Reference, numbers
from sostenuto.serving.service import Served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sostenuto.serving.bundle import Bundle
    from sostenuto.serving.live_model import LiveModel
    from sostenuto.serving.service import StateOrigin
    from sostenuto.serving.user_states import UserState, UserStates

Array = npt.NDArray[Any]

SCORED_AT_ONCE = 2_048  # candidates per call: bounds memory, changes no score (law 2)
_CLOCK = {f.name for f in CLOCK_FIELDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One user at one moment, and the items to be scored."""

    user_id: str
    time_ms: int
    items: Sequence[str]  # raw ids
    place: str = ""
    candidate_fields: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # columns, aligned with the items
    context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a live model says of the items, and from what."""

    logits: Array  # (C,) float64, aligned with the items
    item: Array  # (C,) int64 indices of the bundle; 1 = unknown
    state: UserState
    origin: StateOrigin
    stage_s: Mapping[str, float]  # seconds: state (the store included), features, score

    @property
    def unknown(self) -> int:
        """How many of the items the bundle does not know."""
        return int((self.item == UNKNOWN).sum())


class Stopwatch:
    """Seconds by stage; a stage ends where the next begins."""

    def __init__(self) -> None:
        self.stage_s: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap on a stage."""
        now = time.perf_counter()
        self.stage_s[stage] = self.stage_s.get(stage, 0.0) + now - self._since
        self._since = now


class Scorer:
    """Scores candidates with a live model and the kept states of its users."""

    def __init__(self, model: LiveModel, states: UserStates) -> None:
        self.model, self.states = model, states
        own = model.bundle.prepared_features
        of_user = {f.name for f in model.bundle.user_fields}
        self._candidate_fields = own.candidate_fields
        reference = model.bundle.manifest.reference
        self.drift = None if reference is None else Drift(Reference(**reference.model_dump()))
        self._user_fields = tuple(f for f in own.context_fields if f.name in of_user)
        self._context_fields = tuple(f for f in own.context_fields if f.name not in of_user | _CLOCK)

    def scores(self, asked: Question) -> Scores:
        """Score the items of a request with what the user did strictly before it.

        Raises:
            RequestError: a field that the model does not have, or a value that does not fit its kind.
        """
        watch = Stopwatch()
        state, origin = self.states.at(asked.user_id, asked.time_ms)
        watch.lap("state")
        request = self.request(asked)
        watch.lap("features")
        logits = self.logits(state, request, watch)
        return Scores(logits=logits, item=request.item, state=state, origin=origin, stage_s=watch.stage_s)

    def request(self, asked: Question) -> Asked:
        """Return a request as flat arrays of one row."""
        model = self.model
        context = model.columns("context", self._context_fields, {k: [v] for k, v in asked.context.items()}, 1)
        if self._user_fields:
            known = {f.name for f in self._user_fields}
            stored = model.store.user_fields(asked.user_id) or {}
            of_user = {name: [value] for name, value in stored.items() if name in known}
            context |= model.columns("user", self._user_fields, of_user, 1)
        item = model.item_indices(asked.items)
        return Asked(
            offsets=np.array([0, len(asked.items)]),
            item=item,
            about=model.about(asked.items, item),
            candidate_fields=model.columns(
                "candidate_fields", self._candidate_fields, asked.candidate_fields, len(asked.items)
            ),
            user=np.array([UNKNOWN]),
            time_ms=np.array([asked.time_ms], np.int64),
            place=np.array([model.place_index(asked.place)], np.int64),
            context_fields=context,
        )

    def logits(self, state: UserState, request: Asked, watch: Stopwatch | None = None) -> Array:
        """Return (C,) float64 logits of a request of one row against a state."""
        import torch

        watch = Stopwatch() if watch is None else watch
        assembler, ranker = self.model.assembler, self.model.ranker
        met = MetInIndex(index=state.index)
        found = []
        with torch.inference_mode():
            context = assembler.context(request)
            for part in _parts(request):
                candidates = assembler.candidates(part, met)
                watch.lap("features")
                logits = ranker.score(state.state, candidates, context).logits.numpy(force=True)
                found.append(logits)
                watch.lap("score")
                if self.drift is not None and self.drift.is_due():
                    self.drift.observe(logits, numbers(self.model.features, candidates))
                    watch.lap("features")
        return np.concatenate(found).astype(np.float64) if found else np.zeros(0)


def _parts(asked: Asked) -> Iterator[Asked]:
    """Cut a request of one row into requests of few candidates."""
    count = len(asked.item)
    if count <= SCORED_AT_ONCE:
        yield asked
        return
    for at in range(0, count, SCORED_AT_ONCE):
        rows = slice(at, at + SCORED_AT_ONCE)
        item = asked.item[rows]
        yield replace(
            asked,
            offsets=np.array([0, len(item)]),
            item=item,
            candidate_fields={name: column[rows] for name, column in asked.candidate_fields.items()},
            about=None if asked.about is None else asked.about.part(rows),
        )


def probabilities(logits: Array) -> Array:
    """Return 1 / (1 + exp(-logit)), finite for every logit."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits))


def served_by(
    bundle: Bundle,
    state: UserState,
    origin: StateOrigin,
    arm: Literal["main", "canary", "forced"],
    *,
    unknown: int,
    stage_s: Mapping[str, float],
) -> Served:
    """Say who answered, from what."""
    return Served(
        model=bundle.name,
        version=bundle.version,
        arm=arm,
        history_length=int(state.index.length[0]),
        newest_ms=state.newest_ms if state.count else None,
        revision=state.revision,
        state=origin,
        unknown_candidates=unknown,
        stage_s=stage_s,
    )


def best_first(logits: Array) -> Array:
    """Return positions by falling logit; equal ones stay in their order."""
    return np.argsort(-logits, kind="stable")


__all__ = ["SCORED_AT_ONCE", "Question", "Scorer", "Scores", "Stopwatch", "best_first", "probabilities", "served_by"]
