"""Candidates from several sources, a cheap stage, the ranker, and a list that keeps the rules: `/v1/recommend`."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from sostenuto.schema.errors import RequestError, did_you_mean
from sostenuto.schema.features import UNKNOWN
from sostenuto.serving.recommending.arranging import (
    EXPLORED,
    MUST_INCLUDE,
    Arranged,
    Cap,
    Exploration,
    Lawful,
    arrange,
)
from sostenuto.serving.recommending.cheap import CheapWeights, cheap_scores, cut
from sostenuto.serving.recommending.company import TogetherSource
from sostenuto.serving.recommending.nearest import (
    NearestSource,
    SearchSource,
    VectorIndex,
    content_vectors,
    fixed_vectors,
    is_retriever,
)
from sostenuto.serving.recommending.past import Pasts, UserPast
from sostenuto.serving.recommending.popular import PopularSource
from sostenuto.serving.recommending.repeat import RepeatSource
from sostenuto.serving.recommending.similarity import ItemSimilarity
from sostenuto.serving.recommending.source import CandidateSource, Merged, Seeker
from sostenuto.serving.scoring import Question, Stopwatch, probabilities, served_by
from sostenuto.serving.service import RecommendAnswer, Recommended

if TYPE_CHECKING:
    from sostenuto.features.assembly import Asked
    from sostenuto.serving.bundle import Bundle
    from sostenuto.serving.scoring import Scorer
    from sostenuto.serving.service import RecommendRequest

Array = npt.NDArray[Any]

REQUEST = "request"  # the source of what a request brings itself
BUDGETS = {"repeat": 200, "popular": 200, "together": 200, "vectors": 200, "content": 200}
OTHER_BUDGET = 200  # of a source that is not named there
DETERMINISTIC, UNIFORM_SLOTS = "deterministic", "uniform_slots"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendSettings:
    """How lists are made where a request does not say otherwise."""

    budgets: Mapping[str, int] = field(default_factory=dict)  # by source, beside BUDGETS; 0 leaves a source out
    ranked: int = 500  # candidates that the ranker scores; those that a request names always come through
    cheap: CheapWeights = field(default_factory=CheapWeights)
    bought_actions: tuple[str, ...] = ()  # names of the actions that `already_bought` is about; () = all
    diversity: float = 0.0
    exploration: Exploration | None = None  # None = lists are deterministic

    def __post_init__(self) -> None:
        for name, budget in self.budgets.items():
            if budget < 0:
                raise ValueError(f"RecommendSettings.budgets[{name!r}] must not be negative, got {budget}")
        if self.ranked < 1:
            raise ValueError(f"RecommendSettings.ranked must be at least 1, got {self.ranked}")
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"RecommendSettings.diversity must lie in 0 .. 1, got {self.diversity}")

    def budget(self, source: str) -> int:
        """Return how many items a source may propose; `content.<name>` may as many as `content`."""
        kind = source.partition(".")[0]
        return self.budgets.get(source, self.budgets.get(kind, BUDGETS.get(kind, OTHER_BUDGET)))


class _Keys:
    """Numbers for the items of one request: indices of the bundle, and beyond them what the bundle does not know."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._vocabulary = bundle.vocabularies["item"]
        self._start = bundle.features.num_items
        self._unknown: dict[str, int] = {}

    def of(self, item_ids: Sequence[str]) -> Array:
        """Return (N,) int64 keys of raw ids, each once."""
        keys = np.zeros(len(item_ids), np.int64)
        for n, raw in enumerate(item_ids):
            found = self._vocabulary.index(raw)
            keys[n] = found if found > UNKNOWN else self._unknown.setdefault(raw, self._start + len(self._unknown))
        _, first = np.unique(keys, return_index=True)
        return keys[np.sort(first)]

    def ids(self, keys: Array) -> list[str]:
        """Return the raw ids of keys."""
        unknown = list(self._unknown)
        known = self._vocabulary.ids
        return [known[key] if key < self._start else unknown[key - self._start] for key in keys.tolist()]

    def among(self, item_ids: frozenset[str]) -> list[int]:
        """Return the keys of raw ids that the bundle does not know and this request has named."""
        return [key for raw, key in self._unknown.items() if raw in item_ids]

    def columns(self, keys: Array, column: Array) -> Array:
        """Look keys up in a column of the bundle's items; 0 for those beyond."""
        inside = keys < self._start
        return np.where(inside, column[np.where(inside, keys, 0)], 0).astype(np.int64)


