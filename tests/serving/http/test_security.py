"""Keys and scopes. The scan is generated from the application's own routes, so no route can be forgotten."""

import json
import re
import stat

import pytest
from tests.serving.http.conftest import bearer

from sostenuto.schema.errors import SpecError
from sostenuto.serving.http.keys import SCOPES, KeyFile, Keyring
from sostenuto.serving.http.routes import OPERATIONS
from sostenuto.serving.http.settings import ServerSettings, is_loopback

PUBLIC = {"/healthz", "/readyz", "/openapi.json"}  # nothing else may be had without a key


def routes_of(app) -> list[tuple[str, str]]:
    """Return every method and path that the application's router knows, whoever added it."""
    return [(method, route.path) for route in app.routes for method in sorted(route.methods - {"HEAD"})]


def filled(path: str) -> str:
    return re.sub(r"\{\w+\}", "x1", path)


def test_the_scan_sees_every_operation_and_only_those(client):
    assert set(routes_of(client.app)) == {(operation.method, operation.path) for operation in OPERATIONS}


def test_no_route_but_the_public_ones_answers_without_a_key(open_client, keys, tmp_path):
    keys("rank")
    client = open_client(keys=tmp_path / "keys.json")
    asked = routes_of(client.app)
    assert {path for _, path in asked} > PUBLIC
    for method, path in asked:
        answer = client(method, filled(path))
        if path in PUBLIC:
            assert answer.status_code == 200, path
        else:
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"


def test_no_route_answers_a_key_without_its_scope(open_client, keys, tmp_path):
    made = {scope: keys(*(other for other in SCOPES if other != scope)) for scope in SCOPES}
    client = open_client(keys=tmp_path / "keys.json")
    scope_of = {(operation.method, operation.path): operation.scope for operation in OPERATIONS}
    for method, path in routes_of(client.app):
        scope = scope_of[method, path]
        if path in PUBLIC:
            assert scope is None
            continue
        assert client(method, filled(path), headers=bearer(made[scope])).status_code == 403, (method, path)


def test_every_scoped_route_lets_a_key_of_just_that_scope_in(open_client, keys, tmp_path):
    made = {scope: keys(scope) for scope in SCOPES}
    client = open_client(keys=tmp_path / "keys.json")
    for operation in OPERATIONS:
        if operation.scope is not None:
            answer = client(operation.method, filled(operation.path), headers=bearer(made[operation.scope]))
            assert answer.status_code not in {401, 403}, operation.name


def test_methods_that_a_path_does_not_take_tell_nothing(open_client, keys, tmp_path):
    keys("rank")
    client = open_client(keys=tmp_path / "keys.json")
    for _, path in routes_of(client.app):
        for method in ("PATCH", "OPTIONS", "HEAD", "TRACE"):
            assert client(method, filled(path)).status_code == 405


def test_routes_that_a_team_adds_ask_for_the_scope_admin(open_client, keys, tmp_path):
    admin, other = keys("admin"), keys(*(scope for scope in SCOPES if scope != "admin"))
    client = open_client(keys=tmp_path / "keys.json")

    @client.app.get("/team/own")
    async def own() -> dict[str, int]:
        return {"answer": 42}

    assert client("GET", "/team/own").status_code == 401
    assert client("GET", "/team/own", headers=bearer(other)).status_code == 403
    assert client("GET", "/team/own", headers=bearer(admin)).json() == {"answer": 42}
    assert client("GET", "/no/such/path").status_code == 401  # no looking around
    assert client("GET", "/no/such/path", headers=bearer(admin)).status_code == 404
    assert "/team/own" in client.app.openapi()["paths"]


