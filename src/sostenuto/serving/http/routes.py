"""The table of operations, and what each does: structs of the wire to values of the service and back."""

from __future__ import annotations

import math
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from sostenuto.schema.errors import DataError
from sostenuto.schema.events import Event
from sostenuto.serving import service as values
from sostenuto.serving.http import metrics, wire
from sostenuto.serving.http.call import Call
from sostenuto.serving.http.operations import Operation, QueryParameter, Spooled, Text
from sostenuto.serving.http.problems import Problem, refused_data, unavailable
from sostenuto.serving.served_log import ServedList

if TYPE_CHECKING:
    from sostenuto.serving.http.edge import Edge

SPOOL_BYTES = 1024 * 1024  # an export beyond this goes through a file without a name
_lines = msgspec.json.Encoder()


def rank(edge: Edge, call: Call) -> wire.Ranked:
    """Order candidates."""
    sent: wire.Rank = call.body
    candidates = sent.candidates
    _check_distinct("candidates", candidates)
    _check_columns(sent.candidate_fields, len(candidates))
    time_ms = call.now_ms if sent.time_ms is None else sent.time_ms
    answer = edge.service.rank(
        values.RankRequest(
            request_id=call.request_id,
            user_id=sent.user_id,
            time_ms=time_ms,
            candidates=candidates,
            place=sent.place,
            candidate_fields=sent.candidate_fields,
            context=sent.context,
            k=sent.k,
            with_probabilities=sent.probabilities,
            model=sent.model,
        )
    )
    served, order, scores = answer.served, list(answer.order), list(answer.scores)
    propensities = None if answer.propensities is None else list(answer.propensities)
    edge.metrics.ranked(served, len(candidates), time_ms)
    call.stages.update(served.stage_s)
    if edge.served_log is not None:
        edge.served_log.write(
            ServedList(
                user_id=sent.user_id,
                request_id=call.request_id,
                time_ms=time_ms,
                logged_ms=call.now_ms,
                operation="rank",
                place=sent.place,
                context=sent.context,
                model=served.model,
                version=served.version,
                arm=served.arm,
                policy="deterministic" if propensities is None else "stochastic",
                history_length=served.history_length,
                candidates=candidates,
                candidate_fields=sent.candidate_fields,
                order=order,
                scores=scores,
                propensities=[1.0] * len(order) if propensities is None else propensities,
            )
        )
    return wire.Ranked(
        request_id=call.request_id,
        model=served.model,
        version=served.version,
        arm=served.arm,
        history_length=served.history_length,
        newest_time_ms=served.newest_ms,
        revision=served.revision,
        state=served.state,
        unknown_candidates=served.unknown_candidates,
        items=[candidates[position] for position in order],
        scores=scores,
        probabilities=None if answer.probabilities is None else list(answer.probabilities),
        propensities=propensities,
    )


def recommend(edge: Edge, call: Call) -> wire.Recommended:
    """Find candidates, rank them, arrange a list."""
    sent: wire.Recommend = call.body
    most = edge.settings.limits.recommended
    if sent.k > most:
        raise Problem(422, f"k must be at most {most}; ask for fewer.", "refused")
    for name in ("candidates", "exclude", "must_include"):
        _check_distinct(name, getattr(sent, name))
    time_ms = call.now_ms if sent.time_ms is None else sent.time_ms
    answer = edge.service.recommend(
        values.RecommendRequest(
            request_id=call.request_id,
            user_id=sent.user_id,
            time_ms=time_ms,
            k=sent.k,
            place=sent.place,
            context=sent.context,
            sources=sent.sources,
            candidates=sent.candidates,
            exclude=sent.exclude,
            must_include=sent.must_include,
            caps=sent.caps,
            already_bought=sent.already_bought,
            diversity=sent.diversity,
            explore=sent.explore,
            with_probabilities=sent.probabilities,
            model=sent.model,
        )
    )
    served = answer.served
    edge.metrics.ranked(served, answer.num_candidates, time_ms)
    call.stages.update(served.stage_s)
    if edge.served_log is not None:
        candidates = list(dict.fromkeys([*answer.candidates, *(item.item_id for item in answer.items)]))
        position = {item_id: n for n, item_id in enumerate(candidates)}
        edge.served_log.write(
            ServedList(
                user_id=sent.user_id,
                request_id=call.request_id,
                time_ms=time_ms,
                logged_ms=call.now_ms,
                operation="recommend",
                place=sent.place,
                context=sent.context,
                model=served.model,
                version=served.version,
                arm=served.arm,
                policy=answer.policy,
                history_length=served.history_length,
                candidates=candidates,
                candidate_fields={},
                order=[position[item.item_id] for item in answer.items],
                scores=[item.score for item in answer.items],
                propensities=[item.propensity for item in answer.items],
                sources=[list(item.sources) for item in answer.items],
            )
        )
    return wire.Recommended(
        request_id=call.request_id,
        model=served.model,
        version=served.version,
        arm=served.arm,
        policy=answer.policy,
        history_length=served.history_length,
        newest_time_ms=served.newest_ms,
        revision=served.revision,
        state=served.state,
        num_candidates=answer.num_candidates,
        items=[
            wire.RecommendedItem(
                item_id=item.item_id,
                score=item.score,
                probability=item.probability,
                propensity=item.propensity,
                sources=list(item.sources),
                rule=item.rule,
            )
            for item in answer.items
        ],
    )


