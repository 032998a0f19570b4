"""What the routes promise, over a stand-in service."""

import json
import math

import msgspec
import pytest
from tests.serving.http.stand_in import StandInService

from sostenuto.schema.errors import NotReady, StoreBusy, StoreFull, StoreGone
from sostenuto.serving.served_log import read_served

DAY = 86_400_000


def event(user="u1", item="a", time_ms=1_000, **more):
    return {"user_id": user, "item_id": item, "time_ms": time_ms, **more}


def test_an_event_changes_the_next_ranking(client):
    body = {"user_id": "u1", "candidates": ["a", "b"], "time_ms": 2_000}
    before = client("POST", "/v1/rank", json=body).json()
    assert before["items"] == ["a", "b"]
    assert before["state"] == "cold"
    stored = client("POST", "/v1/events", json=event(item="b"))
    assert stored.status_code == 200
    after = client("POST", "/v1/rank", json=body).json()
    assert after["items"] == ["b", "a"]
    assert after["scores"] == [1.0, 0.0]
    assert after["history_length"] == 1


def test_an_event_at_the_moment_of_the_request_is_not_seen(client):
    client("POST", "/v1/events", json=event(item="b", time_ms=2_000))
    answer = client("POST", "/v1/rank", json={"user_id": "u1", "candidates": ["a", "b"], "time_ms": 2_000}).json()
    assert answer["history_length"] == 0


def test_a_single_event_and_a_batch_of_one_are_the_same(client):
    one = client("POST", "/v1/events", json=event(event_id="e1")).json()
    again = client("POST", "/v1/events", json=[event(event_id="e1")]).json()
    assert one["events"] == [{"event_id": "e1", "outcome": "new", "sequence": 1}]
    assert again["events"] == [{"event_id": "e1", "outcome": "duplicate", "sequence": 1}]


def test_events_without_an_id_get_one_each_and_are_told(client):
    answer = client("POST", "/v1/events", json=[event(), event()]).json()
    ids = [receipt["event_id"] for receipt in answer["events"]]
    assert len(set(ids)) == 2
    assert all(len(one) == 32 for one in ids)


def test_json_and_msgpack_say_the_same(client):
    body = {"user_id": "u1", "candidates": ["a", "b"], "probabilities": True}
    by_json = client("POST", "/v1/rank", json=body, headers={"x-request-id": "r1"})
    packed = client(
        "POST",
        "/v1/rank",
        content=msgspec.msgpack.encode(body),
        headers={"content-type": "application/msgpack", "x-request-id": "r1"},
    )
    assert packed.headers["content-type"] == "application/msgpack"
    assert msgspec.msgpack.decode(packed.content) == by_json.json()
    mixed = client("POST", "/v1/rank", json=body, headers={"accept": "application/msgpack;q=0.9, */*;q=0.1"})
    assert mixed.headers["content-type"] == "application/msgpack"


@pytest.mark.parametrize(
    ("accept", "status", "kind"),
    [
        ("*/*", 200, "application/json"),
        ("application/*", 200, "application/json"),
        ("application/json;q=0.2, application/x-msgpack", 200, "application/msgpack"),
        ("application/json;q=0, application/msgpack;q=0", 406, "application/problem+json"),
        ("text/html", 406, "application/problem+json"),
        ("text/html, */*;q=0.1", 200, "application/json"),
        ("nonsense;;;q=q,,", 406, "application/problem+json"),
    ],
)
def test_accept_decides_the_form(client, accept, status, kind):
    answer = client("GET", "/v1/models", headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (status, kind)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/rank", {"user_id": "u1"}, 422),
        ("/v1/rank", {"user_id": "u1", "candidates": []}, 422),
        ("/v1/rank", {"user_id": "", "candidates": ["a"]}, 422),
        ("/v1/rank", {"user_id": 7, "candidates": ["a"]}, 422),
        ("/v1/rank", {"user_id": "u1", "candidates": ["a", "a"]}, 422),
        ("/v1/rank", {"user_id": "u1", "candidates": ["a"], "candidate": []}, 422),
        ("/v1/rank", {"user_id": "u1", "candidates": ["a"], "k": 0}, 422),
        ("/v1/rank", {"user_id": "u1", "candidates": ["a"], "time_ms": -1}, 422),
        ("/v1/rank", {"user_id": "u1", "candidates": ["a"], "time_ms": 10**30}, 422),
        ("/v1/rank", {"user_id": "u1", "candidates": ["a"], "candidate_fields": {"price": [1, 2]}}, 422),
        ("/v1/rank", {"user_id": "u1", "candidates": ["a"], "candidate_fields": {"price": [1e300]}}, 422),
        ("/v1/rank", {"user_id": "u1", "candidates": ["a"], "candidate_fields": {"unknown_field": [1]}}, 422),
        ("/v1/rank", {"user_id": "u1", "candidates": ["a"], "model": "v9"}, 404),
        ("/v1/recommend", {"user_id": "u1", "k": 501}, 422),
        ("/v1/recommend", {"user_id": "u1", "diversity": 1.5}, 422),
        ("/v1/recommend", {"user_id": "u1", "already_bought": "maybe"}, 422),
        ("/v1/explain", {"user_id": "u1", "items": [str(n) for n in range(11)]}, 422),
        ("/v1/events", [], 422),
        ("/v1/events", {}, 422),
        ("/v1/events", event(time_ms=10**13), 422),
        ("/v1/events", event(value=1e39), 422),
        ("/v1/events", event(item="x" * 501), 422),
        ("/v1/events", event(item="é" * 400), 422),
        ("/v1/events", [event(), event(action=3)], 422),
        ("/v1/models", {"bundle": "../../etc/passwd"}, 404),
    ],
)
def test_what_cannot_be_is_refused_with_a_problem(client, path, body, status):
    answer = client("POST", path, json=body)
    assert answer.status_code == status
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["type"] == "about:blank"
    assert problem["instance"] == "urn:request:" + answer.headers["x-request-id"]
    assert "passwd" not in answer.text


