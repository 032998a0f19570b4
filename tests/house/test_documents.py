"""What the documents say can be typed, and every model has its page."""

import re
import shlex
from pathlib import Path

import pytest
from tests.house.command_lines import FENCE, command_lines, parse

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


def documented_commands() -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(ROOT)), line)
        for path in DOCUMENTS
        if path.is_file()
        for line in command_lines(path.read_text(encoding="utf-8"))
        if "..." not in line and "VERB" not in line
    ]


@pytest.mark.parametrize(("document", "line"), documented_commands())
def test_a_documented_command_can_be_typed(document, line):
    parse(line)


WRONG = [
    "sostenuto dat list",
    "sostenuto data list --jsno",
    "sostenuto rank",
    "sostenuto train DIR --recipe no_such_recipe",
    "sostenuto compare DIR --models din,dinn --out OUT",
]


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_is_seen(line):
    with pytest.raises(Exception, match=r"(?i)no such|missing|no recipe"):
        parse(line)


def test_the_quick_start_is_exactly_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = re.search(r"^## Quick start\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert start, "README.md needs a section '## Quick start'"
    lines = [line for block in FENCE.findall(start[1]) for line in block.splitlines() if line.strip()]
    assert [shlex.join(shlex.split(line, comments=True)) for line in lines] == ["make demo", "make test"]


def test_every_target_that_a_document_names_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in DOCUMENTS:
        for words in re.findall(r"`make ([a-z ]+)`", path.read_text(encoding="utf-8")):
            assert set(words.split()) <= targets, path


def test_every_model_has_its_page_and_every_page_its_model():
    from sostenuto.models.table import MODELS

    pages = {path.stem for path in (ROOT / "docs" / "models").glob("*.md")} - {"index"}
    assert pages == set(MODELS)


def test_every_page_is_in_the_index():
    docs = ROOT / "docs"
    index = (docs / "index.md").read_text(encoding="utf-8")
    pages = [page.relative_to(docs).as_posix() for page in sorted(docs.rglob("*.md"))]
    single = [name for name in pages if name != "index.md" and not name.startswith("decisions/")]
    assert [name for name in single if f"({name})" not in index] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_inside_the_documents_lead_somewhere(path):
    links = LINK.findall(path.read_text(encoding="utf-8"))
    broken = [t for t in links if "://" not in t and not t.startswith("mailto:") and not (path.parent / t).exists()]
    assert broken == []
