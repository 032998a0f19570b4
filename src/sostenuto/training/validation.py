"""The live metrics: what early stopping and the choice of weights go by.

GAUC by request over the protocol's candidate lists; for models that search also the rank of the true items among the
whole catalogue, which sampled negatives say little about.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sostenuto.evaluation.catalogue import rank_catalogue
from sostenuto.evaluation.gauc import gauc
from sostenuto.evaluation.logloss import logloss
from sostenuto.evaluation.predictions import Predictions, predict
from sostenuto.features.loading import RequestLoader
from sostenuto.schema.ranker import Ranker


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One evaluation. `gauc` groups by (request, list), weighs by exposures, and is the mean over candidate lists.

    `catalogue` holds measures over all items, `metric` names the one number that the run is steered by.
    """

    gauc: float  # NaN when no request of any list has both classes
    by_list: dict[str, float] = field(default_factory=dict)
    logloss: float = math.nan  # all lists pooled
    seconds: float = 0.0
    catalogue: dict[str, float] = field(default_factory=dict)
    metric: str = "gauc"

    @property
    def value(self) -> float:
        """The number that the run is steered by."""
        return self.gauc if self.metric == "gauc" else self.catalogue[self.metric]

    def numbers(self) -> dict[str, float]:
        """Return flat names and values for the log."""
        lists = {f"gauc.{name}": value for name, value in self.by_list.items()} if len(self.by_list) > 1 else {}
        parts = {"gauc": self.gauc, **lists, "logloss": self.logloss, **self.catalogue}
        return parts | {"seconds": round(self.seconds, 3)}


def validation_of(predictions: Predictions, lists: Sequence[str], *, seconds: float = 0.0) -> Validation:
    """Measure predictions.

    Args:
        predictions: of the validation requests.
        lists:       names of the candidate lists; `list_id` indexes them.
        seconds:     what making the predictions took.
    """
    by_list: dict[str, float] = {}
    for number in np.unique(predictions.list_id).tolist():
        rows = predictions.list_id == number
        name = lists[number] if number < len(lists) else str(number)
        by_list[name] = gauc(predictions.label[rows], predictions.logit[rows], predictions.request[rows]).value
    known = [value for value in by_list.values() if not math.isnan(value)]
    return Validation(
        gauc=float(np.mean(known)) if known else math.nan,
        by_list=by_list,
        logloss=float(logloss(predictions.label, predictions.logit)) if len(predictions) else math.nan,
        seconds=seconds,
    )


CATALOGUE = (("ndcg", 10), ("recall", 10))


def validate(
    ranker: Ranker,
    batches: RequestLoader,
    lists: Sequence[str],
    device: torch.device,
    *,
    metric: str = "gauc",
    exclude_seen: bool = False,
) -> tuple[Validation, Predictions]:
    """Score validation requests and measure; the ranker keeps its mode.

    Args:
        ranker:  on `device`.
        batches: of the validation requests.
        lists:   names of the candidate lists.
        device:  where the ranker lives.
        metric:  what the run is steered by; anything but `gauc` ranks the whole catalogue for the same requests.
        exclude_seen: that ranking leaves out what the user met before.
    """
    start = time.perf_counter()
    predictions = predict(ranker, batches, device=device)
    found = validation_of(predictions, lists)
    measured: dict[str, float] = {}
    if metric != "gauc":
        standing = rank_catalogue(
            ranker, batches.collator, "valid", rows=batches.rows, most=10, exclude_seen=exclude_seen, device=device
        )
        measured = {f"{kind}@{k}": standing.terms(kind, k).terms.value for kind, k in CATALOGUE}
    seconds = time.perf_counter() - start
    return replace(found, seconds=seconds, catalogue=measured, metric=metric), predictions


__all__ = ["Validation", "validate", "validation_of"]
