"""The picture of a steering curve: what is won and lost as a knob is turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sostenuto.reports.charts import Series, line_chart
from sostenuto.reports.markup import Markup
from sostenuto.reports.page import picture

WORDS = {
    "habit": "how much heads follow the user's own mix of groups",
    "frequency": "how much heads follow the mix of groups in training",
    "long_term": "how much heads of the far future are raised against those of the near one",
}


def _lines(points: Sequence[Mapping[str, Any]], x: str, names: Mapping[str, str]) -> list[Series]:
    """Return a line per measure, in the order of the knob; a measure that is missing everywhere is left out."""

    def known(value: Any) -> float | None:
        return None if value is None or value != value else float(value)  # NaN differs from itself

    lines = []
    for number, (name, label) in enumerate(names.items()):
        y = [known(point[name]) for point in points]
        if any(v is not None for v in y):
            xs = [float(point[x]) for point in points]
            lines.append(Series(label=label, colour=f"c{number + 1}", x=xs, y=y))
    return lines


def steering_pictures(curve: Mapping[str, Any]) -> dict[str, Markup]:
    """Return two pictures as whole SVG files: accuracy against entropy, and every measure against the knob."""
    points, k, knob = curve["points"], curve["k"], curve["knob"]
    accuracy = {"ndcg": f"NDCG@{k}", "recall": f"Recall@{k}", "exploring": f"Recall@{k}, exploring"}
    span = f"{points[0]['value']:g} to {points[-1]['value']:g}"
    trade = line_chart(
        _lines(points, "entropy", accuracy),
        title="Accuracy against diversity",
        description=f"One point per value of the knob {knob}, {span}: {WORDS[knob]}.",
        y_caption="accuracy",
        x_caption=f"Entropy@{k}, bits ({knob} from {span})",
        band=False,
    )
    by_knob = accuracy | {"near": f"Recall@{k}, near", "far": f"Recall@{k}, far", "diversity": f"Diversity@{k}"}
    against = line_chart(
        _lines(points, "value", by_knob),
        title=f"What the knob {knob} does",
        description=f"Every measure by the value of {knob}: {WORDS[knob]}.",
        y_caption="measure",
        x_caption=knob,
        band=False,
    )
    return {"trade": picture(trade), "knob": picture(against)}


__all__ = ["steering_pictures"]
