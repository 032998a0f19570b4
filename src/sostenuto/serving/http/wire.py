"""Requests and answers as they travel, in JSON or msgpack: plain structs that msgspec reads and writes in one go.

Limits that a server sets (`settings.Limits`) are checked by the routes and shown in the document; limits that never
change stand here. A name that is not known is refused, so that a misspelt option cannot be ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sostenuto.schema.events import MOST_ID_BYTES, MOST_VALUE

MOST_TEXT = 2_000  # characters of one field value
MOST_FIELDS = 100
MOST_TIME = 253_402_300_799_999  # end of the year 9999, epoch ms
MOST_LIST = 1_000  # values of a multi-valued or vector field

Id = Annotated[str, Meta(min_length=1, max_length=MOST_ID_BYTES)]
Name = Annotated[str, Meta(max_length=MOST_ID_BYTES)]
Text = Annotated[str, Meta(max_length=MOST_TEXT)]
TimeMs = Annotated[int, Meta(ge=0, le=MOST_TIME, description="Epoch milliseconds")]
Number = Annotated[float, Meta(ge=-MOST_VALUE, le=MOST_VALUE)]
Share = Annotated[float, Meta(ge=0, le=1)]
Value = Text | Number | bool | None
ManyValues = Annotated[list[Text | Number], Meta(max_length=MOST_LIST)]
Values = Annotated[dict[Name, Text | Number | bool | ManyValues | None], Meta(max_length=MOST_FIELDS)]
Column = list[Text | Number | None]
Columns = Annotated[
    dict[Name, Column],
    Meta(max_length=MOST_FIELDS, description="Columns by field: one value per candidate, in their order"),
]
Items = Annotated[list[Id], Meta(min_length=1, extra_json_schema={"uniqueItems": True})]
ItemNames = Annotated[list[Id], Meta(extra_json_schema={"uniqueItems": True})]


class Sent(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What comes in."""


class Answer(msgspec.Struct, kw_only=True):
    """What goes out."""


# -- ranking -----------------------------------------------------------------------------------------------------------


class Rank(Sent):
    """Candidates to order for a user."""

    user_id: Id
    candidates: Items
    time_ms: Annotated[
        TimeMs | None, Meta(description="The moment; behaviours strictly before it are seen. Default: now")
    ] = None
    place: Name = ""
    candidate_fields: Columns = {}
    context: Values = {}
    k: Annotated[int, Meta(ge=1, description="Best items wanted back. Default: all")] | None = None
    probabilities: Annotated[bool, Meta(description="Send probabilities beside scores")] = False
    model: Annotated[
        Name, Meta(description="Version of a loaded model that must answer. Default: as traffic is set")
    ] = ""


class Ranked(Answer):
    """Candidates best first, as columns."""

    request_id: str
    model: str
    version: str
    arm: Literal["main", "canary", "forced"]
    history_length: Annotated[int, Meta(description="Behaviours that the model saw")]
    newest_time_ms: Annotated[int | None, Meta(description="Time of the newest of them")]
    revision: Annotated[int, Meta(description="Of the user's history; grows with every change")]
    state: Literal["cached", "folded", "encoded", "cold"]
    unknown_candidates: int
    items: Annotated[list[str], Meta(description="Item ids, best first")]
    scores: Annotated[list[float], Meta(description="Logits, beside `items`")]
    probabilities: Annotated[
        list[float] | None, Meta(description="Beside `items`; null where not asked for or where the model gives none")
    ]
    propensities: Annotated[
        list[float] | None,
        Meta(description="Of showing each item where it stands; null = 1, the order is deterministic"),
    ]


class Recommend(Sent):
    """What a list shall be."""

    user_id: Id
    k: Annotated[int, Meta(ge=1, description="Items of the list")] = 10
    time_ms: TimeMs | None = None
    place: Name = ""
    context: Values = {}
    sources: Annotated[list[Name], Meta(max_length=100, description="Candidate sources. Default: all")] = []
    candidates: ItemNames = []
    exclude: ItemNames = []
    must_include: ItemNames = []
    caps: Annotated[
        dict[Name, Annotated[int, Meta(ge=0, le=1_000_000)]],
        Meta(max_length=MOST_FIELDS, description="Item field or category level: most items of one value"),
    ] = {}
    already_bought: Literal["allow", "exclude", "only"] = "allow"
    diversity: Annotated[Share | None, Meta(description="0 = by score alone. Default: the server's setting")] = None
    explore: bool = True
    probabilities: bool = False
    model: Name = ""


class RecommendedItem(Answer):
    """One item of a list."""

    item_id: str
    score: float
    probability: float | None
    propensity: float
    sources: list[str]
    rule: str


class Recommended(Answer):
    """A list, first item first."""

    request_id: str
    model: str
    version: str
    arm: Literal["main", "canary", "forced"]
    policy: str
    history_length: int
    newest_time_ms: int | None
    revision: int
    state: Literal["cached", "folded", "encoded", "cold"]
    num_candidates: int
    items: list[RecommendedItem]


class Explain(Sent):
    """Items whose scores shall be explained."""

    user_id: Id
    items: Items
    time_ms: TimeMs | None = None
    place: Name = ""
    candidate_fields: Columns = {}
    context: Values = {}
    model: Name = ""