def explain(edge: Edge, call: Call) -> wire.Explained:
    """Name the behaviours that carry scores."""
    sent: wire.Explain = call.body
    _check_distinct("items", sent.items)
    _check_columns(sent.candidate_fields, len(sent.items))
    answer = edge.service.explain(
        values.ExplainRequest(
            request_id=call.request_id,
            user_id=sent.user_id,
            time_ms=call.now_ms if sent.time_ms is None else sent.time_ms,
            items=sent.items,
            place=sent.place,
            candidate_fields=sent.candidate_fields,
            context=sent.context,
            model=sent.model,
        )
    )
    call.stages.update(answer.served.stage_s)
    return wire.Explained(
        request_id=call.request_id,
        model=answer.served.model,
        version=answer.served.version,
        history_length=answer.served.history_length,
        items=[
            wire.ExplainedItem(
                item_id=item.item_id,
                label=item.label,
                score=item.score,
                reasons=[
                    wire.Reason(
                        item_id=reason.item_id,
                        label=reason.label,
                        count=reason.count,
                        last_time_ms=reason.last_time_ms,
                        drop=reason.drop,
                    )
                    for reason in item.reasons
                ],
                joint_drop=item.joint_drop,
            )
            for item in answer.items
        ],
    )


def append(edge: Edge, call: Call) -> wire.Receipts:
    """Store events; durable when answered."""
    sent: list[wire.SentEvent] = call.body if isinstance(call.body, list) else [call.body]
    latest = call.now_ms + edge.settings.limits.future_s * 1000
    events = []
    for position, one in enumerate(sent):
        if one.time_ms is not None and one.time_ms > latest:
            raise Problem(
                422,
                f"events[{position}]: time_ms must not be more than {edge.settings.limits.future_s} s ahead of the "
                f"server's clock; send epoch milliseconds.",
                "refused",
            )
        try:
            events.append(
                Event(
                    event_id=secrets.token_hex(16) if one.event_id is None else one.event_id,
                    user_id=one.user_id,
                    item_id=one.item_id,
                    time_ms=call.now_ms if one.time_ms is None else one.time_ms,
                    action=one.action,
                    value=math.nan if one.value is None else one.value,
                    place=one.place,
                    fields=one.fields,
                )
            )
        except DataError as error:
            raise refused_data(error, f"events[{position}]: ") from error
    began = time.perf_counter()
    try:
        receipts = edge.service.append(events)
    except DataError as error:
        raise refused_data(error) from error
    finally:
        call.stages["store"] = time.perf_counter() - began  # until the commit that they share is on the disk
    for receipt in receipts:
        edge.metrics.events.labels(receipt.outcome).inc()
    return wire.Receipts(
        request_id=call.request_id,
        events=[
            wire.Receipt(event_id=event.event_id, outcome=receipt.outcome, sequence=receipt.sequence)
            for event, receipt in zip(events, receipts, strict=True)
        ],
    )


