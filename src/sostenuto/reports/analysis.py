"""Pictures of what two jobs ask of one table, of attention beside what behaviours are worth, and of separation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sostenuto.reports.charts import Series, line_chart
from sostenuto.reports.markup import Markup
from sostenuto.reports.page import picture

MOST_POINTS = 60  # of a line; steps between are averaged


def _known(value: Any) -> float | None:
    return None if value is None or value != value else float(value)  # NaN differs from itself


def _binned(points: Sequence[Mapping[str, Any]], x: str, name: str) -> tuple[list[float], list[float | None]]:
    """Return a line of at most MOST_POINTS points, each the mean of neighbouring ones."""
    size = -(-len(points) // MOST_POINTS)
    xs, ys = [], []
    for at in range(0, len(points), size):
        part = points[at : at + size]
        known = [v for point in part if (v := _known(point[name])) is not None]
        xs.append(float(part[-1][x]))
        ys.append(sum(known) / len(known) if known else None)
    return xs, ys


def _lines(points: Sequence[Mapping[str, Any]], x: str, names: Mapping[str, str]) -> list[Series]:
    lines = []
    for number, (name, label) in enumerate(names.items()):
        xs, ys = _binned(points, x, name)
        if any(v is not None for v in ys):
            lines.append(Series(label=label, colour=f"c{number + 1}", x=xs, y=ys))
    return lines


def conflict_pictures(found: Mapping[str, Any]) -> dict[str, Markup]:
    """Return the pictures of `training.gradient_conflict.measure_conflict`: norms, and how often directions oppose."""
    points = found["points"]
    norms = {"attention_norm": "attention", "representation_norm": "representation"}
    return {
        "norms": picture(
            line_chart(
                _lines(points, "step", norms),
                title="Gradients of the two jobs of one table",
                description="Mean norm of a row's gradient through scores, and through what is averaged.",
                y_caption="mean norm",
                x_caption="step",
                band=False,
            )
        ),
        "opposed": picture(
            line_chart(
                _lines(points, "step", {"negative_percent": "opposed rows"}),
                title="Rows whose two gradients oppose each other",
                description="Share of touched rows with a negative cosine between the gradients of the two jobs.",
                y_caption="per cent",
                x_caption="step",
                band=False,
                y_range=(0.0, 100.0),
                digits=1,
            )
        ),
    }


def retrieval_pictures(found: Mapping[str, Any]) -> dict[str, Markup]:
    """Return the pictures of `evaluation.information.retrieval_quality`: what behaviours are worth, and attention."""
    drawn = {}
    for name, title, caption in (
        ("information", "What a behaviour's category says of the label", "bits"),
        ("attention", "What attention gives it", "mean weight"),
    ):
        lines = {f"{name}_same": "of the target's category", f"{name}_other": "of another category"}
        drawn[name] = picture(
            line_chart(
                _lines(found["points"], "position", lines),
                title=title,
                description="By place in the history, 1 is the newest behaviour.",
                y_caption=caption,
                x_caption="place, 1 = newest",
                band=False,
            )
        )
    return drawn


def discriminability_pictures(found: Mapping[str, Any]) -> dict[str, Markup]:
    """Return the picture of `evaluation.discriminability.discriminability`: what clusters say of the label."""
    points = found["points"]
    names = {"product": "target x interest", "interest": "interest"}
    lines = []
    for number, (name, label) in enumerate(names.items()):
        for what, ending, dashed in (("corrected", "", False), ("chance", ", by chance", True)):
            ys = [_known(point[f"{name}_{what}"]) for point in points]
            xs = [float(n) for n in range(len(points))]
            lines.append(Series(label=label + ending, colour=f"c{number + 1}", x=xs, y=ys, dashed=dashed, faint=dashed))
    return {
        "information": picture(
            line_chart(
                lines,
                title="What a cluster of representations says of the label",
                description=(
                    "Mutual information of cluster and label less what labels in random order would give; the label "
                    f"itself has {found['entropy']:.3f} bits."
                ),
                y_caption="bits",
                x_caption="clusters",
                x_names=[f"{point['clusters']:,}" for point in points],
                band=False,
            )
        )
    }


__all__ = ["conflict_pictures", "discriminability_pictures", "retrieval_pictures"]