class Recommender:
    """Everything behind `/v1/recommend` but HTTP; safe to share between threads.

    Args:
        scorer:   of a deployed model.
        sources:  of candidates; see `sources_of`.
        similarity: what diversity goes by.
        settings: defaults of lists.
        salt:     of the draws of exploring places; a secret of the server, so that nobody can choose them by choosing
                  request ids. None = drawn now.
    """

    def __init__(
        self,
        scorer: Scorer,
        sources: Sequence[CandidateSource],
        similarity: ItemSimilarity,
        settings: RecommendSettings,
        *,
        salt: bytes | None = None,
    ) -> None:
        self.scorer, self.settings = scorer, settings
        self.sources = {s.name: s for s in sources if settings.budget(s.name) > 0}
        self.pasts = Pasts(scorer.model, bought_actions=settings.bought_actions)
        self._salt = secrets.token_bytes(32) if salt is None else salt
        self._similarity = similarity

    @classmethod
    def of(cls, scorer: Scorer, settings: RecommendSettings | None = None, *, salt: bytes | None = None) -> Recommender:
        """Put together what the bundle of a scorer has parts for."""
        settings = RecommendSettings() if settings is None else settings
        vectors = vectors_of(scorer.model.bundle)
        category = scorer.model.bundle.item_category
        similarity = ItemSimilarity(category=category, vectors=next((v.every for v in vectors.values()), None))
        return cls(scorer, sources_of(scorer, settings, vectors), similarity, settings, salt=salt)

    def recommend(
        self, request: RecommendRequest, *, arm: Literal["main", "canary", "forced"] = "main"
    ) -> RecommendAnswer:
        """Make a list.

        Raises:
            RequestError: an unknown source or cap, a context field or value that does not fit, rules that contradict
                each other, or a diversity outside 0 .. 1.
        """
        chosen = self._chosen(request.sources)
        diversity = self.settings.diversity if request.diversity is None else request.diversity
        if not 0 <= diversity <= 1:
            raise RequestError(f"diversity must lie in 0 .. 1, got {diversity}; send such a number")
        if request.k < 1:
            raise RequestError(f"k must be at least 1, got {request.k}; ask for one item or more")
        watch = Stopwatch()
        model, states = self.scorer.model, self.scorer.states
        past = self.pasts.at(request.user_id, request.time_ms)
        watch.lap("store")
        state, origin = states.at(request.user_id, request.time_ms)
        watch.lap("state")
        keys = _Keys(model.bundle)
        must = keys.of(request.must_include)
        asked = self._question(request, ())
        seeker = Seeker(
            past=past,
            time_ms=request.time_ms,
            place=int(asked.place[0]),
            popularity=model.assembler.popularity,
            state=state.state,
            context=model.assembler.context(asked),
        )
        merged = self._merged(request, seeker, chosen, keys, must)
        excluded = keys.of(request.exclude)
        merged = merged.kept(~np.isin(merged.item, excluded) & self._may(request, merged.item, past, keys))
        num_candidates = len(merged)
        merged = self._cut(merged, seeker, must)
        ids = keys.ids(merged.item)
        watch.lap("candidates")
        logits = np.zeros(0)
        unknown = 0
        if ids:
            scored = self._question(request, ids)
            unknown = int((scored.item == UNKNOWN).sum())
            logits = self.scorer.logits(state, scored, watch)
        lawful = Lawful(
            score=logits, is_must=np.isin(merged.item, must), caps=self._caps(request.caps, merged.item, keys)
        )
        exploration = self.settings.exploration if request.explore else None
        arranged = arrange(
            lawful,
            request.k,
            diversity=diversity,
            similarity=lambda row: self._similarity.to(int(merged.item[row]), merged.item),
            exploration=exploration,
            draw=None if exploration is None else self._draw(request),
        )
        items = self._items(request, merged, ids, lawful, arranged)
        watch.lap("rerank")
        return RecommendAnswer(
            items=items,
            num_candidates=num_candidates,
            candidates=ids,
            policy=UNIFORM_SLOTS if arranged.is_explored.any() else DETERMINISTIC,
            served=served_by(model.bundle, state, origin, arm, unknown=unknown, stage_s=watch.stage_s),
        )

    def _chosen(self, names: Sequence[str]) -> list[CandidateSource]:
        for name in names:
            if name not in self.sources and name != REQUEST:
                known = [*self.sources, REQUEST]
                raise RequestError(
                    f"sources must be among {', '.join(known)}, got {name!r}; leave it out.{did_you_mean(name, known)}"
                )
        return [s for name, s in self.sources.items() if not names or name in names]

    def _question(self, request: RecommendRequest, items: Sequence[str]) -> Asked:
        return self.scorer.request(
            Question(
                user_id=request.user_id,
                time_ms=request.time_ms,
                items=items,
                place=request.place,
                context=request.context,
            )
        )

    def _merged(
        self, request: RecommendRequest, seeker: Seeker, chosen: Sequence[CandidateSource], keys: _Keys, must: Array
    ) -> Merged:
        proposals = [(s.name, s.propose(seeker, self.settings.budget(s.name)).item) for s in chosen]
        if request.candidates:
            proposals.append((REQUEST, keys.of(request.candidates)))
        if len(must):
            proposals.append((MUST_INCLUDE, must))
        return Merged.of(proposals)

    def _may(self, request: RecommendRequest, items: Array, past: UserPast, keys: _Keys) -> Array:
        """Return (C,) bool: what the policy on what was bought lets pass."""
        if request.already_bought == "allow":
            return np.ones(len(items), np.bool_)
        found, at = past.find(items)
        bought = found.copy()
        bought[found] = past.is_bought[at[found]]
        bought |= np.isin(items, keys.among(past.bought_unknown))
        return bought if request.already_bought == "only" else ~bought

    def _cut(self, merged: Merged, seeker: Seeker, must: Array) -> Merged:
        if len(merged) <= self.settings.ranked:
            return merged
        named = np.isin(merged.item, must)
        if REQUEST in merged.names:
            named |= merged.rank[:, merged.names.index(REQUEST)] >= 0
        inside = np.where(merged.item < self.scorer.model.features.num_items, merged.item, UNKNOWN)
        known = Merged(item=inside, names=merged.names, rank=merged.rank)
        return merged.kept(cut(cheap_scores(known, seeker, self.settings.cheap), named, self.settings.ranked))

    def _caps(self, caps: Mapping[str, int], items: Array, keys: _Keys) -> list[Cap]:
        bundle = self.scorer.model.bundle
        levels = {f.name: n for n, f in enumerate(bundle.features.categories)}
        fields = [f.name for f in bundle.features.item_fields if f.kind == "categorical"]
        found = []
        for name, most in caps.items():
            if name in levels:
                column = bundle.item_category[:, levels[name]]
            elif name in fields:
                column = bundle.item_fields[name]
            else:
                known = [*levels, *fields]
                raise RequestError(
                    f"caps must name category levels or categorical item fields "
                    f"({', '.join(known) or 'there are none'}), got {name!r}; leave it out.{did_you_mean(name, known)}"
                )
            if most < 1:
                raise RequestError(f"caps.{name} must be at least 1, got {most}; exclude items to have none of them")
            found.append(Cap(name=name, value=keys.columns(items, column), most=most))
        return found

    def _draw(self, request: RecommendRequest) -> np.random.Generator:
        text = f"{len(request.request_id)} {request.request_id} {request.user_id} {request.time_ms}"
        digest = hashlib.blake2b(text.encode(), key=self._salt[:64], digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "big"))

    def _items(
        self, request: RecommendRequest, merged: Merged, ids: Sequence[str], lawful: Lawful, arranged: Arranged
    ) -> list[Recommended]:
        gives = request.with_probabilities and self.scorer.model.bundle.entry.gives_probabilities
        items = []
        for row, is_explored, propensity in zip(
            arranged.row.tolist(), arranged.is_explored.tolist(), arranged.propensity.tolist(), strict=True
        ):
            score = float(lawful.score[row])
            items.append(
                Recommended(
                    item_id=ids[row],
                    score=score,
                    sources=merged.sources(row),
                    propensity=propensity,
                    probability=float(probabilities(np.asarray(score))) if gives else None,
                    rule=EXPLORED if is_explored else MUST_INCLUDE if lawful.is_must[row] else "",
                )
            )
        return items