class Reason(Answer):
    """Past behaviours with one item; `drop` is what taking them out costs the score, measured."""

    item_id: str
    label: str
    count: int
    last_time_ms: int
    drop: float


class ExplainedItem(Answer):
    """Why an item has its score."""

    item_id: str
    label: str
    score: float
    reasons: list[Reason]
    joint_drop: Annotated[float, Meta(description="What taking out all named behaviours costs the score")]


class Explained(Answer):
    """Explanations in the order of the request."""

    request_id: str
    model: str
    version: str
    history_length: int
    items: list[ExplainedItem]


# -- events ------------------------------------------------------------------------------------------------------------


class SentEvent(Sent):
    """One thing that a user did."""

    user_id: Id
    item_id: Id
    event_id: Annotated[
        Id | None,
        Meta(description="Names the event within its user: sent again, it changes nothing. Default: a new one is made, "
             "and a repeated request stores the event twice"),
    ] = None  # fmt: skip
    time_ms: Annotated[TimeMs | None, Meta(description="Default: the server's clock")] = None
    action: Name = ""
    value: Number | None = None
    place: Name = ""
    fields: Annotated[dict[Name, Name | Number], Meta(max_length=MOST_FIELDS)] = {}


class Receipt(Answer):
    """What became of one event; unless expired it is durable."""

    event_id: str
    outcome: Literal["new", "duplicate", "expired"]
    sequence: Annotated[int, Meta(description="Order of arrival; a duplicate has that of the first, an expired one 0")]


class Receipts(Answer):
    """What became of a batch, in its order."""

    request_id: str
    events: list[Receipt]


# -- users, items ------------------------------------------------------------------------------------------------------


class UserFields(Sent):
    """What is known of a user; replaces what was."""

    fields: Values


class PastEvent(Answer):
    """One behaviour as it is stored."""

    sequence: int
    time_ms: int
    item_id: str
    action: str
    value: float | None
    place: str
    fields: dict[str, Value | list[str | float]]


class Older(Answer):
    """Where the next page begins: the parameters before_ms and before_sequence."""

    before_ms: int
    before_sequence: int


class Timeline(Answer):
    """A page of a user's history, newest first."""

    user_id: str
    revision: int
    count: Annotated[int, Meta(description="Events kept in all")]
    fields: dict[str, Value | list[str | float]]
    events: list[PastEvent]
    older: Older | None


class Exported(Answer):
    """First line of an export; events follow, one a line, then the served lists, as they were logged."""

    user_id: str
    exported_ms: int
    revision: int
    fields: dict[str, Value | list[str | float]]


class Deleted(Answer):
    """A user is gone."""

    request_id: str
    existed: bool
    events: int
    states: int
    served_lists: int


class Item(Sent):
    """What is known of an item."""

    item_id: Id
    categories: Annotated[list[Text], Meta(max_length=32, description="Path, coarse to fine")] = []
    fields: Values = {}


class SentItems(Sent):
    """Items to store; each replaces what was known of it."""

    items: Annotated[list[Item], Meta(min_length=1)]


class ItemsStored(Answer):
    """The items are stored."""

    request_id: str
    count: int
    revision: int


class ItemAnswer(Answer):
    """What is known of an item."""

    item_id: str
    categories: list[str]
    fields: dict[str, Value | list[str | float]]


# -- models ------------------------------------------------------------------------------------------------------------


class LoadModel(Sent):
    """A bundle to load, by its name among those that the server looks in."""

    bundle: Id


class SetTraffic(Sent):
    """Which versions answer."""

    main: Id
    canary: Id | None = None
    canary_share: Annotated[Share, Meta(description="Of users, by a hash of their id")] = 0.0
    shadow: Id | None = None


class Model(Answer):
    """A loaded model, or a bundle that could be loaded."""

    bundle: str
    model: str
    version: str
    loaded: bool
    roles: list[Literal["main", "canary", "shadow", "previous"]]


class Traffic(Answer):
    """Which versions answer."""

    main: str
    canary: str | None
    canary_share: float
    shadow: str | None


class Models(Answer):
    """What is loaded, what could be, and who answers."""

    models: list[Model]
    traffic: Traffic | None
    previous: Traffic | None


class Done(Answer):
    """It is done."""

    request_id: str


# -- about the server --------------------------------------------------------------------------------------------------


class Health(Answer):
    """The process lives."""

    status: Literal["ok"] = "ok"


class Ready(Answer):
    """Whether requests can be answered."""

    ready: bool
    reasons: list[str]


class ProblemDocument(Answer):
    """RFC 9457: what went wrong."""

    title: str
    status: int
    detail: str
    instance: Annotated[str, Meta(description="urn:request: and the request id")]
    type: str = "about:blank"


__all__ = [
    "Answer",
    "Deleted",
    "Done",
    "Explain",
    "Explained",
    "ExplainedItem",
    "Exported",
    "Health",
    "Item",
    "ItemAnswer",
    "ItemsStored",
    "LoadModel",
    "Model",
    "Models",
    "Older",
    "PastEvent",
    "ProblemDocument",
    "Rank",
    "Ranked",
    "Ready",
    "Reason",
    "Receipt",
    "Receipts",
    "Recommend",
    "Recommended",
    "RecommendedItem",
    "Sent",
    "SentEvent",
    "SentItems",
    "SetTraffic",
    "Timeline",
    "Traffic",
    "UserFields",
]
