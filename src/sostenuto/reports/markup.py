"""HTML and SVG as values: everything is escaped unless this module made it."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"br", "circle", "col", "hr", "input", "line", "meta", "path", "polygon", "polyline", "rect"})


class Markup(str):
    """Text that is markup already. Made by `tag` and `join`; data never become it."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]


def text(value: object) -> Markup:
    """Escape text for a place between tags or in a quoted attribute.

    >>> text("<script>")
    '&lt;script&gt;'
    """
    if isinstance(value, Markup):
        return value
    plain = "".join(c for c in str(value) if c >= " " or c in "\n\t")  # control characters are not lawful in HTML
    return Markup(html.escape(plain, quote=True))


def join(*children: Child) -> Markup:
    """Join children, escaping what is plain text; None is nothing."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, (str, int)):
            parts.append(text(child))
        else:
            parts.extend(join(one) for one in child)
    return Markup("".join(parts))


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return f' {name}="{text(value)}"'


def tag(element: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Make an element. Attribute names: a trailing _ falls, _ becomes -; None and False leave it out; True is bare.

    >>> tag("p", "a < b", class_="x", data_n=3, hidden=True)
    '<p class="x" data-n="3" hidden>a &lt; b</p>'
    """
    opening = "".join(_attribute(key, value) for key, value in attributes.items())
    inner = join(*children)
    if not inner and element in VOID:
        return Markup(f"<{element}{opening}/>")
    return Markup(f"<{element}{opening}>{inner}</{element}>")


__all__ = ["Child", "Markup", "join", "tag", "text"]
