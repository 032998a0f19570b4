"""Who beats whom, said plainly: the sentences at the top of a report, and names of rows."""

from __future__ import annotations

from sostenuto.reports.comparison import ComparisonResult, Difference, Row
from sostenuto.reports.numbers import fixed, signed

METRIC_TITLES = {
    "gauc_request": "GAUC by request",
    "gauc_user": "GAUC by user",
    "auc": "AUC",
    "logloss": "Logloss",
    "ne": "NE",
    "pcoc": "PCOC",
    "ece": "ECE",
}


def metric_title(name: str) -> str:
    """Return how people read a metric's name.

    >>> metric_title("gauc_user"), metric_title("ndcg@10")
    ('GAUC by user', 'NDCG@10')
    """
    return METRIC_TITLES.get(name, name.upper() if "@" in name else name)


def variant(row: Row) -> str:
    """Return what sets a row apart from its model's full form; "" for the full form."""
    parts = [] if row.history == "full" else [row.history]
    return ", ".join([*parts, *([] if row.match else ["no match features"])])


def row_label(row: Row) -> str:
    """Return a row's name with its variant."""
    extra = variant(row)
    return f"{row.title} ({extra})" if extra else row.title


def interval(difference: Difference, digits: int = 4) -> str:
    """Return the interval of a difference in words."""
    return f"95\N{NO-BREAK SPACE}% interval {signed(difference.low, digits)} to {signed(difference.high, digits)}"


def winner(comparison: ComparisonResult, list_name: str) -> Row | None:
    """Return the row of the best headline among those that beat the baseline, or None."""
    for row in comparison.ranked(list_name):
        versus = row.lists[list_name].versus_baseline
        if versus is not None and versus.beats:
            return row
    return None


def clause(comparison: ComparisonResult, list_name: str) -> str:
    """Say who beats the baseline on one list and by how much, or that nobody does."""
    base = row_label(comparison.row(comparison.baseline))
    best = winner(comparison, list_name)
    if best is not None:
        versus = best.lists[list_name].versus_baseline
        assert versus is not None
        top = comparison.ranked(list_name)[0]
        above = "" if top.key == best.key else f" ({row_label(top)} is higher, but not surely)"
        return f"{row_label(best)} beats {base} by {fixed(versus.difference)} ({interval(versus)}){above}"
    others = [r for r in comparison.ranked(list_name) if r.lists[list_name].versus_baseline is not None]
    if not others:
        return f"there is only {base}"
    nearest = others[0].lists[list_name].versus_baseline
    assert nearest is not None
    side = "above" if nearest.difference >= 0 else "below"
    surely = "" if nearest.loses or nearest.beats else ", too little to tell"
    return (
        f"nobody beats {base}; the nearest, {row_label(others[0])}, is {fixed(abs(nearest.difference))} {side} it "
        f"({interval(nearest)}{surely})"
    )


def headline(comparison: ComparisonResult) -> str:
    """Return the one sentence that a reader should take away."""
    measured = [name for name in comparison.lists if comparison.ranked(name)]
    metric = metric_title(comparison.headline)
    best = [winner(comparison, name) for name in measured]
    if len(measured) > 1 and best[0] is not None and all(b is not None and b.key == best[0].key for b in best):
        base = row_label(comparison.row(comparison.baseline))
        by = []
        for name in measured:
            versus = best[0].lists[name].versus_baseline
            assert versus is not None
            by.append(f"by {fixed(versus.difference)} on {name} ({interval(versus)})")
        return f"{row_label(best[0])} beats {base} on every candidate list in {metric}: {', '.join(by)}."
    return f"In {metric}: " + "; ".join(f"on {name}, {clause(comparison, name)}" for name in measured) + "."


__all__ = ["clause", "headline", "interval", "metric_title", "row_label", "variant", "winner"]
