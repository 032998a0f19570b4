"""The live metric: GAUC by request on validation, the number that early stopping and the choice of weights go by."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sostenuto.evaluation.gauc import gauc
from sostenuto.evaluation.logloss import logloss
from sostenuto.evaluation.predictions import Predictions, predict
from sostenuto.schema.histories import RequestBatch
from sostenuto.schema.ranker import Ranker


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One evaluation. `gauc` groups by (request, list), weighs by exposures, and is the mean over candidate lists."""

    gauc: float  # NaN when no request of any list has both classes
    by_list: dict[str, float] = field(default_factory=dict)
    logloss: float = math.nan  # all lists pooled
    seconds: float = 0.0

    def numbers(self) -> dict[str, float]:
        """Return flat names and values for the log."""
        lists = {f"gauc.{name}": value for name, value in self.by_list.items()} if len(self.by_list) > 1 else {}
        return {"gauc": self.gauc, **lists, "logloss": self.logloss, "seconds": round(self.seconds, 3)}


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


def validate(
    ranker: Ranker, batches: Iterable[RequestBatch], lists: Sequence[str], device: torch.device
) -> tuple[Validation, Predictions]:
    """Score validation batches and measure; the ranker keeps its mode."""
    start = time.perf_counter()
    predictions = predict(ranker, batches, device=device)
    return validation_of(predictions, lists, seconds=time.perf_counter() - start), predictions


__all__ = ["Validation", "validate", "validation_of"]
