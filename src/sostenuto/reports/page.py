"""The shell of every page: one file with its style and script inside, and a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from sostenuto.reports.markup import Child, Markup, join, tag


def _asset(name: str) -> str:
    return resources.files("sostenuto.reports").joinpath("assets", name).read_text(encoding="utf-8").strip()


def page(title: str, *body: Child, extra_style: str = "") -> Markup:
    """Wrap a body. The content policy runs our one script by its hash: markup in data could not run even if it got in.

    `extra_style` is ours, never from data.
    """
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="generator", content="sostenuto"),
        tag("title", title),
        Markup(f"<style>{_asset('report.css')}{extra_style}</style>"),
    )
    content = tag("body", *body, Markup(f"<script>{script}</script>"))
    return join(Markup("<!doctype html>\n"), tag("html", head, content, lang="en"), "\n")


def write_page(path: str | Path, content: Markup) -> Path:
    """Write a page so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
    return path


def picture(chart: Markup) -> Markup:
    """Make a file of its own of one chart: it holds its style, and follows the reader's choice of light or dark."""
    opening, rest = chart.split(">", 1)  # data are escaped: this one ends the element
    style = _asset("report.css") + "svg.chart { background: var(--card); border-radius: 12px; }"
    return Markup(f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{rest}\n')


def section(heading: str, *body: Child, intro: Child = None, anchor: str = "") -> Markup:
    """Make a section with its heading and a sentence or two."""
    lead = tag("p", intro) if intro is not None else None
    return tag("section", tag("h2", heading, id=f"h-{anchor}"), lead, *body, id=anchor, aria_labelledby=f"h-{anchor}")


def figure(chart: Child, caption: Child = None, *, numbers: Child = None) -> Markup:
    """Put a chart into a card, with a caption and its numbers as a table behind a fold."""
    fold = tag("details", tag("summary", "The numbers"), numbers) if numbers is not None else None
    return tag("div", tag("figure", chart, tag("figcaption", caption) if caption else None), fold, class_="card")


def table(
    caption: str, heads: list[str], rows: list[list[Child]], *, sortable: bool = False, first_left: bool = True
) -> Markup:
    """Make a plain table whose first column names the row; it scrolls sideways when it must."""
    head = [tag("th", h, scope="col", class_="left" if first_left and i == 0 else None) for i, h in enumerate(heads)]
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption, class_="hidden"),
            tag("thead", tag("tr", *head)),
            tag("tbody", *body),
            class_="sortable" if sortable else None,
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def facts(pairs: list[tuple[str, Child]]) -> Markup:
    """Make a list of names and values."""
    return tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def tiles(entries: list[tuple[str, str, str]]) -> Markup:
    """Make a row of large numbers: name, value, small print."""
    return tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", value, tag("small", small) if small else None))
            for name, value, small in entries
        ),
        class_="tiles",
    )


def list_style(count: int) -> str:
    """Return the rules that show the picked list only; without `:has`, all lists are shown one after another."""
    if count < 2:
        return ""
    rules = (
        f"body:has(#list-{i}:checked) [data-list]:not([data-list='{i}']),body:has(#list-{i}:checked) .on-list"
        for i in range(count)
    )
    return ",".join(rules) + "{display:none}@media print{[data-list]{display:block!important}}"


def list_picker(names: Sequence[str]) -> Markup | None:
    """Make the choice between candidate lists; it needs no script."""
    if len(names) < 2:
        return None
    options = [
        tag(
            "label",
            tag("input", type="radio", name="list", id=f"list-{i}", checked=i == 0, autocomplete="off"),
            tag("span", name),
        )
        for i, name in enumerate(names)
    ]
    return tag("fieldset", tag("legend", "Candidate list"), *options, class_="lists")


__all__ = ["facts", "figure", "list_picker", "list_style", "page", "picture", "section", "table", "tiles", "write_page"]