def timeline(edge: Edge, call: Call) -> wire.Timeline:
    """Return a page of a user's history."""
    time_ms, sequence = call.query["before_ms"], call.query["before_sequence"]
    if (time_ms is None) != (sequence is None):
        raise Problem(422, "before_ms and before_sequence must be sent together; send both or none.", "refused")
    before = None if time_ms is None else (time_ms, sequence)
    found = edge.service.timeline(call.parameters["user_id"], limit=call.query["limit"], before=before)
    if found is None:
        raise Problem(404, "Nothing is known of this user.", "not_found")
    return wire.Timeline(
        user_id=found.user_id,
        revision=found.revision,
        count=found.count,
        fields=cast(dict[str, Any], dict(found.fields)),
        events=[_past_event(event) for event in found.events],
        older=None if found.older is None else wire.Older(before_ms=found.older[0], before_sequence=found.older[1]),
    )


def export_user(edge: Edge, call: Call) -> Spooled:
    """Return everything there is of a user, one JSON document a line."""
    user_id = call.parameters["user_id"]
    head = edge.service.timeline(user_id, limit=1)
    if head is None:
        raise Problem(404, "Nothing is known of this user.", "not_found")
    if edge.exports >= edge.settings.limits.control_threads * 2:
        raise unavailable("The server sends as many exports as it can; try again.", "exports")
    file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115  the edge closes it
    file.write(
        _lines.encode(
            wire.Exported(
                user_id=user_id,
                exported_ms=call.now_ms,
                revision=head.revision,
                fields=cast(dict[str, Any], dict(head.fields)),
            )
        )
        + b"\n"
    )
    for event in edge.service.export_user(user_id):
        file.write(_lines.encode(_past_event(event)) + b"\n")
    if edge.served_log is not None:
        for line in edge.served_log.lines_of(user_id):
            file.write(line + b"\n")
    file.seek(0)
    edge.log.audit("export_user", request_id=call.request_id, key=call.key_id, user_id=user_id)
    return Spooled(file=file, media_type="application/x-ndjson")


def set_user_fields(edge: Edge, call: Call) -> wire.Done:
    """Replace what is known of a user."""
    try:
        edge.service.set_user_fields(call.parameters["user_id"], call.body.fields)
    except DataError as error:
        raise refused_data(error) from error
    return wire.Done(request_id=call.request_id)


def delete_user(edge: Edge, call: Call) -> wire.Deleted:
    """Erase a user from store, states, caches and the log of served lists."""
    user_id = call.parameters["user_id"]
    gone = edge.service.delete_user(user_id)
    lists = edge.served_log.forget(user_id) if edge.served_log is not None else 0
    edge.log.audit(
        "delete_user",
        request_id=call.request_id,
        key=call.key_id,
        user_id=user_id,
        existed=gone.existed,
        events=gone.events,
        states=gone.states,
        served_lists=lists,
    )
    return wire.Deleted(
        request_id=call.request_id, existed=gone.existed, events=gone.events, states=gone.states, served_lists=lists
    )


def put_items(edge: Edge, call: Call) -> wire.ItemsStored:
    """Store what is known of items."""
    sent: wire.SentItems = call.body
    _check_distinct("items", [item.item_id for item in sent.items])
    records = [
        values.ItemRecord(item_id=item.item_id, categories=item.categories, fields=item.fields) for item in sent.items
    ]
    try:
        revision = edge.service.put_items(records)
    except DataError as error:
        raise refused_data(error) from error
    edge.log.audit("put_items", request_id=call.request_id, key=call.key_id, items=len(sent.items))
    return wire.ItemsStored(request_id=call.request_id, count=len(sent.items), revision=revision)


def get_item(edge: Edge, call: Call) -> wire.ItemAnswer:
    """Return what is known of an item."""
    (found,) = edge.service.items([call.parameters["item_id"]])
    if found is None:
        raise Problem(404, "Nothing is known of this item.", "not_found")
    return wire.ItemAnswer(
        item_id=found.item_id,
        categories=list(found.categories),
        fields=cast(dict[str, Any], dict(found.fields)),
    )


def models(edge: Edge, call: Call) -> wire.Models:
    """Return what is loaded and who answers."""
    return _models(edge.service.models())


def load_model(edge: Edge, call: Call) -> wire.Model:
    """Load a bundle; traffic does not change."""
    loaded = edge.service.load_model(call.body.bundle)
    edge.log.audit("load_model", request_id=call.request_id, key=call.key_id, version=loaded.version)
    return _model(loaded)


