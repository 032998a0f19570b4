"""From a run to its numbers on a split: predictions and metrics beside the model, measured once and kept."""

from __future__ import annotations

import json
from typing import Any

from sostenuto.evaluation.evaluate import evaluate
from sostenuto.evaluation.predictions import Predictions, load_predictions, predict, training_counts, with_log_facts
from sostenuto.features.loading import RequestLoader, sample_rows
from sostenuto.models.table import entry_of
from sostenuto.schema.errors import DataError, RunError
from sostenuto.training.checkpoint import write_text_whole
from sostenuto.training.run import Run, device_named, process_settings


def predictions_of(run: Run, split: str, *, again: bool = False) -> Predictions:
    """Return what a run says of the requests of its budget in a split; scored once, then read from the run folder."""
    path = run.folder / "predictions" / f"{split}.npz"
    if path.is_file() and run.finished is not None and not again:
        return load_predictions(path)
    requests = run.data.requests(split)
    if not len(requests):
        raise DataError(f"{split} must hold requests, {run.data.folder} has none; prepare it with other split times")
    budget, training = run.config.budget, run.config.training
    loader = RequestLoader(
        run.collator,
        requests,
        sample_rows(requests, getattr(budget, split), budget.seed),
        batch_requests=training.evaluation_batch_requests,
        prefetch=training.prefetch,
    )
    is_neural = entry_of(run.config.model).kind == "neural"
    device = device_named(training.device if is_neural else "cpu")
    with process_settings(run.config, device):
        ranker = run.ranker.to(device) if is_neural else run.ranker
        scored = predict(ranker, loader, device=device)
    predictions = with_log_facts(scored, run.data, split)
    predictions.save(path)
    return predictions


def measure(run: Run, split: str = "test", *, again: bool = False) -> dict[str, Any]:
    """Return the metrics of a run on a split (see `evaluation.evaluate`), and keep them in `metrics.json`.

    Args:
        run:   an opened run.
        split: valid or test.
        again: score and measure anew, even when it was done before.

    Raises:
        RunError: the run is not over: its model is only the best so far.
    """
    if run.finished is None:
        raise RunError(f"a run must be over before it is measured, {run.folder} is not; go on with `sostenuto train`")
    path = run.folder / "metrics.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if split in known and not again:
        return dict(known[split])
    protocol = run.data.manifest.protocol
    lists = protocol.lists if protocol is not None else ("all",)
    splits = protocol.splits if protocol is not None else {}
    measured = evaluate(
        predictions_of(run, split, again=again),
        lists=lists,
        item_counts=training_counts(run.data),
        categories=run.data.item_category,
        time_zone=run.data.manifest.time_zone,
        start_ms=splits[split][0] if split in splits else None,
    )
    write_text_whole(path, json.dumps(known | {split: measured}, indent=2, allow_nan=False) + "\n")
    return measured


__all__ = ["measure", "predictions_of"]
