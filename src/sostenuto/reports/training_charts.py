"""How training went: validation GAUC and loss by step."""

from __future__ import annotations

from collections.abc import Sequence

from sostenuto.reports.charts import Series, line_chart
from sostenuto.reports.comparison import TrainingCurve
from sostenuto.reports.markup import Markup
from sostenuto.reports.page import figure


def training_charts(curves: Sequence[tuple[str, str, TrainingCurve]]) -> list[Markup]:
    """Draw (label, colour class, curve) in two charts; a curve without a label is drawn faintly."""
    valid = [
        Series(label=label, colour=colour, x=c.valid_step, y=c.valid_gauc, faint=not label)
        for label, colour, c in curves
        if c.valid_step
    ]
    loss = [
        Series(label=label, colour=colour, x=c.loss_step, y=c.loss, faint=not label)
        for label, colour, c in curves
        if c.loss_step
    ]
    charts = []
    for series, caption, words in (
        (valid, "validation GAUC", "Validation GAUC by request; early stopping keeps the best step."),
        (loss, "training loss", "Mean training loss between log lines."),
    ):
        if series:
            chart = line_chart(
                series,
                title=caption.capitalize(),
                description="One line per run, by training step.",
                y_caption=caption,
                x_caption="step",
                width=560,
                height=320,
                band=False,
                dots=series is valid,
            )
            charts.append(figure(chart, words))
    return charts


__all__ = ["training_charts"]
