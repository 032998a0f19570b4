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
    """Return pictures as whole SVG files: accuracy against entropy, against intra-list diversity, and by the knob."""
    points, k, knob = curve["points"], curve["k"], curve["knob"]
    accuracy = {"ndcg": f"NDCG@{k}", "recall": f"Recall@{k}", "exploring": f"Recall@{k}, exploring"}
    span = f"{points[0]['value']:g} to {points[-1]['value']:g}"

    def against(x: str, title: str, caption: str, names: Mapping[str, str]) -> Markup:
        chart = line_chart(
            _lines(points, x, names),
            title=title,
            description=f"One point per value of the knob {knob}, {span}: {WORDS[knob]}.",
            y_caption="accuracy",
            x_caption=caption,
            band=False,
        )
        return picture(chart)

    by_time = accuracy | {"near": f"Recall@{k}, near", "far": f"Recall@{k}, far"}
    return {
        "entropy": against("entropy", "Accuracy against Entropy", f"Entropy@{k}, bits ({knob} from {span})", accuracy),
        "diversity": against(
            "diversity", "Accuracy against diversity", f"Diversity@{k}, intra-list ({knob} from {span})", accuracy
        ),
        "knob": against("value", f"What the knob {knob} does", knob, by_time),
    }


__all__ = ["steering_pictures"]
