"""`sostenuto serve`: keys, settings, and a real server over a real bundle and store."""

import contextlib
import json
from pathlib import Path

import pytest
from tests.serving.server_process import free_port, started
from tests.serving.small_bundles import exported, write_whole
from typer.testing import CliRunner

from sostenuto.cli.main import app
from sostenuto.cli.serve import resolve, without_password
from sostenuto.schema.errors import SpecError


def said(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_keys_are_added_listed_and_revoked(tmp_path):
    file = tmp_path / "keys.json"
    made = json.loads(said("serve", "keys", "add", "--keys", file, "--name", "shop", "--scope", "rank", "--json"))
    assert made["key"].startswith("sst_" + made["id"])
    assert said("serve", "keys", "add", "--keys", file, "--name", "loader", "--scope", "events").startswith("sst_")
    listed = json.loads(said("serve", "keys", "list", "--keys", file, "--json"))
    assert [(key["name"], key["scopes"]) for key in listed] == [("shop", ["rank"]), ("loader", ["events"])]
    assert made["key"] not in said("serve", "keys", "list", "--keys", file)
    said("serve", "keys", "revoke", made["id"], "--keys", file)
    assert len(json.loads(said("serve", "keys", "list", "--keys", file, "--json"))) == 1
    wrong = CliRunner().invoke(app, ["serve", "keys", "add", "--keys", str(file), "--name", "x", "--scope", "rnak"])
    assert wrong.exit_code == 2


def test_options_win_over_the_file_and_misspelt_settings_are_refused(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text(
        'port = 9000\nworkers = 2\n[limits]\ncandidates = 50\n[served]\nfolder = "lists"\nfsync = "always"\n'
        '[service]\nstore = "somewhere"\nthreads = 2\n'
    )
    server, service = resolve(file, {"port": 9001, "served": tmp_path / "other"}, {"store": None, "control": None})
    assert (server.port, server.workers, server.limits.candidates) == (9001, 2, 50)
    assert (server.served.folder, server.served.fsync) == (tmp_path / "other", "always")
    assert (service.store, service.threads) == ("somewhere", 2)
    for text, name in (
        ("prot = 1", "port"),
        ("[limits]\ncandidate = 5", "candidates"),
        ("[service]\nthread = 1", "threads"),
        ('port = "x"', "int"),
        ("port = 70000", "65535"),
        ("[limits]\nevents = 0", "events"),
        ('[served]\nfolder = "x"\nfsync = "maybe"', "fsync"),
        ("port =", "TOML"),
        ('host = "0.0.0.0"', "keys add"),
    ):
        file.write_text(text)
        with pytest.raises(SpecError, match=name):
            resolve(file, {"served": None}, {})


def test_a_wrong_bundle_is_refused_before_anything_starts(tmp_path):
    done = CliRunner().invoke(app, ["serve", str(tmp_path / "nothing")])
    assert done.exit_code in {1, 2}
    assert not list(tmp_path.iterdir())


def test_settings_are_shown_without_a_start(tmp_path):
    shown = json.loads(said("serve", tmp_path, "--port", 9, "--show-settings"))
    assert (shown["port"], shown["limits"]["events"], shown["service"]["threads"]) == (9, 1000, 1)


def test_passwords_are_not_shown():
    assert without_password("redis://:p%40ss@h/0") == "redis://h/0"
    assert without_password("some/folder@x") == "some/folder@x"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    exported(write_whole(folder / "prepared"), "sdim", folder / "sdim")
    return folder / "sdim"


def examined(*arguments: object) -> tuple[int, dict[str, list[str]]]:
    done = CliRunner().invoke(app, ["doctor", *map(str, arguments), "--json"])
    outcomes: dict[str, list[str]] = {}
    for finding in json.loads(done.stdout):
        outcomes.setdefault(finding["check"], []).append(finding["outcome"])
    return done.exit_code, outcomes


def test_the_doctor_finds_what_would_keep_a_server_from_coming_up(bundle, tmp_path):
    import shutil
    import socket

    options = ["--store", tmp_path / "store", "--port", free_port()]
    code, found = examined(bundle, *options)
    assert (code, found["bundle"], found["store"]) == (0, ["fine"], ["remark"])
    assert not (tmp_path / "store").exists()
    keys = tmp_path / "keys.json"
    assert examined(bundle, *options, "--keys", keys)[1]["keys"] == ["problem"]
    said("serve", "keys", "add", "--keys", keys, "--name", "x", "--scope", "rank")
    assert examined(bundle, *options, "--keys", keys)[1]["keys"] == ["fine"]
    keys.chmod(0o644)
    assert examined(bundle, *options, "--keys", keys)[0] == 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert examined(bundle, "--port", taken.getsockname()[1])[1]["listening"] == ["problem"]
    shutil.copytree(bundle, tmp_path / "damaged")
    card = tmp_path / "damaged" / "MODEL_CARD.md"
    card.write_text(card.read_text() + "x")
    code, found = examined(tmp_path / "damaged", *options)
    assert (code, found["bundle"]) == (1, ["problem"])


@contextlib.contextmanager
def served(bundle: Path, folder: Path, *arguments: object):
    port = free_port()
    command = ["-m", "sostenuto", "serve", bundle, "--port", port, *arguments]
    with started(folder, command, port=port, cwd=bundle.parent) as server, server.client(timeout=30) as client:
        yield client


def test_a_bundle_is_served_over_a_new_store_and_events_survive_a_restart(bundle, tmp_path):
    ids = ["i1", "i2", "i3", "nobody-knows-this"]
    (tmp_path / "server.toml").write_text("[service]\nfollow_every_s = 0\n")  # every ranking waits for popularity
    options = ["--store", tmp_path / "store", "--log", tmp_path / "log.jsonl", "--served", tmp_path / "lists"]
    options += ["--settings", tmp_path / "server.toml"]
    body = {"user_id": "new user", "candidates": ids, "time_ms": 10_000}
    with served(bundle, tmp_path / "process", *options) as client:
        cold = client.post("/v1/rank", json=body).json()
        assert (cold["state"], cold["history_length"]) == ("cold", 0)
        assert sorted(cold["items"]) == sorted(ids)
        event = {"user_id": "new user", "item_id": "i2", "time_ms": 5_000, "event_id": "e1"}
        assert client.post("/v1/events", json=event).json()["events"][0]["outcome"] == "new"
        warm = client.post("/v1/rank", json=body).json()
        assert warm["history_length"] == 1
        refused = client.post("/v1/events", json={**event, "fields": {"no such field": 1}})
        assert refused.status_code == 422
        assert client.post("/v1/rank", json={**body, "candidate_fields": {"x": [1] * 4}}).status_code == 422
        version = client.get("/v1/models").json()["traffic"]["main"]
    with served(bundle, tmp_path / "process", *options, "--workers", 2) as client:
        assert client.get("/v1/models").json()["traffic"]["main"] == version
        again = client.post("/v1/rank", json=body).json()
        assert again["items"] == warm["items"]
        assert again["scores"] == pytest.approx(warm["scores"], abs=1e-5)
        assert client.post("/v1/events", json=event).json()["events"][0]["outcome"] == "duplicate"
        gone = client.delete("/v1/users/new%20user").json()
        assert (gone["events"], gone["served_lists"]) == (1, 3)
        after = client.post("/v1/rank", json=body).json()
        assert (after["state"], after["history_length"]) == ("cold", 0)
        assert client.get("/v1/users/new%20user").status_code == 404
    kept = [path for folder in ("lists", "log.jsonl", "store.server") for path in (tmp_path / folder).rglob("*")]
    kept = [path for path in [*kept, tmp_path / "log.jsonl"] if path.is_file()]
    assert len(kept) > 3
    lists = [path for path in kept if path.suffix == ".jsonl" and path.parent.name == "lists"]
    assert b"".join(path.read_bytes() for path in lists).count(b"new user") == 1  # the ranking after the deletion
    assert not [path for path in kept if path not in lists and b"new user" in path.read_bytes()]
