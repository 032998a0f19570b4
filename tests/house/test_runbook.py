"""What the runbook and the page of deployment name is there: routes, statuses, reasons, labels, settings, sections.

Their commands are parsed with those of all documents, their metrics compared with a real server's in
tests/serving/test_live_metrics.py.
"""

import ast
import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from sostenuto.serving.http.operations import LaneName
from sostenuto.serving.http.problems import TITLES
from sostenuto.serving.http.routes import OPERATIONS
from sostenuto.serving.http.settings import Limits, ServerSettings
from sostenuto.serving.served_log import ServedLogSettings
from sostenuto.serving.service import STAGES, EventReceipt, Served, StateOrigin
from sostenuto.serving.starting import ServiceTable

ROOT = Path(__file__).parents[2]
HTTP = ROOT / "src" / "sostenuto" / "serving" / "http"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
BOTH = pytest.mark.parametrize("text", [RUNBOOK, DEPLOYMENT], ids=["runbook", "deployment"])

SYMPTOMS = [
    *("Not ready", "503 and 429", "500", "Latency is up", "Lag grows", "The store is full", "The store is gone"),
    *("The disk is full", "A corrupt bundle", "A bad model", "Drift or skew", "More cold users", "The clock is wrong"),
    *("A key leaked", "A user wants to be deleted", "Restore from a backup", "From LMDB to Redis"),
]


def words(source: str) -> set[str]:
    """Return the last word that a call of `Problem` or `unavailable` gives: what logs and metrics call a refusal."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        place = {"Problem": 2, "unavailable": 1}.get(getattr(getattr(node, "func", None), "id", ""))
        if place is None or len(node.args) <= place:
            continue
        given = [node.args[place]]
        if isinstance(given[0], ast.IfExp):
            given = [given[0].body, given[0].orelse]
        for one in given:
            if isinstance(one, ast.Constant):
                found.add(one.value)
            elif isinstance(one, ast.JoinedStr):  # f"{self.name}_full", of a lane
                found |= {name + one.values[-1].value for name in get_args(LaneName)}
    return found


REASONS = set().union(*(words(path.read_text(encoding="utf-8")) for path in HTTP.glob("*.py")))
KNOWN = {
    "reason": REASONS,
    "route": {operation.name for operation in OPERATIONS},
    "state": set(get_args(StateOrigin)),
    "stage": {*STAGES, "decode", "wait", "encode_answer"},
    "outcome": set(get_args(get_type_hints(EventReceipt)["outcome"])),
    "arm": set(get_args(get_type_hints(Served)["arm"])),
    "lane": set(get_args(LaneName)),
}


def test_the_words_of_refusals_are_found():
    assert {"rate_limit", "score_full", "control_full", "timeout", "store_gone", "no_key", "wrong_key"} <= REASONS


@pytest.mark.parametrize("label", KNOWN)
def test_values_of_labels_are_some_that_there_are(label):
    compared = re.findall(rf"\b{label}=~?\"([^\"]*)\"", RUNBOOK)
    values = {value for text in compared for value in text.split("|")}
    assert values <= KNOWN[label]
    assert values or label in {"stage", "outcome", "arm", "lane"}


def test_labels_that_are_summed_over_are_some_that_there_are():
    over = {name.strip() for names in re.findall(r"\bby \(([a-z_, ]+)\)", RUNBOOK) for name in names.split(",")}
    assert over <= {*KNOWN, "version", "feature", "le"}


def test_the_table_of_refusals_names_reasons():
    rows = re.findall(r"^\| (`[a-z_`, ]+)(?: \(\d+\))? \|", RUNBOOK, re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`([a-z_]+)`", row)}
    assert named
    assert named <= REASONS


@BOTH
def test_statuses_are_some_that_the_server_answers(text):
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    named = {int(found) for found in re.findall(r"(?<![\w.:/])([45]\d\d)(?![\w:/])", prose)}
    assert named
    assert named <= set(TITLES)


@BOTH
def test_routes_are_some_that_there_are(text):
    patterns = [re.compile(re.sub(r"\{\w+\}", "[^/]+", operation.path)) for operation in OPERATIONS]
    named = set(re.findall(r"(?<![\w.-])(/v1/[\w/]+|/readyz|/healthz|/metrics)\b", text))
    assert named
    assert {path for path in named if not any(pattern.fullmatch(path) for pattern in patterns)} == set()
    methods = {(operation.method, operation.path) for operation in OPERATIONS}
    assert set(re.findall(r"`(GET|POST|PUT|DELETE) (/v1/[\w/]+)`", text)) <= methods
    for path, method in re.findall(r"ask (/v1/\S+) -X (\w+)", text):
        assert any(o.method == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", o.path), path) for o in OPERATIONS)


@BOTH
def test_settings_are_some_that_there_are(text):
    tables = {"limits": Limits, "service": ServiceTable, "served": ServedLogSettings}
    for table, name in re.findall(r"`(limits|service|served)\.([a-z_]+)`", text):
        assert name in {one.name for one in dataclasses.fields(tables[table])}, f"{table}.{name}"
    every = {one.name for kind in (ServerSettings, *tables.values()) for one in dataclasses.fields(kind)}
    for name in re.findall(r"`([a-z_]+_s|encode|workers|host|tls_\w+)`", text):
        assert name in every, name
    assert set(re.findall(r"`([a-z_]+) = ", text)) <= every


def test_every_symptom_has_a_section_and_links_lead_to_sections():
    sections = re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE)
    assert set(SYMPTOMS) <= set(sections)
    slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in sections}
    links = set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK))
    assert links <= slugs
    for part in re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]:
        assert "`" in part, f"{part.splitlines()[0]}: a section without anything to type or to read off"
