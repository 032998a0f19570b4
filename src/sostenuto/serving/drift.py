"""Do live requests look as those of evaluation did? Drift of scores, and skew of what the ranker reads of candidates.

At export a sample of held-out requests is scored: the deciles of its logits, and mean and standard deviation of every
number that candidates carry, are the reference. A running service keeps the same of its own requests, older ones
fading. Two requests with other kinds of candidates differ without anything being wrong: compare like with like.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.serving.service import Reading

if TYPE_CHECKING:
    from sostenuto.schema.features import FeatureSpec
    from sostenuto.schema.histories import Candidates

Array = npt.NDArray[Any]

BINS = 10
HALF_LIFE = 20_000  # candidates after which an observation counts half
LEAST_SHARE = 1e-4  # of a bin: an empty one would make the index infinite
LEAST_STD = 1e-3  # of a feature that did not vary, in its own unit
LEAST = 1_000  # candidates before anything is said
EVERY_S = 0.05  # between two rankings that are observed


def numbers_of(features: FeatureSpec) -> tuple[str, ...]:
    """Return the names of the numbers that candidates carry: match features, then numeric fields.

    Item fields are among the latter.
    """
    fields = (*features.candidate_fields, *features.item_fields)
    return (*features.match, *(f.name for f in fields if f.kind == "numeric"))


def numbers(features: FeatureSpec, candidates: Candidates) -> Array:
    """Return (N, F) float64 of `numbers_of`; NaN where missing."""
    match = candidates.match.numpy(force=True)
    own = [candidates.fields[name].numpy(force=True)[:, None] for name in numbers_of(features)[match.shape[1] :]]
    return np.concatenate([match, *own], axis=1).astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """How scores and features were distributed when the model was exported."""

    edges: tuple[float, ...]  # between the bins of logits, rising
    shares: tuple[float, ...]  # of the bins
    mean: dict[str, float]  # by name of the number
    std: dict[str, float]

    @classmethod
    def of(cls, names: Sequence[str], scored: Iterable[tuple[Array, Array]]) -> Reference:
        """Measure it from (N,) logits and (N, F) numbers of a few batches."""
        parts = list(scored)
        logits = np.concatenate([part for part, _ in parts])
        values = np.concatenate([part for _, part in parts])
        edges = np.unique(np.quantile(logits, np.arange(1, BINS) / BINS))
        shares = np.bincount(np.searchsorted(edges, logits), minlength=len(edges) + 1) / len(logits)
        known = ~np.isnan(values)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, values, 0.0).sum(0) / count
        std = np.sqrt(np.where(known, (values - mean) ** 2, 0.0).sum(0) / count)
        return cls(
            edges=tuple(edges.tolist()),
            shares=tuple(shares.tolist()),
            mean=dict(zip(names, mean.tolist(), strict=True)),
            std=dict(zip(names, std.tolist(), strict=True)),
        )


class Drift:
    """Compares what is scored with the reference; every number fades with the candidates that come after it."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._edges = np.array(reference.edges)
        self._names = tuple(reference.mean)
        self._bins = np.zeros(len(reference.shares))
        self._sums = np.zeros(len(self._names))
        self._counts = np.zeros(len(self._names))
        self._seen = 0
        self._observed_s = -math.inf
        self._lock = threading.Lock()

    def is_due(self) -> bool:
        """Say whether a ranking is to be observed: some twenty a second tell enough, and each costs."""
        return self._seen < LEAST or time.monotonic() - self._observed_s >= EVERY_S

    def observe(self, logits: Array, values: Array) -> None:
        """Take (N,) logits and (N, F) numbers in, F as in the reference."""
        bins = np.bincount(np.searchsorted(self._edges, logits), minlength=len(self._bins))
        known = ~np.isnan(values)
        sums, counts = np.where(known, values, 0.0).sum(0), known.sum(0)
        with self._lock:
            self._observed_s = time.monotonic()
            fade = 0.5 ** (len(logits) / HALF_LIFE)
            self._bins = self._bins * fade + bins
            self._sums = self._sums * fade + sums
            self._counts = self._counts * fade + counts
            self._seen += len(logits)

    @property
    def stability(self) -> float:
        """Population stability index of the logits: 0 when they are distributed alike, above .25 by habit a shift."""
        with self._lock:
            live = self._bins / max(self._bins.sum(), 1.0)
        then = np.maximum(np.array(self.reference.shares), LEAST_SHARE)
        live = np.maximum(live, LEAST_SHARE)
        return float(((live - then) * np.log(live / then)).sum())

    @property
    def skew(self) -> dict[str, float]:
        """By number, how far its mean is from the reference, in standard deviations of the reference."""
        with self._lock:
            mean = self._sums / np.maximum(self._counts, 1e-9)
            seen = self._counts > 0
        return {
            name: abs(float(mean[n]) - self.reference.mean[name]) / max(self.reference.std[name], LEAST_STD)
            for n, name in enumerate(self._names)
            if seen[n]
        }

    def readings(self, version: str) -> list[Reading]:
        """Return gauges; none before enough was seen."""
        if self._seen < LEAST:
            return []
        labels = {"version": version}
        drift = "Population stability index of logits against export; above .25 is a shift."
        skew = "Distance of a feature's mean from export, in its standard deviations."
        found = [Reading(name="score_drift_index", help=drift, value=self.stability, labels=labels)]
        for name, value in self.skew.items():
            found.append(Reading(name="feature_skew", help=skew, value=value, labels=labels | {"feature": name}))
        return found


__all__ = ["Drift", "Reference", "numbers", "numbers_of"]