def test_a_batch_is_stored_whole_or_not_at_all(client):
    refused = client("POST", "/v1/events", json=[event(), event(item="é" * 400)])
    assert refused.status_code == 422
    assert "events[1]" in refused.json()["detail"]
    assert client.service.events == {}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"user_id": "\\ud800"}', b"[" * 100_000, b"NaN"])
def test_what_is_not_json_is_refused(client, body):
    answer = client("POST", "/v1/rank", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == (422 if body[:1] == b"[" else 400)  # an array is JSON, only not what is wanted


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000])
def test_what_is_not_msgpack_is_refused(client, body):
    answer = client("POST", "/v1/rank", content=body, headers={"content-type": "application/msgpack"})
    assert answer.status_code in {400, 422}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_in_msgpack(client, value):
    for path, body in (
        ("/v1/events", event(value=value)),
        ("/v1/rank", {"user_id": "u", "candidates": ["a"], "candidate_fields": {"price": [value]}}),
    ):
        answer = client(
            "POST", path, content=msgspec.msgpack.encode(body), headers={"content-type": "application/msgpack"}
        )
        assert answer.status_code == 422


def test_bodies_of_other_types_and_compressed_ones_are_refused(client):
    body = json.dumps({"user_id": "u1", "candidates": ["a"]}).encode()
    for headers in (
        {"content-type": "text/plain"},
        {},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ):
        assert client("POST", "/v1/rank", content=body, headers=headers).status_code == 415


def test_a_body_beyond_the_limit_is_refused_said_or_not(open_client):
    client = open_client(body_bytes=1_000)
    headers = {"content-type": "application/json"}
    assert client("POST", "/v1/rank", content=b" " * 1_001, headers=headers).status_code == 413

    async def chunks():
        for _ in range(20):
            yield b" " * 100

    assert client("POST", "/v1/rank", content=chunks(), headers=headers).status_code == 413


def test_candidates_beyond_the_limit_are_refused(open_client):
    client = open_client(candidates=3)
    body = {"user_id": "u1", "candidates": ["a", "b", "c"]}
    assert client("POST", "/v1/rank", json=body).status_code == 200
    assert client("POST", "/v1/rank", json={**body, "candidates": ["a", "b", "c", "d"]}).status_code == 422


def test_users_are_paged_exported_changed_and_deleted(client):
    client("POST", "/v1/events", json=[event(item=f"i{n}", time_ms=n) for n in range(5)])
    page = client("GET", "/v1/users/u1?limit=2").json()
    assert [e["item_id"] for e in page["events"]] == ["i4", "i3"]
    rest = client("GET", "/v1/users/u1", params={"limit": 10, **page["older"]}).json()
    assert [e["item_id"] for e in rest["events"]] == ["i2", "i1", "i0"]
    assert rest["older"] is None
    assert client("PUT", "/v1/users/u1", json={"fields": {"age": 31}}).status_code == 200
    lines = [json.loads(line) for line in client("GET", "/v1/users/u1/export").text.splitlines()]
    assert lines[0]["fields"] == {"age": 31}
    assert [line["item_id"] for line in lines[1:]] == [f"i{n}" for n in range(5)]
    gone = client("DELETE", "/v1/users/u1").json()
    assert (gone["existed"], gone["events"]) == (True, 5)
    assert client("GET", "/v1/users/u1").status_code == 404
    assert client("GET", "/v1/users/u1/export").status_code == 404
    assert client("DELETE", "/v1/users/u1").json()["existed"] is False


