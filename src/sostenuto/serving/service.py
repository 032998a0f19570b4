"""What a ranking server can be asked, and what it answers: the promise between the HTTP edge and the ranking core.

The edge (`serving/http`) turns bytes into these values and back, checks keys and limits, and writes the logs. Whoever
implements `RankingService` knows models, stores and states, and no HTTP. Ids are raw strings on both sides.

All methods are synchronous and may be called from several threads at once. The edge decides on which thread: `rank`,
`recommend` and `explain` on the scoring threads (one by default), `append` on a wider pool, so that group commit finds
company, the rest on a third. A method returns when what it promises is true (an event is durable, a user is gone).

Errors: `RequestError` and what derives from it carry a text that the caller may read. `NotReady`, `StoreGone`,
`StoreBusy` and `StoreFull` become 503 and 507 with fixed texts. Everything else is a defect: it is logged, and the
caller learns only a request id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from sostenuto.schema.events import Event

# a value of a field, on the wire and in a store: text of a categorical one, number of a numeric one, None = missing;
# lists are values of multi-valued and vector fields
FieldValue = str | float | bool | None | Sequence[str | float]
Fields = Mapping[str, FieldValue]

# how the user state of a ranking came to be: it was cached and is current; new events were folded into a cached one;
# it was encoded in the request; the user has no history before the moment
StateOrigin = Literal["cached", "folded", "encoded", "cold"]
# timed parts of a request inside the service; the edge adds decode, wait, and encode_answer
STAGES = ("store", "state", "features", "candidates", "score", "rerank")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRequest:
    """Order these candidates for one user at one moment.

    `candidate_fields` are columns: one value per candidate, in the order of `candidates`. The edge has checked that
    columns are as long as `candidates`, and that no candidate is there twice; whether a field exists and fits its kind
    is the service's to check (`RequestError`). Unknown users, items and places are no errors.
    """

    request_id: str
    user_id: str
    time_ms: int  # moment of the request, epoch ms; behaviours strictly before it are seen
    candidates: Sequence[str]  # at least one
    place: str = ""
    candidate_fields: Mapping[str, Sequence[str | float | None]] = field(default_factory=dict)
    context: Fields = field(default_factory=dict)
    k: int | None = None  # items wanted back; None = all
    with_probabilities: bool = False
    model: str = ""  # version of a loaded model that must answer; "" = as the traffic is set


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Who answered, from what: part of every ranking answer, written to the logs and counted in the metrics."""

    model: str  # name
    version: str  # of the bundle
    arm: Literal["main", "canary", "forced"] = "main"
    history_length: int = 0  # behaviours the ranker saw
    newest_ms: int | None = None  # time of the newest of them
    revision: int = 0  # of the user's history
    state: StateOrigin = "cold"
    unknown_candidates: int = 0  # items that the model's vocabulary does not hold
    stage_s: Mapping[str, float] = field(default_factory=dict)  # seconds by stage, names of STAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAnswer:
    """Candidates best first: position in the request, and score, of the first `k`.

    Ties stand in order of the request. `scores` are logits.
    """

    order: Sequence[int]  # positions in `RankRequest.candidates`, best first
    scores: Sequence[float]  # of `order`; finite
    probabilities: Sequence[float] | None = None  # None: not asked for, or the model gives none
    propensities: Sequence[float] | None = None  # of showing each where it stands; None = 1, the order is deterministic
    served: Served


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendRequest:
    """Find candidates for one user at one moment, rank them, and return a list of `k`."""

    request_id: str
    user_id: str
    time_ms: int
    k: int = 10
    place: str = ""
    context: Fields = field(default_factory=dict)
    sources: Sequence[str] = ()  # names of candidate sources; () = all that are set up
    candidates: Sequence[str] = ()  # further candidates, as source "request"
    exclude: Sequence[str] = ()  # items never returned
    must_include: Sequence[str] = ()  # items that are in the list wherever they rank, unless excluded
    caps: Mapping[str, int] = field(default_factory=dict)  # item field or category level -> most items of one value
    already_bought: Literal["allow", "exclude", "only"] = "allow"
    diversity: float | None = None  # 0 = by score alone, 1 = as different as can be; None = the server's setting
    explore: bool = True  # whether slots kept for exploration may be used
    with_probabilities: bool = False
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommended:
    """One item of a list."""

    item_id: str
    score: float  # the ranker's logit; the list may stand in another order, through diversity and rules
    sources: Sequence[str]  # who proposed it
    propensity: float = 1.0  # probability that the policy shows it at this position, given the candidates
    probability: float | None = None
    rule: str = ""  # "must_include", "explored", or "" when it stands by score and diversity


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendAnswer:
    """A list, first item first, and how many candidates there were."""

    items: Sequence[Recommended]
    num_candidates: int
    candidates: Sequence[str]  # all that the ranker scored, for the log of served lists
    policy: str = "deterministic"
    served: Served


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRequest:
    """Say which past behaviours carry the scores of a few items."""

    request_id: str
    user_id: str
    time_ms: int
    items: Sequence[str]  # each once
    place: str = ""
    candidate_fields: Mapping[str, Sequence[str | float | None]] = field(default_factory=dict)
    context: Fields = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedBy:
    """Past behaviours with one item, and what their removal does to the score."""

    item_id: str
    label: str
    count: int
    last_time_ms: int
    drop: float  # logit with them minus logit without them, > 0, measured by taking them out and asking again


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One explained item."""

    item_id: str
    label: str
    score: float
    reasons: Sequence[CarriedBy] = ()
    joint_drop: float = 0.0  # logit minus logit without all behaviours named in `reasons`


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainAnswer:
    """Explanations in the order of the request."""

    items: Sequence[Explained]
    served: Served


@dataclass(frozen=True, slots=True, kw_only=True)
class EventReceipt:
    """What became of one event; the words are those of `stores.store.Appended`."""

    outcome: Literal["new", "duplicate", "expired"]
    sequence: int  # its place in the order of arrival; a duplicate has that of the first, an expired one 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """One behaviour as the store has it."""

    sequence: int
    time_ms: int
    item_id: str
    action: str = ""
    value: float | None = None
    place: str = ""
    fields: Fields = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A page of a user's history, newest first."""

    user_id: str
    revision: int
    count: int  # events kept in all
    fields: Fields  # of the user
    events: Sequence[StoredEvent]
    # (time_ms, sequence) to ask for next as `before`; None = this is the end
    older: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDeleted:
    """A user is gone from store, states, caches and stream when this is returned."""

    existed: bool
    events: int
    states: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRecord:
    """What is known of an item: category path, coarse to fine, and fields by name."""

    item_id: str
    categories: Sequence[str] = ()
    fields: Fields = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in memory, or, with `loaded` False, a bundle that could be loaded."""

    bundle: str  # name of the bundle: of its folder, among those that the server was told to look in
    model: str
    version: str
    loaded: bool = True
    roles: Sequence[Literal["main", "canary", "shadow", "previous"]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Which model versions answer. Users are split by a hash of their id, so that one user sees one model."""

    main: str
    canary: str | None = None
    canary_share: float = 0.0  # of users, in [0, 1]
    shadow: str | None = None  # scores the same requests after the answer; only counted and compared

    def __post_init__(self) -> None:
        if not 0 <= self.canary_share <= 1:
            raise ValueError(f"Traffic.canary_share must lie in 0 .. 1, got {self.canary_share}; give a share of users")


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What is loaded, what could be, and who answers."""

    models: Sequence[LoadedModel]
    traffic: Traffic | None  # None: nothing loaded yet
    previous: Traffic | None = None  # what `roll_back` returns to


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One number about the service that is not about a single request; becomes a gauge in /metrics."""

    name: str  # such as "encoder_lag_seconds": Prometheus' words, unit last, without our prefix
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)  # few values: a model version, a field's name; never an id
    merge: Literal["sum", "max"] = "max"  # over worker processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether requests can be answered; `reasons` name what is missing, in words without paths or ids."""

    ready: bool
    reasons: Sequence[str] = ()