def unload_model(edge: Edge, call: Call) -> wire.Done:
    """Forget a model that no traffic names."""
    edge.service.unload_model(call.parameters["version"])
    edge.log.audit("unload_model", request_id=call.request_id, key=call.key_id, version=call.parameters["version"])
    return wire.Done(request_id=call.request_id)


def set_traffic(edge: Edge, call: Call) -> wire.Models:
    """Say which versions answer."""
    sent: wire.SetTraffic = call.body
    traffic = values.Traffic(main=sent.main, canary=sent.canary, canary_share=sent.canary_share, shadow=sent.shadow)
    changed = edge.service.set_traffic(traffic)
    edge.log.audit(
        "set_traffic", request_id=call.request_id, key=call.key_id, **cast(dict[str, Any], msgspec.to_builtins(traffic))
    )
    return _models(changed)


def roll_back(edge: Edge, call: Call) -> wire.Models:
    """Return to the traffic of before."""
    changed = edge.service.roll_back()
    edge.log.audit("roll_back", request_id=call.request_id, key=call.key_id)
    return _models(changed)


def health(edge: Edge, call: Call) -> wire.Health:
    """Say that the process lives."""
    return _HEALTHY


def ready(edge: Edge, call: Call) -> wire.Ready:
    """Say whether requests can be answered."""
    if edge.draining:
        raise unavailable("The server is about to end.", "draining")
    found = edge.service.readiness()
    if not found.ready:
        raise unavailable("The server is not ready: " + "; ".join(found.reasons), "not_ready")
    return wire.Ready(ready=True, reasons=list(found.reasons))


def show_metrics(edge: Edge, call: Call) -> Text:
    """Return all numbers."""
    edge.take_readings()
    return Text(body=edge.metrics.text(), media_type=metrics.MEDIA_TYPE)


def document(edge: Edge, call: Call) -> Text:
    """Return the description of all this."""
    return Text(body=edge.document(), media_type="application/json")


