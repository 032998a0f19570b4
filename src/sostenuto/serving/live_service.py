"""The ranking service: models over a store, kept up to date in the background. See `service.RankingService`."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sostenuto.schema.errors import BundleError, Conflict, NotFound, NotReady, RequestError, SostenutoError, StoreError
from sostenuto.serving.bundle import open_bundle
from sostenuto.serving.bundle_manifest import MANIFEST, VERSION_DIGITS, read_manifest
from sostenuto.serving.control import Control, Wanted
from sostenuto.serving.deployed import Deployed
from sostenuto.serving.popularity import StorePopularity
from sostenuto.serving.recommending.recommender import RecommendSettings
from sostenuto.serving.scoring import Question, best_first, probabilities, served_by
from sostenuto.serving.service import (
    EventReceipt,
    ExplainAnswer,
    ExplainRequest,
    ItemRecord,
    LoadedModel,
    Models,
    RankAnswer,
    RankRequest,
    Readiness,
    Reading,
    RecommendAnswer,
    RecommendRequest,
    StoredEvent,
    Timeline,
    Traffic,
    UserDeleted,
)
from sostenuto.serving.shadowing import Shadow
from sostenuto.serving.stores.committing import GroupCommitter
from sostenuto.serving.stores.layout import ACTION, ITEM, PLACE
from sostenuto.serving.stores.names import StoreNames
from sostenuto.serving.user_states import CACHE_BYTES

if TYPE_CHECKING:
    from sostenuto.schema.events import Event
    from sostenuto.serving.service import Fields
    from sostenuto.serving.stores.store import Store, StoredHistory

log = logging.getLogger(__name__)

ENCODE_S = 0.01  # what the encoder takes at once; popularity and deletions wait for it
SHARES = 1 << 32  # of the hash that a canary's users are chosen by


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How a service runs."""

    bundles: Path  # folder of bundles that may be loaded, by their names
    control: Path  # folder of this server, see `control`
    cache_bytes: int = CACHE_BYTES  # of states in memory, per model version and process
    follow_every_s: float = 0.05  # how old popularity may be; 0 = every ranking waits for it to be current
    encode: bool = True  # one process of the server runs the encoder; False when a worker of its own does
    recommend: RecommendSettings = field(default_factory=RecommendSettings)  # how lists are made
    load_s: float = 600.0  # longest wait for all processes to load a model