class RankingService(Protocol):
    """A running ranking service.

    What is asked of one process of a server with several (a model loaded, the traffic set, a user deleted, a roll
    back) holds for all of them when the method returns, except that other processes may go on with the traffic
    settings of before for at most one second.
    """

    def rank(self, request: RankRequest) -> RankAnswer:
        """Order candidates.

        Raises:
            RequestError: an unknown candidate or context field, or a value that does not fit its kind.
            NotReady: no model is loaded. NotFound: `model` names no loaded version.
        """
        ...

    def recommend(self, request: RecommendRequest) -> RecommendAnswer:
        """Find, rank and arrange candidates. Raises as `rank`; also RequestError for an unknown source or cap."""
        ...

    def explain(self, request: ExplainRequest) -> ExplainAnswer:
        """Name the behaviours that carry scores. Raises as `rank`."""
        ...

    def append(self, events: Sequence[Event]) -> Sequence[EventReceipt]:
        """Store events, all or none; they are durable on return, and the next `rank` sees them.

        The answer is in the order of `events`. Unknown users, items, actions and places are taken at once.

        Raises:
            RequestError: a field that the store's layout does not have, or of another kind.
            StoreFull, StoreBusy, StoreGone: nothing was stored, or a retry with the same event ids is safe.
        """
        ...

    def timeline(self, user_id: str, *, limit: int, before: tuple[int, int] | None = None) -> Timeline | None:
        """Return events strictly older than `before` (time_ms, sequence), newest first; None for an unknown user."""
        ...

    def export_user(self, user_id: str) -> Iterator[StoredEvent]:
        """Yield all events, oldest first, as of one moment; nothing for an unknown user. Read on one thread."""
        ...

    def set_user_fields(self, user_id: str, fields: Fields) -> None:
        """Replace what is known of a user; she may be unknown so far. RequestError for an unknown field."""
        ...

    def delete_user(self, user_id: str) -> UserDeleted:
        """Erase a user everywhere the service keeps anything of her; the next ranking knows nothing of her."""
        ...

    def put_items(self, items: Sequence[ItemRecord]) -> int:
        """Store what is known of items, replacing what was; return their revision. RequestError as `append`."""
        ...

    def items(self, item_ids: Sequence[str]) -> Sequence[ItemRecord | None]:
        """Return what is known, in order; None where nothing is."""
        ...

    def models(self) -> Models:
        """Return what is loaded and who answers."""
        ...

    def load_model(self, bundle: str) -> LoadedModel:
        """Load and verify a bundle by its name; traffic does not change. Loading a loaded one changes nothing.

        Raises:
            NotFound: no bundle of that name where the server was told to look (names are compared with a listing;
                no path is built from them). RequestError: it cannot be loaded; the text says why, without paths.
        """
        ...

    def unload_model(self, version: str) -> None:
        """Forget a model and its states. NotFound when it is not loaded, Conflict while traffic names it."""
        ...

    def set_traffic(self, traffic: Traffic) -> Models:
        """Swap without a dropped request: requests that began with the old model end with it. NotFound as `rank`."""
        ...

    def roll_back(self) -> Models:
        """Return to the traffic before the last `set_traffic`. Conflict when there is none."""
        ...

    def readiness(self) -> Readiness:
        """Say whether requests can be answered; quick, called often."""
        ...

    def readings(self) -> Sequence[Reading]:
        """Return gauges: lag of the encoder, sizes of caches, drift of scores, skew of features ..."""
        ...

    def close(self) -> None:
        """Finish what is under way and let go of the store; called once, after the last request."""
        ...


__all__ = [
    "STAGES",
    "CarriedBy",
    "EventReceipt",
    "ExplainAnswer",
    "ExplainRequest",
    "Explained",
    "FieldValue",
    "Fields",
    "ItemRecord",
    "LoadedModel",
    "Models",
    "RankAnswer",
    "RankRequest",
    "RankingService",
    "Readiness",
    "Reading",
    "RecommendAnswer",
    "RecommendRequest",
    "Recommended",
    "Served",
    "StateOrigin",
    "StoredEvent",
    "Timeline",
    "Traffic",
    "UserDeleted",
]