def vectors_of(bundle: Bundle) -> dict[str, VectorIndex]:
    """Return the item vectors that a bundle has, by the source that searches them: content first."""
    items = bundle.candidate_items
    found = {}
    for name, content in bundle.content.items():
        called = "content" if len(bundle.content) == 1 else f"content.{name}"
        found[called] = VectorIndex.of(items, content_vectors(content))
    if (vectors := fixed_vectors(bundle.ranker)) is not None:
        found["vectors"] = VectorIndex.of(items, vectors)
    return found


def sources_of(
    scorer: Scorer, settings: RecommendSettings, vectors: Mapping[str, VectorIndex]
) -> list[CandidateSource]:
    """Return the sources that a bundle has parts for.

    Always `repeat` and `popular`; `together` where the bundle has a table of items that go together; `vectors` where
    its ranker searches by inner product or carries fixed item vectors; `content` where it reads item content, and
    `content.<name>` for each where there are several kinds.
    """
    model = scorer.model
    bundle, items = model.bundle, model.bundle.candidate_items
    allowed = np.zeros(model.features.num_items, np.bool_)
    allowed[items] = True
    found: list[CandidateSource] = [RepeatSource(), PopularSource(items, most=max(settings.budget("popular"), 1))]
    if bundle.together is not None:
        found.append(TogetherSource(table=bundle.together, items=allowed))
    if is_retriever(bundle.ranker):
        found.append(SearchSource("vectors", bundle.ranker, model.plain, items))
    for name, index in vectors.items():
        if name not in {s.name for s in found}:
            found.append(NearestSource(name=name, index=index))
    return found


__all__ = [
    "BUDGETS",
    "DETERMINISTIC",
    "REQUEST",
    "UNIFORM_SLOTS",
    "RecommendSettings",
    "Recommender",
    "sources_of",
    "vectors_of",
]