def test_both_headers_are_taken_and_wrong_keys_are_refused(open_client, keys, tmp_path):
    key, other = keys("models"), keys("models")
    client = open_client(keys=tmp_path / "keys.json")
    assert client("GET", "/v1/models", headers={"x-api-key": key}).status_code == 200
    assert client("GET", "/v1/models", headers={"authorization": f"bearer {key}"}).status_code == 200
    swapped = key[:21] + other[21:]  # one key's id with another's secret
    cut, longer = key[:-1], key + "A"
    for wrong in ("", "x", swapped, cut, longer, key.upper(), "sst_" + "0" * 16 + key[20:], "é" * 10):
        answer = client("GET", "/v1/models", headers={"x-api-key": wrong.encode()})
        assert answer.status_code == 401, wrong
    for header in ("Basic " + key, key, "Bearer", "Bearer " + key + " x"):
        assert client("GET", "/v1/models", headers={"authorization": header, "x-api-key": key}).status_code == 401


def test_the_key_file_holds_no_key_and_only_its_owner_may_read_it(keys, tmp_path):
    made = keys("rank", "events")
    text = (tmp_path / "keys.json").read_text()
    secret = made.split("_", 2)[2]
    assert secret not in text
    assert made not in text
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    (entry,) = json.loads(text)["keys"]
    assert len(bytes.fromhex(entry["blake2b"])) == 32
    assert keys("rank") != made


def test_two_keys_of_one_secret_have_different_hashes(tmp_path, monkeypatch):
    import sostenuto.serving.http.keys as module

    count = iter(range(99))
    monkeypatch.setattr(module.secrets, "token_bytes", lambda n: bytes([7 if n == 32 else next(count)] * n))
    file = KeyFile(tmp_path / "keys.json")
    file.add("a", ["rank"])
    file.add("b", ["rank"])
    first, second = file.read()
    assert first.digest != second.digest


def test_a_revoked_key_is_refused_and_a_new_one_taken_within_a_second(tmp_path):
    now = [0.0]
    file = KeyFile(tmp_path / "keys.json")
    key, token = file.add("a", ["rank"])
    ring = Keyring(tmp_path / "keys.json", clock=lambda: now[0])
    assert ring.find(token) == key
    file.revoke(key.key_id)
    _, fresh = file.add("b", ["rank"])
    now[0] = 1.1
    assert ring.find(token) is None
    assert ring.find(fresh) is not None


def test_a_key_file_that_goes_missing_opens_nothing_and_a_broken_one_changes_nothing(tmp_path):
    now = [0.0]
    path = tmp_path / "keys.json"
    _, token = KeyFile(path).add("a", ["rank"])
    ring = Keyring(path, clock=lambda: now[0])
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    now[0] = 2.0
    assert ring.find(token) is not None
    assert ring.trouble
    path.unlink()
    now[0] = 4.0
    assert ring.find(token) is None
    assert len(ring) == 0


@pytest.mark.parametrize("scopes", [[], ["rnak"], ["rank", "everything"]])
def test_keys_need_known_scopes(tmp_path, scopes):
    with pytest.raises(SpecError, match="scopes"):
        KeyFile(tmp_path / "keys.json").add("a", scopes)


def test_revoking_what_is_not_there_names_what_is(tmp_path):
    file = KeyFile(tmp_path / "keys.json")
    key, _ = file.add("a", ["rank"])
    with pytest.raises(SpecError, match=key.key_id):
        file.revoke("nothing")


def test_other_hosts_are_refused_without_keys(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org", ""):
        assert not is_loopback(host)
        with pytest.raises(SpecError, match="serve keys add"):
            ServerSettings(host=host)
        ServerSettings(host=host, keys=tmp_path / "keys.json")


def test_an_open_server_answers_only_to_this_machines_names(client):
    for host, status in (("evil.example", 421), ("localhost.evil.example", 421), ("127.0.0.1.evil.example", 421),
                         ("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("[::1]", 200)):  # fmt: skip
        assert client("GET", "/v1/models", headers={"host": host}).status_code == status


def test_a_simple_request_of_a_browser_changes_nothing(client):
    body = b'{"user_id":"u","item_id":"a"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert client("POST", "/v1/events", content=body, headers={"content-type": kind}).status_code == 415
    assert client.service.events == {}


def test_answers_allow_no_other_origin_and_are_not_kept(client):
    answer = client("GET", "/v1/models", headers={"origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
