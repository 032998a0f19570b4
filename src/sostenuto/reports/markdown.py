"""The leaderboard as a Markdown table, for a README."""

from __future__ import annotations

from collections.abc import Sequence

from sostenuto.reports.comparison import ComparisonResult, Row
from sostenuto.reports.numbers import NONE, byte_size, fixed, significant, thousands
from sostenuto.reports.verdict import metric_title, row_label

MARKS = {"beats": "\N{BLACK UP-POINTING TRIANGLE}", "loses": "\N{BLACK DOWN-POINTING TRIANGLE}", "even": "="}


def _mark(row: Row, list_name: str) -> str:
    versus = row.lists[list_name].versus_baseline
    if versus is None:
        return ""
    return " " + MARKS["beats" if versus.beats else "loses" if versus.loses else "even"]


def _plain(text: str) -> str:
    """Keep data from breaking out of a cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def markdown_table(comparison: ComparisonResult, *, metrics: Sequence[str] = ("gauc_request", "ndcg@10")) -> str:
    """Return one table over all lists: a row per model and variant, metrics by list, spread over seeds, cost.

    Marks beside the headline metric refer to the baseline: up beats it, down loses to it, = no clear difference.
    """
    heads = ["model", "history", "match"]
    heads += [f"{metric_title(m)}, {name}" for m in metrics for name in comparison.lists]
    heads = [_plain(head) for head in [*heads, "samples / s", "ms / request", "state"]]
    lines = [heads, ["---", "---", "---", *(["---:"] * (len(heads) - 3))]]
    for row in comparison.ranked(comparison.lists[0]):
        cells = [row.title + (" (baseline)" if row.key == comparison.baseline else ""), row.history]
        cells.append("yes" if row.match else "no")
        for metric in metrics:
            for name in comparison.lists:
                score = row.lists[name].metrics.get(metric) if name in row.lists else None
                spread = "" if score is None or score.spread is None else f" ± {fixed(score.spread)}"
                value = NONE if score is None else fixed(score.mean) + spread
                cells.append(value + (_mark(row, name) if metric == comparison.headline and name in row.lists else ""))
        cost = row.cost
        cells += [thousands(cost.training_samples_s), significant(cost.serving_ms), byte_size(cost.state_bytes)]
        lines.append([_plain(cell) for cell in cells])
    base = _plain(row_label(comparison.row(comparison.baseline)))
    legend = f"{MARKS['beats']} beats {base}, {MARKS['loses']} loses to it, = no clear difference"
    legend += " (paired bootstrap over users and seeds, Holm over the table); ± is the spread between seeds"
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{legend}\n"


__all__ = ["markdown_table"]
