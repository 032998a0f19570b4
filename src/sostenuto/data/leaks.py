"""Columns that know the answer: found by how well each alone tells positives from negatives.

A column filled in after the fact (a dwell time, an order number, a discount granted at the till) predicts the label
nearly perfectly, and a model that reads it looks splendid until it is served. Nothing here proves a leak: it points at
what a person must look at.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from sostenuto.data.prepared import Array

SUSPICIOUS_AUC = 0.95
ONLY_ONE_SIDE = 0.001  # share of filled cells that still counts as none
WORTH_NAMING = 0.05  # share of filled cells on the other side from which it is worth a word
FEWEST_ROWS = 50  # of either label, before anything is said
SAMPLE_ROWS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One column that tells a label too well."""

    column: str
    label: str  # what it tells: the label of an exposure, or an action
    auc: float
    reason: str
    rows: int

    def as_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return asdict(self)


class RowSample:
    """A bounded uniform sample of rows that stream by, drawn by a fixed seed."""

    def __init__(self, most: int = SAMPLE_ROWS) -> None:
        self.most, self.rate = most, 1.0
        self._generator = np.random.default_rng(0)
        self._pieces: list[pl.DataFrame] = []
        self._rows = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Let rows pass; each stays with the same probability."""
        draw = self._generator.random(len(frame))
        kept = frame.with_columns(pl.Series("_draw", draw)).filter(pl.col("_draw") < self.rate)
        self._pieces.append(kept)
        self._rows += len(kept)
        while self._rows > 2 * self.most:
            self.rate /= 2
            self._pieces = [pl.concat(self._pieces, how="diagonal_relaxed").filter(pl.col("_draw") < self.rate)]
            self._rows = len(self._pieces[0])

    def frame(self) -> pl.DataFrame:
        """Return the sample; `_draw` is uniform below `rate` and independent of the rows."""
        return pl.concat(self._pieces, how="diagonal_relaxed") if self._pieces else pl.DataFrame({"_draw": []})


def rank_auc(score: Array, positive: Array) -> float:
    """Return the area under the ROC curve, ties counted half; NaN where a side is empty."""
    from scipy.stats import rankdata

    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def _held_out_rates(texts: pl.Series, positive: Array, first_half: Array) -> tuple[Array, Array]:
    """Score the second half by the label rates of the first: a text that occurs once must not predict itself."""
    known = pl.DataFrame({"text": texts, "label": positive}).filter(pl.Series(first_half))
    mean = float(np.mean(positive[first_half])) if first_half.any() else 0.5
    rates = known.group_by("text").agg(((pl.col("label").sum() + mean) / (pl.len() + 1)).alias("rate"))
    rest = pl.DataFrame({"text": texts}).filter(pl.Series(~first_half))
    found = rest.join(rates, on="text", how="left", maintain_order="left", nulls_equal=True)["rate"]
    return found.fill_null(mean).to_numpy(), positive[~first_half]


def find_leaks(columns: pl.DataFrame, positive: Array, label: str, *, draw: Array | None = None) -> list[Leak]:
    """Return the columns that tell `positive` nearly perfectly, or are filled on one side only.

    Args:
        columns:  (N rows) text columns are categories, numeric ones are numbers; null and NaN are missing.
        positive: (N,) bool.
        label:    what `positive` is, for the report.
        draw:     (N,) uniform numbers that halve the rows for text columns; rows alternate when absent.
    """
    positive = np.asarray(positive, bool)
    if min(int(positive.sum()), int((~positive).sum())) < FEWEST_ROWS:
        return []
    order = np.arange(len(positive)) if draw is None else np.argsort(np.argsort(draw))
    first_half = order % 2 == 0
    found = []
    for name in columns.columns:
        column = columns[name]
        numeric = column.dtype.is_numeric() or column.dtype == pl.Boolean
        if numeric:
            values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
            filled = ~np.isnan(values)
        else:
            column = column.cast(pl.String)
            filled = column.is_not_null().to_numpy()
        sides = float(filled[positive].mean()), float(filled[~positive].mean())
        if min(sides) <= ONLY_ONE_SIDE and max(sides) >= WORTH_NAMING:
            side = "positives" if sides[0] > sides[1] else "negatives"
            auc = 0.5 + abs(sides[0] - sides[1]) / 2
            reason = f"filled for {side} only ({max(sides):.0%} of them)"
            found.append(Leak(column=name, label=label, auc=auc, reason=reason, rows=len(positive)))
            continue
        if numeric:
            lowest = np.nanmin(values) - 1.0 if filled.any() else 0.0
            auc = rank_auc(np.where(filled, values, lowest), positive)
        else:
            scores, held = _held_out_rates(column, positive, first_half)
            auc = rank_auc(scores, held)
        auc = max(auc, 1.0 - auc)
        if auc >= SUSPICIOUS_AUC:
            found.append(
                Leak(column=name, label=label, auc=auc, reason="tells the label nearly perfectly", rows=len(positive))
            )
    return found


__all__ = ["SAMPLE_ROWS", "SUSPICIOUS_AUC", "Leak", "RowSample", "find_leaks", "rank_auc"]
