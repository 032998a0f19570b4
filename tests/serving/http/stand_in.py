"""A stand-in for the ranking service: it keeps events in a dict and scores by counting. It is no ranker of ours."""

import threading
import time
from collections.abc import Iterator, Sequence

from sostenuto.schema.errors import Conflict, NotFound, NotReady, RequestError
from sostenuto.schema.events import Event
from sostenuto.serving.service import (
    CarriedBy,
    EventReceipt,
    ExplainAnswer,
    Explained,
    ExplainRequest,
    Fields,
    ItemRecord,
    LoadedModel,
    Models,
    RankAnswer,
    RankRequest,
    Readiness,
    Reading,
    RecommendAnswer,
    Recommended,
    RecommendRequest,
    Served,
    StoredEvent,
    Timeline,
    Traffic,
    UserDeleted,
)


class StandInService:
    """Scores an item by how often the user met it; everything is in memory.

    Args:
        delay_s: what a ranking takes, to fill queues.
        failure: raised by every ranking.
    """

    def __init__(self, *, delay_s: float = 0.0, failure: Exception | None = None) -> None:
        self.delay_s, self.failure = delay_s, failure
        self.lock = threading.Lock()
        self.events: dict[str, list[StoredEvent]] = {}
        self.seen: dict[tuple[str, str], int] = {}
        self.sequence = 0
        self.fields: dict[str, Fields] = {}
        self.records: dict[str, ItemRecord] = {}
        self.traffic: Traffic | None = Traffic(main="v1")
        self.previous: Traffic | None = None
        self.loaded = {"v1": "first"}
        self.bundles = {"first": "v1", "second": "v2"}
        self.closed = False
        self.is_ready = True

    def _past(self, user_id: str, time_ms: int) -> list[StoredEvent]:
        with self.lock:
            return [event for event in self.events.get(user_id, []) if event.time_ms < time_ms]

    def _served(self, past: Sequence[StoredEvent]) -> Served:
        return Served(
            model="counting",
            version="v1",
            history_length=len(past),
            newest_ms=past[-1].time_ms if past else None,
            revision=past[-1].sequence if past else 0,
            state="cached" if past else "cold",
            stage_s={"store": 1e-5, "score": 2e-5},
        )

    def _check(self, model: str) -> None:
        if self.failure is not None:
            raise self.failure
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.traffic is None:
            raise NotReady("no model is loaded")
        if model and model not in self.loaded:
            raise NotFound("model must be a version that is loaded; see /v1/models")

    def rank(self, request: RankRequest) -> RankAnswer:
        self._check(request.model)
        if "unknown_field" in request.candidate_fields:
            raise RequestError("candidate_fields must be fields of the model, unknown_field is none; leave it out")
        past = self._past(request.user_id, request.time_ms)
        counts: dict[str, int] = {}
        for event in past:
            counts[event.item_id] = counts.get(event.item_id, 0) + 1
        scores = [float(counts.get(item, 0)) for item in request.candidates]
        order = sorted(range(len(scores)), key=lambda n: -scores[n])[: request.k]
        return RankAnswer(
            order=order,
            scores=[scores[n] for n in order],
            probabilities=[0.5] * len(order) if request.with_probabilities else None,
            served=self._served(past),
        )

    def recommend(self, request: RecommendRequest) -> RecommendAnswer:
        self._check(request.model)
        past = self._past(request.user_id, request.time_ms)
        pool = list(dict.fromkeys([*request.must_include, *(e.item_id for e in past), *request.candidates]))
        kept = [item for item in pool if item not in set(request.exclude)]
        items = [Recommended(item_id=item, score=1.0, sources=["repeat"], propensity=0.5) for item in kept]
        return RecommendAnswer(
            items=items[: request.k],
            num_candidates=len(kept),
            candidates=kept,
            policy="stand-in",
            served=self._served(past),
        )

    def explain(self, request: ExplainRequest) -> ExplainAnswer:
        self._check(request.model)
        past = self._past(request.user_id, request.time_ms)
        explained = []
        for item in request.items:
            same = [event for event in past if event.item_id == item]
            last_ms = same[-1].time_ms if same else 0
            reason = CarriedBy(item_id=item, label=item, count=len(same), last_time_ms=last_ms, drop=1.0)
            explained.append(
                Explained(item_id=item, label=item, score=float(len(same)), reasons=[reason] if same else [])
            )
        return ExplainAnswer(items=explained, served=self._served(past))

    def append(self, events: Sequence[Event]) -> list[EventReceipt]:
        receipts = []
        with self.lock:
            for event in events:
                first = self.seen.get((event.user_id, event.event_id))
                if first is not None:
                    receipts.append(EventReceipt(outcome="duplicate", sequence=first))
                    continue
                self.sequence += 1
                self.seen[event.user_id, event.event_id] = self.sequence
                stored = StoredEvent(
                    sequence=self.sequence,
                    time_ms=event.time_ms,
                    item_id=event.item_id,
                    action=event.action,
                    value=event.value,
                    place=event.place,
                    fields=event.fields,
                )
                kept = self.events.setdefault(event.user_id, [])
                kept.append(stored)
                kept.sort(key=lambda one: (one.time_ms, one.sequence))
                receipts.append(EventReceipt(outcome="new", sequence=self.sequence))
        return receipts

    def timeline(self, user_id: str, *, limit: int, before: tuple[int, int] | None = None) -> Timeline | None:
        with self.lock:
            if user_id not in self.events and user_id not in self.fields:
                return None
            kept = self.events.get(user_id, [])
            older = [e for e in kept if before is None or (e.time_ms, e.sequence) < before]
            page = older[::-1][:limit]
            return Timeline(
                user_id=user_id,
                revision=max((e.sequence for e in kept), default=0),
                count=len(kept),
                fields=self.fields.get(user_id, {}),
                events=page,
                older=(page[-1].time_ms, page[-1].sequence) if len(page) < len(older) else None,
            )

    def export_user(self, user_id: str) -> Iterator[StoredEvent]:
        yield from list(self.events.get(user_id, []))

    def set_user_fields(self, user_id: str, fields: Fields) -> None:
        self.fields[user_id] = dict(fields)

    def delete_user(self, user_id: str) -> UserDeleted:
        with self.lock:
            known = user_id in self.events or user_id in self.fields
            events = self.events.pop(user_id, [])
            self.fields.pop(user_id, None)
            self.seen = {key: n for key, n in self.seen.items() if key[0] != user_id}
        return UserDeleted(existed=known, events=len(events), states=int(known))

    def put_items(self, items: Sequence[ItemRecord]) -> int:
        self.records.update({item.item_id: item for item in items})
        return len(self.records)

    def items(self, item_ids: Sequence[str]) -> list[ItemRecord | None]:
        return [self.records.get(item_id) for item_id in item_ids]

    def models(self) -> Models:
        known = [
            LoadedModel(bundle=bundle, model="counting", version=version, loaded=version in self.loaded)
            for bundle, version in self.bundles.items()
        ]
        return Models(models=known, traffic=self.traffic, previous=self.previous)

    def load_model(self, bundle: str) -> LoadedModel:
        if bundle not in self.bundles:
            raise NotFound("bundle must be one that the server looks in; see /v1/models")
        version = self.bundles[bundle]
        self.loaded[version] = bundle
        return LoadedModel(bundle=bundle, model="counting", version=version)

    def unload_model(self, version: str) -> None:
        if version not in self.loaded:
            raise NotFound("version must be one that is loaded; see /v1/models")
        if self.traffic is not None and version in (self.traffic.main, self.traffic.canary, self.traffic.shadow):
            raise Conflict("version must not be named by the traffic; set that first")
        del self.loaded[version]

    def set_traffic(self, traffic: Traffic) -> Models:
        for version in (traffic.main, traffic.canary, traffic.shadow):
            if version is not None and version not in self.loaded:
                raise NotFound("traffic must name loaded versions; see /v1/models")
        self.previous, self.traffic = self.traffic, traffic
        return self.models()

    def roll_back(self) -> Models:
        if self.previous is None:
            raise Conflict("there is no traffic of before")
        self.traffic, self.previous = self.previous, None
        return self.models()

    def readiness(self) -> Readiness:
        return Readiness(ready=self.is_ready, reasons=() if self.is_ready else ("no model is loaded",))

    def readings(self) -> list[Reading]:
        return [Reading(name="encoder_lag_seconds", help="Lag of the encoder", value=0.25, labels={"version": "v1"})]

    def close(self) -> None:
        self.closed = True
