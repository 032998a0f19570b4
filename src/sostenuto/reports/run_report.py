"""One run as one page: its metrics with intervals, where it is strong and weak, whether it means what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sostenuto.reports.charts import Point, interval_chart, reliability_chart
from sostenuto.reports.comparison import DataSummary, TrainingCurve
from sostenuto.reports.comparison_report import data_section
from sostenuto.reports.markup import Child, Markup, tag
from sostenuto.reports.numbers import fixed, thousands
from sostenuto.reports.page import facts, figure, list_picker, list_style, page, section, table, tiles, write_page
from sostenuto.reports.training_charts import training_charts
from sostenuto.reports.verdict import metric_title

HEADLINE = "gauc_request"
THIN_PART = 30  # requests or positives below which a part stands in the numbers only
TILES = ("gauc_request", "gauc_user", "auc", "ndcg@10", "logloss", "ne", "pcoc", "ece")


def _interval_words(metric: Mapping[str, Any]) -> str:
    low, high = metric.get("low"), metric.get("high")
    return "" if low is None or high is None else f"{fixed(low)} to {fixed(high)}"


def _metrics(block: Mapping[str, Any], list_name: str) -> Markup:
    metrics = block["metrics"]
    shown = [(metric_title(m), fixed(metrics[m]["value"]), _interval_words(metrics[m])) for m in TILES if m in metrics]
    rows: list[list[Child]] = [
        [metric_title(name), fixed(metric["value"]), _interval_words(metric)] for name, metric in metrics.items()
    ]
    standing = (
        f"{thousands(block['requests'])} requests of {thousands(block['users'])} users, {thousands(block['rows'])} "
        f"candidates, {thousands(block['positives'])} positive. {thousands(block['groups'])} request lists hold both "
        f"classes; {thousands(block['dropped_groups'])} of one class have no AUC and drop out of the GAUC."
    )
    numbers = table(f"Every metric on {list_name}", ["Metric", "value", "95 % interval"], rows)
    return tag(
        "div",
        tiles(shown),
        tag("p", standing, class_="note"),
        tag("details", tag("summary", "Every metric"), numbers),
    )


def _slices(block: Mapping[str, Any], list_name: str) -> Markup:
    whole = block["metrics"][HEADLINE]["value"]
    charts: list[Child] = []
    for cut in block["slices"].values():
        points = []
        unit = "requests" if cut["by"] == "request" else "positives"
        for part in cut["parts"]:
            metric, count = part["metrics"][HEADLINE], part[unit]
            if count < THIN_PART:
                continue
            points.append(
                Point(
                    label=part["name"],
                    detail=f"{thousands(count)} {unit}",
                    y=metric["value"],
                    low=metric["low"],
                    high=metric["high"],
                    colour="c0" if cut["by"] == "request" else "c1",
                )
            )
        if len(cut["parts"]) < 2:
            continue
        rows: list[list[Child]] = [
            [
                part["name"],
                thousands(part["requests"]),
                thousands(part["positives"]),
                fixed(part["metrics"][HEADLINE]["value"]),
                fixed(part["metrics"]["logloss"]["value"]),
                fixed(part["metrics"]["pcoc"]["value"], 3),
            ]
            for part in cut["parts"]
        ]
        heads = [cut["title"], "requests", "positives", metric_title(HEADLINE), "Logloss", "PCOC"]
        numbers = table(f"{cut['title']} on {list_name}", heads, rows)
        chart = interval_chart(
            points,
            title=f"{cut['title']}, {list_name}",
            description="GAUC by request in each part, with 95 % intervals",
            x_caption=metric_title(HEADLINE),
            reference=whole,
            reference_label="all",
            width=560,
        )
        small = f"Parts with fewer than {THIN_PART} {unit} stand in the numbers only."
        words = small if len(points) < len(cut["parts"]) else None
        charts.append(tag("div", tag("h3", cut["title"]), figure(chart if points else None, words, numbers=numbers)))
    return tag("div", *charts, class_="pair")


def _calibration(block: Mapping[str, Any], list_name: str) -> Markup:
    curve = block["calibration"]
    furthest = max([*curve["probability"], *curve["observed"]], default=1.0)
    chart = reliability_chart(
        curve["probability"],
        curve["observed"],
        curve["low"],
        curve["high"],
        curve["rows"],
        title=f"Calibration on {list_name}",
        description=f"Observed against predicted rate in {len(curve['rows'])} bins of equal mass",
        reach=next(r for r in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if furthest <= r or r == 1.0),
        size=360,
    )
    rows: list[list[Child]] = [
        [fixed(p), fixed(o), f"{fixed(low)} to {fixed(high)}", thousands(n)]
        for p, o, low, high, n in zip(
            *(curve[k] for k in ("probability", "observed", "low", "high", "rows")), strict=True
        )
    ]
    numbers = table(f"Calibration on {list_name}", ["predicted", "observed", "95 % interval", "rows"], rows)
    return tag("div", figure(chart, numbers=numbers), class_="pair")


def run_page(
    evaluation: Mapping[str, Any],
    *,
    title: str,
    settings: Mapping[str, str] | None = None,
    data: DataSummary | None = None,
    training: TrainingCurve | None = None,
) -> Markup:
    """Return the whole page of one run."""
    lists: dict[str, Any] = dict(evaluation["lists"])
    blocks = {**lists, "all lists": evaluation["overall"]} if len(lists) > 1 else lists
    names = list(blocks)

    def by_list(make: Callable[[Mapping[str, Any], str], Markup]) -> list[Markup]:
        titled = len(names) > 1
        return [
            tag(
                "div",
                tag("p", f"List: {name}", class_="on-list") if titled else None,
                make(block, name),
                data_list=str(i),
            )
            for i, (name, block) in enumerate(blocks.items())
        ]

    best = "; ".join(
        f"{fixed(b['metrics'][HEADLINE]['value'])} on {name}"
        + (f" ({_interval_words(b['metrics'][HEADLINE])})" if _interval_words(b["metrics"][HEADLINE]) else "")
        for name, b in lists.items()
    )
    top = tag(
        "header",
        tag("p", "Sostenuto run", class_="eyebrow"),
        tag("h1", title),
        tag("p", f"{metric_title(HEADLINE)}: {best}.", class_="lede"),
        class_="top",
    )
    parts: list[Child] = [
        section("Metrics", *by_list(_metrics), intro="With 95 % intervals, users resampled.", anchor="metrics"),
        section(
            "Where it is strong and weak",
            *by_list(_slices),
            intro="Blue charts group requests. Green charts group positives and set them against all negatives of "
            "their request. The dotted line is the whole list.",
            anchor="slices",
        ),
        section(
            "Calibration",
            *by_list(_calibration),
            intro="On the dotted line, a probability means what it says; below it, the model promises too much.",
            anchor="calibration",
        ),
    ]
    if training is not None and (charts := training_charts([(f"seed {training.seed}", "c0", training)])):
        parts.append(section("Training", tag("div", *charts, class_="pair"), anchor="training"))
    if data is not None:
        parts.append(data_section(data))
    pairs: list[tuple[str, Child]] = [
        *(settings or {}).items(),
        *((name.replace("_", " "), str(value)) for name, value in evaluation["settings"].items()),
    ]
    parts.append(section("Settings", facts(pairs), anchor="settings"))
    foot = tag("footer", "Made by sostenuto. This file is complete: it loads nothing from anywhere.")
    return page(title, top, tag("main", list_picker(names), *parts), foot, extra_style=list_style(len(names)))


def write_run_report(
    path: str | Path,
    evaluation: Mapping[str, Any],
    *,
    title: str,
    settings: Mapping[str, str] | None = None,
    data: DataSummary | None = None,
    training: TrainingCurve | None = None,
) -> Path:
    """Write one run as a self-contained HTML file.

    Args:
        path:       of the file.
        evaluation: what `evaluation.evaluate.evaluate` returned.
        title:      of the page: model and data, say.
        settings:   name -> value lines of the run: model, view, budget, seed.
        data:       from `summarise_data`.
        training:   loss and validation GAUC by step.
    """
    return write_page(path, run_page(evaluation, title=title, settings=settings, data=data, training=training))


__all__ = ["run_page", "write_run_report"]
