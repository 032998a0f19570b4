"""The OpenAPI document is valid, complete and true: schemathesis sends what it allows and what it does not."""

import json
import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serving.http.conftest import bearer
from tests.serving.http.stand_in import StandInService

from sostenuto.serving.http.routes import OPERATIONS

JSON = {"content-type": "application/json"}
MSGPACK = {"content-type": "application/msgpack"}


def test_every_operation_is_described_with_its_scope_and_its_problems(open_client, keys, tmp_path):
    keys("rank")
    client = open_client(keys=tmp_path / "keys.json")
    document = client("GET", "/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    for operation in OPERATIONS:
        described = document["paths"][operation.path][operation.method.lower()]
        assert described["operationId"] == operation.name
        assert bool(described["security"]) == (operation.scope is not None)
        if operation.scope:
            assert f"`{operation.scope}`" in described["description"]
            assert {"200", "401", "403", "429", "500"} <= set(described["responses"])
        assert ("requestBody" in described) == (operation.body is not None)
    assert sum(len(methods) for methods in document["paths"].values()) == len(OPERATIONS)


def test_every_reference_leads_somewhere(client):
    text = client("GET", "/openapi.json").text
    schemas = json.loads(text)["components"]["schemas"]
    assert {f"#/components/schemas/{name}" for name in schemas} >= set(msgspec_references(text))


def msgspec_references(text: str) -> list[str]:
    return [part.split('"', 1)[0] for part in text.split('"$ref":"')[1:]]


def test_the_document_shows_the_limits_of_this_server(open_client):
    schemas = open_client(candidates=7, items=3, recommended=5)("GET", "/openapi.json").json()["components"]["schemas"]
    assert schemas["Rank"]["properties"]["candidates"]["maxItems"] == 7
    assert schemas["SentItems"]["properties"]["items"]["maxItems"] == 3
    assert schemas["Recommend"]["properties"]["k"]["maximum"] == 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_schemathesis_finds_no_failure_of_the_server_and_no_untrue_answer(open_client):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from schemathesis.checks import CHECKS

    client = open_client(candidates=20, body_bytes=100_000)
    schema = schemathesis.openapi.from_dict(client("GET", "/openapi.json").json())
    wanted = [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
        "negative_data_rejection",
        "unsupported_method",
    ]
    checks = CHECKS.get_by_names(wanted)
    assert len(checks) == len(wanted)
    seen: dict[str, int] = {}

    def ask_all(operation, mode) -> None:
        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def ask(case):
            response = case.call(app=client.app, base_url="http://localhost")
            case.validate_response(response, checks=checks)
            seen[operation.label] = seen.get(operation.label, 0) + 1

        ask()

    for result in schema.get_all_operations():
        operation = result.ok()
        ask_all(operation, schemathesis.GenerationMode.POSITIVE)
        if operation.body or operation.query or operation.path_parameters:  # else nothing can be wrong
            ask_all(operation, schemathesis.GenerationMode.NEGATIVE)
    assert len(seen) == len(OPERATIONS)


WORDS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), st.just("x" * 600),
    st.sampled_from(["user_id", "item_id", "time_ms", "a", "", "\x00", "é", "𝄞", "../..", "u\n"]),
)  # fmt: skip
ANYTHING = st.recursive(
    WORDS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
FIELD = st.sampled_from(["user_id", "item_id", "event_id", "time_ms", "action", "value", "place", "fields", "other"])
EVENT = st.dictionaries(FIELD, ANYTHING, max_size=9)
NEARLY = st.builds(
    lambda base, change: {**base, **change},
    st.just({"user_id": "u", "item_id": "i", "time_ms": 5, "value": 1.0}),
    st.dictionaries(FIELD, ANYTHING, max_size=2),
)


def is_answered(client, content: bytes, headers: dict[str, str]) -> int:
    answer = client("POST", "/v1/events", content=content, headers=headers)
    assert answer.status_code in {200, 400, 413, 422}, answer.text
    if answer.status_code != 200:
        problem = answer.json()
        assert problem["status"] == answer.status_code
        assert len(answer.content) < 2_000  # whatever was sent, little is said
    return answer.status_code


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.one_of(ANYTHING, EVENT, NEARLY, st.lists(NEARLY, max_size=5)))
def test_whatever_an_event_holds_it_is_stored_or_refused(client, batch):
    before = sum(map(len, client.service.events.values()))
    try:
        as_json = json.dumps(batch).encode()  # NaN and infinity too, as some clients do
    except (ValueError, UnicodeEncodeError):
        as_json = b"{"
    statuses = [is_answered(client, as_json, JSON)]
    try:
        packed = msgspec.msgpack.encode(batch)
    except (OverflowError, UnicodeEncodeError):
        packed = b"\xc1"
    statuses.append(is_answered(client, packed, MSGPACK))
    stored = sum(map(len, client.service.events.values())) - before
    assert (stored > 0) <= (200 in statuses)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), packed=st.booleans())
def test_broken_bytes_are_refused(client, seed, packed):
    rng = random.Random(seed)
    good = [{"user_id": f"u{n}", "item_id": "i", "event_id": str(n), "fields": {"a": 1.5}} for n in range(3)]
    data = bytearray(msgspec.msgpack.encode(good) if packed else msgspec.json.encode(good))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        what = rng.randrange(4)
        if what == 0:
            data[at] = rng.randrange(256)
        elif what == 1:
            del data[at:]
            data = data or bytearray(b"\x00")
        elif what == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            data[at:at] = data[:at]
    is_answered(client, bytes(data), MSGPACK if packed else JSON)


def test_memory_stays_bounded_under_large_and_refused_bodies(open_client):
    psutil = pytest.importorskip("psutil", reason="psutil is not installed")
    client = open_client(StandInService(), body_bytes=1_000_000)
    bodies = [
        (b"[" * 900_000, JSON),
        (b'{"user_id":"' + b"x" * 900_000 + b'","item_id":"i"}', JSON),
        (b"[" + b'{"user_id":"u","item_id":"i","action":7},' * 20_000 + b"{}]", JSON),
        (b"[" + b"1e308," * 100_000 + b"1]", JSON),
        (b"\xdd\x7f\xff\xff\xff", MSGPACK),
        (b"\xdf\x7f\xff\xff\xff" + b"\xa1a" * 400_000, MSGPACK),
        (b"\xdb\x7f\xff\xff\xff" + b"a" * 900_000, MSGPACK),
        (b" " * 5_000_000, JSON),
    ]
    for content, headers in bodies:
        is_answered(client, content, headers)
    before = psutil.Process().memory_info().rss
    for _ in range(20):
        for content, headers in bodies:
            is_answered(client, content, headers)
    assert psutil.Process().memory_info().rss - before < 50_000_000
    assert client.service.events == {}


def test_a_key_that_leads_nowhere_is_fuzzed_away(open_client, keys, tmp_path):
    good = keys("models")
    client = open_client(keys=tmp_path / "keys.json")
    rng = random.Random(3)
    for _ in range(300):
        at, other = rng.randrange(len(good)), rng.choice("abcXYZ019_-~ \t")
        changed = good[:at] + other + good[at + 1 :]
        wanted = 200 if changed.strip() == good else 401
        assert client("GET", "/v1/models", headers=bearer(changed)).status_code == wanted