class LiveService:
    """Models over a store, in one process of a server; see `RankingService` for what each method promises.

    A thread follows the store: popularity, users who were deleted, states, and what the other processes want.
    """

    def __init__(self, store: Store, settings: ServiceSettings) -> None:
        self.store, self.settings = store, settings
        self.control = Control(settings.control)
        self._committer = GroupCommitter(store)
        self._deployed: dict[str, Deployed] = {}
        self._names: dict[str, str] = {}  # version -> bundle
        self._wanted = Wanted()
        self._applying = threading.RLock()
        self._ended = threading.Event()
        self._popularity = StorePopularity(store)
        self._codes = {kind: StoreNames(store, kind) for kind in store.layout.name_kinds}
        self._shadow = Shadow()
        self._rankings = 0
        self.apply()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()

    # -- ranking --------------------------------------------------------------------------------------------------

    def rank(self, request: RankRequest) -> RankAnswer:
        """Order candidates; see `RankingService.rank`."""
        deployed, arm = self._answering(request.user_id, request.model)
        question = Question(
            user_id=request.user_id,
            time_ms=request.time_ms,
            items=request.candidates,
            place=request.place,
            candidate_fields=request.candidate_fields,
            context=request.context,
        )
        self._current()
        found = deployed.scorer.scores(question)
        traffic = self._wanted.traffic
        if traffic is not None and traffic.shadow in self._deployed and arm != "forced":
            self._shadow.offer(self._deployed[str(traffic.shadow)], question, found.logits)
        order = best_first(found.logits)[: request.k]
        logits = found.logits[order]
        gives = deployed.model.bundle.entry.gives_probabilities
        return RankAnswer(
            order=order.tolist(),
            scores=logits.tolist(),
            probabilities=probabilities(logits).tolist() if request.with_probabilities and gives else None,
            served=served_by(
                deployed.model.bundle, found.state, found.origin, arm, unknown=found.unknown, stage_s=found.stage_s
            ),
        )

    def recommend(self, request: RecommendRequest) -> RecommendAnswer:
        """Find, rank and arrange candidates; see `RankingService.recommend`."""
        deployed, arm = self._answering(request.user_id, request.model)
        self._current()
        return deployed.recommender.recommend(request, arm=arm)

    def explain(self, request: ExplainRequest) -> ExplainAnswer:
        """Name the behaviours that carry scores; see `RankingService.explain`."""
        deployed, arm = self._answering(request.user_id, request.model)
        self._current()
        return deployed.explainer.explain(request, arm=arm)

    def _answering(self, user_id: str, version: str) -> tuple[Deployed, Literal["main", "canary", "forced"]]:
        """Return who answers a user."""
        self._rankings += 1
        if version:
            return self._named(version), "forced"
        traffic = self._wanted.traffic
        if traffic is None or traffic.main not in self._deployed:
            raise NotReady("no model answers yet; load one and set the traffic")
        if traffic.canary in self._deployed and share_of(user_id) < traffic.canary_share:
            return self._deployed[str(traffic.canary)], "canary"
        return self._deployed[traffic.main], "main"

    def _named(self, version: str) -> Deployed:
        found = self._deployed.get(version)
        if found is None:
            raise NotFound("model must be the version of a loaded model; GET /v1/models lists them")
        return found

    def _current(self) -> None:
        """Take later events into popularity, where every answer is to have them."""
        if not self.settings.follow_every_s:
            self._follow_store()

    # -- users, events, items -------------------------------------------------------------------------------------

    def append(self, events: Sequence[Event]) -> Sequence[EventReceipt]:
        """Store events durably; see `RankingService.append`."""
        answers = self._committer.append(events)
        return [EventReceipt(outcome=answer.outcome, sequence=answer.sequence) for answer in answers]

    def timeline(self, user_id: str, *, limit: int, before: tuple[int, int] | None = None) -> Timeline | None:
        """Return a page of a user's events, newest first."""
        history = self.store.history(user_id)
        if history is None:
            return None
        end = len(history)
        if before is not None:
            time_ms, sequence = before
            earlier = (history.time_ms < time_ms) | ((history.time_ms == time_ms) & (history.sequence < sequence))
            end = int(earlier.sum())
        start = max(end - limit, 0)
        events = list(self._events(history, range(end - 1, start - 1, -1)))
        return Timeline(
            user_id=user_id,
            revision=history.revision,
            count=len(history),
            fields=self.store.user_fields(user_id) or {},
            events=events,
            older=(events[-1].time_ms, events[-1].sequence) if start and events else None,
        )

    def export_user(self, user_id: str) -> Iterator[StoredEvent]:
        """Yield all events of a user, oldest first."""
        history = self.store.history(user_id)
        if history is not None:
            yield from self._events(history, range(len(history)))

    def _events(self, history: StoredHistory, rows: range) -> Iterator[StoredEvent]:
        kind_of = self.store.layout.kind_of
        for n in rows:
            fields: dict[str, Any] = {}
            for name, column in history.fields.items():
                if kind_of[name] == "categorical":
                    if text := self._codes[f"field.{name}"](int(column[n])):
                        fields[name] = text
                elif not np.isnan(column[n]):
                    fields[name] = float(column[n])
            value = float(history.value[n])
            yield StoredEvent(
                sequence=int(history.sequence[n]),
                time_ms=int(history.time_ms[n]),
                item_id=self._codes[ITEM](int(history.item[n])),
                action=self._codes[ACTION](int(history.action[n])),
                value=None if np.isnan(value) else value,
                place=self._codes[PLACE](int(history.place[n])),
                fields=fields,
            )

    def set_user_fields(self, user_id: str, fields: Fields) -> None:
        """Replace what is known of a user."""
        known = {f.name for deployed in self._deployed.values() for f in deployed.model.bundle.user_fields}
        for name in fields:
            if self._deployed and name not in known:
                raise RequestError(f"fields of a user must be among {', '.join(sorted(known)) or 'none'}, got {name!r}")
        self.store.set_user_fields(user_id, dict(fields))

    def delete_user(self, user_id: str) -> UserDeleted:
        """Erase a user everywhere."""
        head = self.store.head(user_id)
        events = 0 if head is None else head.count
        versions = list(self._deployed)
        states = sum(self.store.state(version, user_id) is not None for version in versions)
        gone = self.store.delete_user(user_id)
        for deployed in list(self._deployed.values()):
            deployed.states.cache.forget(user_id)
            deployed.recommender.pasts.cache.forget(user_id)
        return UserDeleted(existed=gone is not None, events=events, states=states)

    def put_items(self, items: Sequence[ItemRecord]) -> int:
        """Store what is known of items; a model reads it of those that its vocabulary does not hold."""
        for deployed in list(self._deployed.values()):
            for item in items:
                deployed.model.check_item(item.categories, item.fields)
        return self.store.put_items(
            {item.item_id: {"categories": list(item.categories), "fields": dict(item.fields)} for item in items}
        )

    def items(self, item_ids: Sequence[str]) -> Sequence[ItemRecord | None]:
        """Return what is known of items."""
        found = []
        for item_id in item_ids:
            stored = self.store.item(item_id)
            found.append(
                None
                if stored is None
                else ItemRecord(item_id=item_id, categories=stored.fields["categories"], fields=stored.fields["fields"])
            )
        return found

    # -- models ---------------------------------------------------------------------------------------------------

    def models(self) -> Models:
        """Return what is loaded and who answers."""
        wanted = self._wanted
        loaded = [
            LoadedModel(
                bundle=self._names[version],
                model=deployed.model.bundle.name,
                version=version,
                roles=_roles(version, wanted),
            )
            for version, deployed in self._deployed.items()
        ]
        there = {one.bundle for one in loaded}
        for name in self._bundles():
            if name not in there:
                with contextlib.suppress(BundleError):
                    said = read_manifest(self.settings.bundles / name)
                    loaded.append(
                        LoadedModel(bundle=name, model=said.name, version=said.hash[:VERSION_DIGITS], loaded=False)
                    )
        return Models(models=loaded, traffic=wanted.traffic, previous=wanted.previous)

    def _bundles(self) -> list[str]:
        folder = self.settings.bundles
        return sorted(path.name for path in folder.iterdir() if (path / MANIFEST).is_file()) if folder.is_dir() else []

    def load_model(self, bundle: str) -> LoadedModel:
        """Load a bundle, in all processes."""
        if bundle not in self._bundles():
            raise NotFound("bundle must be the name of a bundle that is there; GET /v1/models lists them")
        try:
            version = read_manifest(self.settings.bundles / bundle).hash[:VERSION_DIGITS]
            self._load(version, bundle)
        except SostenutoError as error:
            raise RequestError(_without_paths(str(error), self.settings.bundles)) from error
        self._change(lambda wanted: replace(wanted, bundles={**wanted.bundles, version: bundle}))
        return next(one for one in self.models().models if one.version == version)

    def unload_model(self, version: str) -> None:
        """Forget a model and its states, in all processes."""
        consumer = self._named(version).encoder.name

        def without(wanted: Wanted) -> Wanted:
            if _roles(version, wanted):
                raise Conflict("a model that traffic names, or named before, cannot be unloaded; set the traffic first")
            return replace(wanted, bundles={v: b for v, b in wanted.bundles.items() if v != version})

        self._change(without)
        self.store.drop_states(version)
        self.store.drop_cursor(consumer)  # or the stream would be kept for it for ever

    def set_traffic(self, traffic: Traffic) -> Models:
        """Say who answers, in all processes; requests under way end with the model they began with."""
        for version in (traffic.main, traffic.canary, traffic.shadow):
            if version is not None:
                self._named(version)
        self._change(lambda wanted: replace(wanted, traffic=traffic, previous=wanted.traffic))
        return self.models()

    def roll_back(self) -> Models:
        """Return to the traffic before."""

        def back(wanted: Wanted) -> Wanted:
            if wanted.previous is None:
                raise Conflict("there must be a traffic to return to, this is the first; set one")
            return replace(wanted, traffic=wanted.previous, previous=wanted.traffic)

        self._change(back)
        return self.models()

    def _change(self, changed: Any) -> None:
        wanted = self.control.change(changed)
        self.apply()
        if problem := self.control.wait(wanted.generation, at_most_s=self.settings.load_s):
            raise RequestError(f"the change must hold in all processes: {problem}; ask again")

    def _load(self, version: str, bundle: str) -> None:
        with self._applying:
            if version in self._deployed:
                return
            opened = open_bundle(self.settings.bundles / bundle)
            if opened.version != version:
                raise BundleError("the bundle changed while it was loaded; load it again")
            deployed = Deployed.of(
                opened,
                self.store,
                popularity=self._popularity,
                cache_bytes=self.settings.cache_bytes,
                recommend=self.settings.recommend,
                salt=self.control.salt(),
            )
            deployed.model.take_popularity()  # counts before anybody asks
            self._names[version] = bundle
            self._deployed = {**self._deployed, version: deployed}

    def apply(self) -> None:
        """Do what is wanted of all processes; one thread at a time."""
        with self._applying:
            wanted = self.control.wanted()
            if wanted.generation == self._wanted.generation and self._wanted.generation:
                return
            problem = ""
            for version, bundle in wanted.bundles.items():
                try:
                    self._load(version, bundle)
                except SostenutoError as error:
                    problem = _without_paths(str(error), self.settings.bundles)
            self._deployed = {v: d for v, d in self._deployed.items() if v in wanted.bundles}
            self._wanted = wanted
            self.control.reached(wanted.generation, problem)

    # -- keeping up -----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Keep popularity, states and models up to date until the service is closed."""
        while not self._ended.is_set():
            busy = 0
            try:
                self.apply()
                busy += self._follow_store()
                leads = self.control.leads()
                for deployed in list(self._deployed.values()):
                    if self.settings.encode and leads:
                        busy += self._encode(deployed)
                if leads:
                    self._popularity.keep()
            except SostenutoError as error:  # a store that is away comes back, or readiness says that it does not
                log.warning("following the store: %s", error)
                self._ended.wait(1.0)
            except Exception:  # a defect: it is seen in the log, and the next look may succeed
                log.exception("following the store")
                self._ended.wait(1.0)
            if not busy:
                self._ended.wait(self.settings.follow_every_s or 0.05)

    def _encode(self, deployed: Deployed) -> int:
        """Refresh states for a moment; while rankings are asked for, it rests as long as it has worked."""
        before, started = self._rankings, time.perf_counter()
        done = deployed.encoder.run_once(ENCODE_S)
        if done and self._rankings != before:
            self._ended.wait(time.perf_counter() - started)
        return done

    def _follow_store(self) -> int:
        """Take later changes into popularity, and let go of deleted users; return how many changes."""
        followed = self._popularity.follow()
        for deployed in list(self._deployed.values()):
            deployed.forget(followed)
            deployed.model.take_popularity()
        return followed.changes

    def readiness(self) -> Readiness:
        """Say whether requests can be answered."""
        reasons = []
        traffic = self._wanted.traffic
        if traffic is None or traffic.main not in self._deployed:
            reasons.append("no model answers")
        try:
            self.store.last_sequence()
        except SostenutoError:
            reasons.append("the store cannot be reached")
        if not self._thread.is_alive():
            reasons.append("the follower has stopped")
        return Readiness(ready=not reasons, reasons=reasons)

    def readings(self) -> Sequence[Reading]:
        """Return gauges."""
        found = list(self._shadow.readings())
        for version, deployed in list(self._deployed.items()):
            labels = {"version": version}
            found += [] if deployed.scorer.drift is None else deployed.scorer.drift.readings(version)
            found += [
                Reading(
                    name="state_cache_bytes",
                    help="States in memory.",
                    value=deployed.states.cache.num_bytes,
                    labels=labels,
                    merge="sum",
                ),
                Reading(
                    name="state_cache_users",
                    help="Users whose state is in memory.",
                    value=len(deployed.states.cache),
                    labels=labels,
                    merge="sum",
                ),
            ]
        try:
            found += self._readings_of_store()
            gone = 0.0
        except SostenutoError as error:
            log.warning("reading the store for metrics: %s", error)
            gone = 1.0
        return [*found, Reading(name="store_gone", help="1 while the store cannot be read.", value=gone)]

    def _readings_of_store(self) -> list[Reading]:
        stats = self.store.stats()
        found = [Reading(name="store_bytes", help="Size of the store.", value=stats.bytes)]
        if stats.most_bytes:
            found.append(Reading(name="store_limit_bytes", help="Its limit.", value=stats.most_bytes))
        for version, deployed in list(self._deployed.items()):
            labels = {"version": version}
            changes, seconds = deployed.backlog.look()
            unfollowed = max(stats.last_sequence - deployed.model.followed, 0)
            found += [
                Reading(
                    name="encoder_lag_events", help="Changes that no state has seen.", value=changes, labels=labels
                ),
                Reading(name="encoder_lag_seconds", help="How long they wait.", value=seconds, labels=labels),
                Reading(
                    name="popularity_lag_events",
                    help="Changes that popularity has not seen.",
                    value=unfollowed,
                    labels=labels,
                ),
            ]
        return found

    def close(self) -> None:
        """Write what waits, and let go of the store."""
        self._ended.set()
        self._thread.join()
        self._shadow.close()
        self._committer.close()
        with contextlib.suppress(StoreError):  # the next start then reads a longer stream, or counts anew
            if self.control.leads():
                self._popularity.keep(ending=True)
        self.control.leave()
        self.store.close()


def share_of(user_id: str) -> float:
    """Return where a user stands in [0, 1): the same in every process and at any time."""
    digest = hashlib.blake2b(user_id.encode(), digest_size=4, person=b"canary").digest()
    return int.from_bytes(digest, "big") / SHARES


def _roles(version: str, wanted: Wanted) -> list[Literal["main", "canary", "shadow", "previous"]]:
    roles: list[Literal["main", "canary", "shadow", "previous"]] = []
    traffic, previous = wanted.traffic, wanted.previous
    if traffic is not None:
        roles += ["main"] if traffic.main == version else []
        roles += ["canary"] if traffic.canary == version else []
        roles += ["shadow"] if traffic.shadow == version else []
    if previous is not None and version in {previous.main, previous.canary, previous.shadow}:
        roles.append("previous")
    return roles


def _without_paths(text: str, folder: Path) -> str:
    return text.replace(str(folder.resolve()), "...").replace(str(folder), "...")


__all__ = ["LiveService", "ServiceSettings", "share_of"]
