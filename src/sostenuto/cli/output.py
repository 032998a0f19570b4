"""Where a verb's words go: results to stdout, as a table for people or as JSON; everything else to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

WIDTH_WITHOUT_TERMINAL = 160  # columns of a table that goes into a file or a pipe

JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")]


def print_json(value: Any) -> None:
    """Write one JSON document; NaN and infinities become null, since JSON has none."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str) + "\n")


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: Sequence[str] = ()
) -> None:
    """Write a table for people; the columns named in `numbers` are set flush right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_WITHOUT_TERMINAL
    if title:
        console.print(Text(title, style="bold"))
    console.print(table)


def print_lines(*lines: str) -> None:
    """Write plain lines to stdout."""
    sys.stdout.write("".join(line + "\n" for line in lines))


def note(text: str) -> None:
    """Write one remark to stderr."""
    sys.stderr.write(text + "\n")


def cell(value: Any) -> str:
    """Return a value as a table shows it.

    >>> [cell(v) for v in (True, None, 1234567, 0.87654, float("nan"), ("a", "b"))]
    ['yes', '-', '1,234,567', '0.8765', '-', 'a, b']
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


__all__ = ["JsonOption", "cell", "note", "print_json", "print_lines", "print_table"]
