"""What /metrics of a real server says, and that the documents name nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.live_server import live_server
from tests.serving.server_process import ROOT
from tests.serving.small_bundles import VIEW, exported, trained_on, write_whole

from sostenuto.features.collation import Collator
from sostenuto.serving.drift import LEAST, Reference, numbers, numbers_of
from sostenuto.serving.exporting import export_bundle
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.warming import warm_up

NOW_MS = 1_506_900_000_000
DOCUMENTS = [ROOT / "docs" / name for name in ("serving.md", "runbook.md", "deployment.md", "stores.md")]
Found = dict[str, list[dict[str, str]]]  # name of a sample -> the labels that it was seen with


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The text of /metrics after rankings, lists, explanations, events, a refusal and a shadow."""
    folder = Path(tmp_path_factory.mktemp("metrics"))
    data = write_whole(folder / "prepared")
    trained = trained_on(data, "sdim")
    collator = Collator(data, VIEW)
    batch = collator.batch(data.requests("valid"), np.arange(8))
    logits = np.linspace(-1.0, 1.0, len(batch.candidates.item))
    measured = [(logits, numbers(collator.features, batch.candidates))]
    trained = replace(trained, reference=Reference.of(numbers_of(collator.features), measured))
    export_bundle(trained, data, folder / "bundles" / "sdim")
    exported(data, "repeat", folder / "bundles" / "repeat")
    with open_store(folder / "store", RecordLayout.of(data.features.behaviour_fields)) as store:
        warm_up(store, data)
    items = data.vocabulary("item")[2:12]
    told = live_server(folder / "server", store=str(folder / "store"), bundle=folder / "bundles" / "sdim")
    with told as server, server.client() as client:

        def post(path: str, body: object, status: int = 200) -> httpx.Response:
            answer = client.post(path, json=body)
            assert answer.status_code == status, answer.text
            return answer

        main = client.get("/v1/models").json()["traffic"]["main"]
        shadow = post("/v1/models", {"bundle": "repeat"}).json()["version"]
        assert client.put("/v1/models/traffic", json={"main": main, "shadow": shadow}).status_code == 200
        asked = {"user_id": "household-7", "candidates": items, "time_ms": NOW_MS}
        post("/v1/rank", asked)
        post("/v1/rank", asked)
        post("/v1/rank", {**asked, "user_id": "nobody"})
        post("/v1/rank", {**asked, "candidates": [f"new-{n}" for n in range(LEAST)]})
        post("/v1/recommend", {"user_id": "household-7", "time_ms": NOW_MS})
        post("/v1/explain", {"user_id": "household-7", "items": items[:1], "time_ms": NOW_MS})
        post("/v1/events", {"user_id": "household-7", "item_id": items[0], "time_ms": NOW_MS - 1})
        post("/v1/rank", asked)
        post("/v1/rank", {"user_id": "household-7"}, 422)
        yield client.get("/metrics").text


@pytest.fixture(scope="module")
def found(answered: str) -> Found:
    samples: Found = {}
    for family in text_string_to_metric_families(answered):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(dict(sample.labels))
    return samples


def value(answered: str, name: str, **labels: str) -> float:
    """Return the sum of a metric over all labels but those that are given."""
    total = [
        sample.value
        for family in text_string_to_metric_families(answered)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert total, f"{name} with {labels} is not told"
    return sum(total)


@pytest.mark.parametrize(
    ("route", "stages"),
    [
        ("rank", {"decode", "wait", "state", "features", "score", "encode_answer"}),
        (
            "recommend",
            {"decode", "wait", "store", "state", "candidates", "features", "score", "rerank", "encode_answer"},
        ),
        ("explain", {"decode", "wait", "store", "features", "score", "encode_answer"}),
        ("append", {"decode", "wait", "store", "encode_answer"}),
    ],
)
def test_every_stage_of_a_request_is_timed(answered, found, route, stages):
    told = {labels["stage"] for labels in found["sostenuto_stage_seconds_count"] if labels["route"] == route}
    assert told == stages
    parts = sum(value(answered, "sostenuto_stage_seconds_sum", route=route, stage=stage) for stage in stages)
    whole = value(answered, "sostenuto_request_seconds_sum", route=route)
    assert 0 < parts <= whole


def test_states_cold_users_and_the_age_of_histories_are_counted(answered):
    states = ("cached", "folded", "encoded", "cold")
    by_state = {s: value(answered, "sostenuto_rankings_total", state=s) for s in states if f'state="{s}"' in answered}
    assert by_state["cold"] == 1
    assert by_state["cached"] >= 2
    assert sum(by_state.values()) == 6  # every ranking has a state: shares add up to one
    assert value(answered, "sostenuto_history_age_seconds_count") == 5  # nobody's has no age
    assert value(answered, "sostenuto_history_length_count") == 6
    assert value(answered, "sostenuto_unknown_candidates_total") == LEAST


def test_lag_drift_and_skew_are_told_by_version(found, answered):
    for name in ("encoder_lag_events", "encoder_lag_seconds", "popularity_lag_events", "score_drift_index"):
        assert "version" in found["sostenuto_" + name][0]
    assert value(answered, "sostenuto_score_drift_index") > 0.25  # a thousand items that nobody knows are another world
    features = {labels["feature"] for labels in found["sostenuto_feature_skew"]}
    assert len(features) > 3


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bsostenuto_[a-z0-9_]+", text))


def table_names(text: str) -> set[str]:
    """Return the names of the table in docs/serving.md, which leaves the prefix out."""
    rows = re.search(r"\| name \(after `sostenuto_`\).*?\n\n", text, re.DOTALL)
    assert rows
    first = [line.split("|")[1] for line in rows[0].splitlines()[2:] if line]
    return {"sostenuto_" + name for cell in first for name in re.findall(r"`([a-z0-9_]+)`", cell)}


LABELS = re.compile(r"\b(sostenuto_[a-z0-9_]+)\{([^}]*)\}")
COMPARED = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_only_metrics_and_labels_that_there_are(document, found):
    text = document.read_text(encoding="utf-8")
    # what is alone with its base is the histogram itself
    known = set(found) | {name.removesuffix("_count") for name in found if name.endswith("_count")}
    assert names_in(text) - known == set()
    for name, conditions in LABELS.findall(text):
        own = set().union(*(set(labels) for labels in found[name]))
        assert set(COMPARED.findall(conditions)) <= own, f"{name}{{{conditions}}}"


def test_every_metric_of_ours_is_in_the_table_of_docs_serving(found):
    bases = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in found if name.startswith("sostenuto_")}
    bases = {name for name in bases if name + "_total" not in found}
    assert table_names(DOCUMENTS[0].read_text(encoding="utf-8")) == bases