_HEALTHY = wire.Health()
_LARGEST = 2**53
_PAGE = (
    QueryParameter(name="limit", description="Events wanted", low=1, high=_LARGEST, default=100, high_limit="timeline"),
    QueryParameter(name="before_ms", description="Of `older` of the page before", low=-_LARGEST, high=_LARGEST),
    QueryParameter(name="before_sequence", description="Of `older` of the page before", low=0, high=_LARGEST),
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(name="rank", method="POST", path="/v1/rank", scope="rank", lane="score", handle=rank,
              summary="Order candidates for a user at a moment", body=wire.Rank, answer=wire.Ranked,
              statuses=(404, 503), limited=(("candidates", "candidates"),)),
    Operation(name="recommend", method="POST", path="/v1/recommend", scope="rank", lane="score", handle=recommend,
              summary="Find candidates, rank them and arrange a list", body=wire.Recommend, answer=wire.Recommended,
              statuses=(404, 503), limited=(("candidates", "candidates"), ("exclude", "candidates"),
                                            ("must_include", "recommended"))),
    Operation(name="explain", method="POST", path="/v1/explain", scope="rank", lane="score", handle=explain,
              summary="Name the past behaviours that carry scores", body=wire.Explain, answer=wire.Explained,
              statuses=(404, 503), limited=(("items", "explained"),)),
    Operation(name="append", method="POST", path="/v1/events", scope="events", lane="append", handle=append,
              summary="Store one event or a batch, all or none; durable when answered",
              body=wire.SentEvent | list[wire.SentEvent], answer=wire.Receipts, statuses=(503, 507),
              limited=(("", "events"),)),
    Operation(name="timeline", method="GET", path="/v1/users/{user_id}", scope="users", lane="control",
              handle=timeline, summary="A page of a user's history, newest first", answer=wire.Timeline,
              statuses=(404, 503), query=_PAGE),
    Operation(name="set_user_fields", method="PUT", path="/v1/users/{user_id}", scope="users", lane="control",
              handle=set_user_fields, summary="Replace what is known of a user", body=wire.UserFields,
              answer=wire.Done, statuses=(503, 507)),
    Operation(name="delete_user", method="DELETE", path="/v1/users/{user_id}", scope="users", lane="control",
              handle=delete_user, summary="Erase a user everywhere", answer=wire.Deleted, statuses=(503, 507)),
    Operation(name="export_user", method="GET", path="/v1/users/{user_id}/export", scope="users", lane="control",
              handle=export_user, summary="Everything there is of a user, one JSON document a line", answer=None,
              media_type="application/x-ndjson", statuses=(404, 503)),
    Operation(name="put_items", method="PUT", path="/v1/items", scope="items", lane="control", handle=put_items,
              summary="Store what is known of items", body=wire.SentItems, answer=wire.ItemsStored,
              statuses=(503, 507), limited=(("items", "items"),)),
    Operation(name="get_item", method="GET", path="/v1/items/{item_id}", scope="items", lane="control",
              handle=get_item, summary="What is known of an item", answer=wire.ItemAnswer, statuses=(404, 503)),
    Operation(name="models", method="GET", path="/v1/models", scope="models", lane="control", handle=models,
              summary="What is loaded, what could be, and who answers", answer=wire.Models, statuses=(503,)),
    Operation(name="load_model", method="POST", path="/v1/models", scope="models", lane="control", handle=load_model,
              summary="Load and verify a bundle", body=wire.LoadModel, answer=wire.Model, statuses=(404, 503)),
    Operation(name="set_traffic", method="PUT", path="/v1/models/traffic", scope="models", lane="control",
              handle=set_traffic, summary="Swap, canary share, shadow", body=wire.SetTraffic, answer=wire.Models,
              statuses=(404, 409, 503)),
    Operation(name="roll_back", method="POST", path="/v1/models/rollback", scope="models", lane="control",
              handle=roll_back, summary="Return to the traffic of before", answer=wire.Models, statuses=(409, 503)),
    Operation(name="unload_model", method="DELETE", path="/v1/models/{version}", scope="models", lane="control",
              handle=unload_model, summary="Forget a model that no traffic names", answer=wire.Done,
              statuses=(404, 409, 503)),
    Operation(name="health", method="GET", path="/healthz", scope=None, lane=None, handle=health,
              summary="Whether the process lives", answer=wire.Health),
    Operation(name="ready", method="GET", path="/readyz", scope=None, lane="control", handle=ready,
              summary="Whether requests can be answered", answer=wire.Ready, statuses=(503,)),
    Operation(name="metrics", method="GET", path="/metrics", scope="metrics", lane="control", handle=show_metrics,
              summary="Numbers for Prometheus", answer=None, media_type=metrics.MEDIA_TYPE, statuses=(503,)),
    Operation(name="document", method="GET", path="/openapi.json", scope=None, lane=None, handle=document,
              summary="This document", answer=dict[str, Any], media_type="application/json"),
)  # fmt: skip


def _check_distinct(name: str, ids: Sequence[str]) -> None:
    if len(set(ids)) != len(ids):
        raise Problem(422, f"{name} must be distinct; send each once.", "refused")


def _check_columns(columns: Mapping[str, Sequence[Any]], length: int) -> None:
    for column in columns.values():
        if len(column) != length:
            raise Problem(
                422,
                f"candidate_fields must be columns of one value per candidate ({length}), one has {len(column)}.",
                "refused",
            )


def _past_event(event: values.StoredEvent) -> wire.PastEvent:
    value = event.value
    return wire.PastEvent(
        sequence=event.sequence,
        time_ms=event.time_ms,
        item_id=event.item_id,
        action=event.action,
        value=None if value is None or math.isnan(value) else value,
        place=event.place,
        fields=cast(dict[str, Any], dict(event.fields)),
    )


def _model(model: values.LoadedModel) -> wire.Model:
    return wire.Model(
        bundle=model.bundle, model=model.model, version=model.version, loaded=model.loaded, roles=list(model.roles)
    )


def _traffic(traffic: values.Traffic | None) -> wire.Traffic | None:
    if traffic is None:
        return None
    return wire.Traffic(
        main=traffic.main, canary=traffic.canary, canary_share=traffic.canary_share, shadow=traffic.shadow
    )


def _models(found: values.Models) -> wire.Models:
    return wire.Models(
        models=[_model(model) for model in found.models],
        traffic=_traffic(found.traffic),
        previous=_traffic(found.previous),
    )


__all__ = ["OPERATIONS"]