@pytest.mark.parametrize("user", ["a/b", "../x", "%2F", "ü ö", "a?b#c", ".", "rollback", "x/export"])
def test_an_id_may_hold_anything(client, user):
    from urllib.parse import quote

    client("POST", "/v1/events", json=event(user=user))
    path = "/v1/users/" + quote(user, safe="").replace(".", "%2E")
    assert client("GET", path).json()["user_id"] == user
    assert client("DELETE", path).json()["existed"] is True


@pytest.mark.parametrize(
    ("query", "status"),
    [("limit=0", 422), ("limit=1001", 422), ("limit=x", 422), ("limt=1", 422), ("before_ms=1", 422), ("%ff=1", 400),
     ("limit", 400), ("limit=1&limit=2", 200), ("limit=" + "1" * 30, 422), ("limit=٣", 400)],
)  # fmt: skip
def test_queries_are_checked(client, query, status):
    client("POST", "/v1/events", json=event())
    assert client("GET", f"/v1/users/u1?{query}").status_code == (status if "٣" not in query else 422)


def test_items_are_stored_and_read(client):
    item = {"item_id": "a/1", "categories": ["food", "bread"], "fields": {"price": 2.5, "tags": ["x", "y"]}}
    assert client("PUT", "/v1/items", json={"items": [item]}).json()["count"] == 1
    assert client("GET", "/v1/items/a%2F1").json() == item
    assert client("GET", "/v1/items/b").status_code == 404
    assert client("PUT", "/v1/items", json={"items": [item, item]}).status_code == 422


def test_models_are_loaded_swapped_rolled_back_and_unloaded(client):
    assert client("PUT", "/v1/models/traffic", json={"main": "v2"}).status_code == 404
    assert client("POST", "/v1/models", json={"bundle": "second"}).json()["version"] == "v2"
    swapped = client("PUT", "/v1/models/traffic", json={"main": "v2", "canary": "v1", "canary_share": 0.1}).json()
    assert swapped["traffic"] == {"main": "v2", "canary": "v1", "canary_share": 0.1, "shadow": None}
    assert swapped["previous"]["main"] == "v1"
    assert client("DELETE", "/v1/models/v1").status_code == 409
    assert client("POST", "/v1/models/rollback").json()["traffic"]["main"] == "v1"
    assert client("POST", "/v1/models/rollback").status_code == 409
    assert client("DELETE", "/v1/models/v2").status_code == 200


def test_explanations_and_lists_come_through(client):
    client("POST", "/v1/events", json=[event(item="a"), event(item="b")])
    explained = client("POST", "/v1/explain", json={"user_id": "u1", "items": ["a", "z"]}).json()
    assert [reason["count"] for reason in explained["items"][0]["reasons"]] == [1]
    assert explained["items"][1]["reasons"] == []
    listed = client("POST", "/v1/recommend", json={"user_id": "u1", "k": 2, "exclude": ["b"], "must_include": ["m"]})
    assert [item["item_id"] for item in listed.json()["items"]] == ["m", "a"]


def test_a_request_id_is_kept_when_it_is_harmless(client):
    assert client("GET", "/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for other in ("a b", "a" * 129, '"', ""):
        assert client("GET", "/healthz", headers={"x-request-id": other}).headers["x-request-id"] != other


def test_other_methods_and_paths_are_problems(client):
    wrong = client("DELETE", "/v1/rank")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert client("PATCH", "/v1/users/u1").headers["allow"] == "DELETE, GET, PUT"
    missing = client("GET", "/v1/nothing")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("failure", "status", "retry"),
    [
        (NotReady("x"), 503, True),
        (StoreGone("/secret/path is gone"), 503, True),
        (StoreBusy("x"), 503, True),
        (StoreFull("/secret/path is full"), 507, False),
        (ZeroDivisionError("/secret/path"), 500, False),
        (ValueError("/secret/path"), 500, False),
    ],
)
def test_failures_say_nothing_of_the_inside(open_client, failure, status, retry):
    client = open_client(StandInService(failure=failure))
    answer = client("POST", "/v1/rank", json={"user_id": "u1", "candidates": ["a"]})
    assert answer.status_code == status
    assert ("retry-after" in answer.headers) == retry
    assert "secret" not in answer.text
    assert "Error" not in answer.text.replace("Internal Server Error", "")


def test_readiness_follows_the_service_and_the_end(client):
    assert client("GET", "/readyz").json() == {"ready": True, "reasons": []}
    client.service.is_ready = False
    assert client("GET", "/readyz").status_code == 503
    client.service.is_ready = True
    client.app.edge.draining = True
    assert client("GET", "/readyz").status_code == 503
    assert client("GET", "/healthz").status_code == 200


def test_every_served_list_is_logged_with_all_that_off_policy_evaluation_needs(open_client, tmp_path):
    client = open_client(served=True)
    client("POST", "/v1/events", json=[event(item="b"), event(item="b", event_id="2"), event(item="c")])
    ranked = client(
        "POST",
        "/v1/rank",
        json={"user_id": "u1", "candidates": ["a", "b", "c"], "k": 2, "place": "home", "context": {"device": "phone"},
              "candidate_fields": {"price": [1, None, 3]}},
    ).json()  # fmt: skip
    listed = client("POST", "/v1/recommend", json={"user_id": "u1", "k": 1}).json()
    client.app.edge.served_log.flush()
    first, second = read_served(tmp_path / "served")
    assert first["request_id"] == ranked["request_id"]
    assert [first["candidates"][n] for n in first["order"]] == ranked["items"] == ["b", "c"]
    assert first["scores"] == ranked["scores"]
    assert first["propensities"] == [1.0, 1.0]
    assert (first["place"], first["context"]) == ("home", {"device": "phone"})
    assert first["candidate_fields"] == {"price": [1.0, None, 3.0]}
    assert (first["version"], first["policy"]) == ("v1", "deterministic")
    assert [second["candidates"][n] for n in second["order"]] == [item["item_id"] for item in listed["items"]]
    assert (second["propensities"], second["sources"], second["policy"]) == ([0.5], [["repeat"]], "stand-in")


def test_deleting_a_user_takes_her_lists_out_of_the_log(open_client, tmp_path):
    client = open_client(served=True)
    for user in ("u1", "u2", "u1"):
        client("POST", "/v1/rank", json={"user_id": user, "candidates": ["a"]})
    exported = client("GET", "/v1/users/u1/export")
    assert exported.status_code == 404  # nothing stored of her
    client("POST", "/v1/events", json=event())
    exported = client("GET", "/v1/users/u1/export")
    assert exported.text.count('"operation":"rank"') == 2
    assert client("DELETE", "/v1/users/u1").json()["served_lists"] == 2
    client.app.edge.served_log.flush()
    assert [line["user_id"] for line in read_served(tmp_path / "served")] == ["u2"]


def test_metrics_count_requests_stages_states_and_readings(client):
    client("POST", "/v1/events", json=event())
    client("POST", "/v1/rank", json={"user_id": "u1", "candidates": ["a", "b"]})
    client("POST", "/v1/rank", json={"user_id": "u1"})
    text = client("GET", "/metrics").text
    for wanted in (
        'sostenuto_requests_total{route="rank",status="200"} 1.0',
        'sostenuto_requests_total{route="rank",status="422"} 1.0',
        'sostenuto_refused_total{reason="refused",route="rank"} 1.0',
        'sostenuto_rankings_total{arm="main",state="cached",version="v1"} 1.0',
        'sostenuto_events_total{outcome="new"} 1.0',
        'sostenuto_encoder_lag_seconds{version="v1"} 0.25',
        "sostenuto_candidates_sum 2.0",
    ):
        assert wanted in text
    for stage in ("decode", "wait", "store", "score", "encode_answer"):
        assert f'sostenuto_stage_seconds_count{{route="rank",stage="{stage}"}}' in text


def test_labels_of_metrics_do_not_grow_with_what_is_asked(client):
    for n in range(50):
        client("GET", f"/v1/users/u{n}")
        client("GET", f"/nowhere/{n}")
        client("BREW", f"/v1/items/{n}")
    client("GET", "/metrics")  # its own labels
    before = len(client("GET", "/metrics").text.splitlines())
    for n in range(50, 150):
        client("GET", f"/v1/users/u{n}")
        client("GET", f"/nowhere/{n}")
        client(f"BREW{n}", f"/v1/items/{n}")
    assert len(client("GET", "/metrics").text.splitlines()) == before


def test_logs_hold_ids_of_requests_and_keys_and_nothing_of_users(client, tmp_path):
    client("POST", "/v1/events", json=event(user="alice@example.org", item="secret-item"))
    client("GET", "/v1/users/alice%40example.org")
    client("DELETE", "/v1/users/alice%40example.org", headers={"x-request-id": "r7"})
    text = (tmp_path / "requests.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["route"] for line in lines if line["log"] == "request"] == ["append", "timeline", "delete_user"]
    (audit,) = [line for line in lines if line["log"] == "audit"]
    assert (audit["act"], audit["request_id"], audit["events"]) == ("delete_user", "r7", 1)
    assert audit["user_hash"] == client.app.edge.log.user_hash("alice@example.org")
    assert "alice" not in text
    assert "secret-item" not in text


def test_a_trace_id_that_comes_with_the_request_is_logged(client, tmp_path):
    trace = "0af7651916cd43dd8448eb211c80319c"
    client("GET", "/healthz", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    client("GET", "/healthz", headers={"traceparent": "00-zz"})
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [line["trace_id"] for line in lines] == [trace, None]
