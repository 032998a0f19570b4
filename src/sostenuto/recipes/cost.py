"""What a trained row costs: parameters, training time and rate, state, and milliseconds per request."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sostenuto.data.prepared import PreparedData
    from sostenuto.reports.comparison import Cost

CANDIDATES = 500
REPEATS = 5


def measure_cost(folders: Sequence[Path], data: PreparedData) -> Cost:
    """Measure one row, by its first run.

    The request is the test request with the longest history, with 500 candidates; one thread; median of 5. Encoding
    and scoring are timed apart, because only scoring happens in a request. Collation (match and popularity lookup)
    is the same for all rows and left out.
    """
    import torch

    from sostenuto.features.match import MatchIndex, level_keys
    from sostenuto.reports.comparison import Cost
    from sostenuto.serving.state_bytes import state_num_bytes
    from sostenuto.training.run import open_run

    finished = [json.loads((f / "config.json").read_text(encoding="utf-8"))["finished"] for f in folders]
    run = open_run(folders[0], data.folder)
    requests = data.requests("test")
    row = np.array([int(np.argmax(requests.prefix))])
    whole = run.collator.batch(requests, row)
    rng = np.random.default_rng(0)
    items = rng.integers(2, max(data.features.num_item_rows, 3), CANDIDATES)
    batch = run.collator.batch(_with_candidates(requests, row, items), np.array([0]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            encode_ms, state = _median_ms(lambda: run.ranker.encode(whole.histories))
            serving_ms, _ = _median_ms(lambda: run.ranker.score(state, batch.candidates, batch.context))
    finally:
        torch.set_num_threads(threads)
    match_bytes = 0
    if run.collator.features.match:
        h = whole.histories
        named = {name: column.numpy() for name, column in h.fields.items()}
        keys = level_keys(run.collator.features, h.item.numpy(), h.category.numpy(), named)
        match_bytes = MatchIndex.build(h.offsets.numpy(), h.time_ms.numpy(), keys).num_bytes
    return Cost(
        parameters=finished[0]["parameters"] or None,
        training_s=statistics.fmean(f["seconds"] for f in finished),
        training_samples_s=_samples_per_second(folders[0] / "log.jsonl"),
        serving_ms=serving_ms,
        encode_ms=encode_ms,
        length=int(whole.histories.item.shape[0]),
        candidates=CANDIDATES,
        state_bytes=state_num_bytes(state),
        match_bytes=match_bytes,
    )


def _samples_per_second(log: Path) -> float | None:
    """Return candidates per second over the training steps of a run, pauses left out; None where nothing is trained."""
    from sostenuto.training.run_log import read_log

    rates = [line["candidates_per_s"] for line in read_log(log) if line.get("kind") == "train"]
    return statistics.harmonic_mean(rates) if rates and min(rates) > 0 else None


def _with_candidates(requests: Any, row: Any, items: Any) -> Any:
    """Return a split of one request with other candidates, without candidate columns but of the right length."""
    at = int(row[0])
    one = slice(at, at + 1)
    return dataclasses.replace(
        requests,
        user=requests.user[one],
        time_ms=requests.time_ms[one],
        prefix=requests.prefix[one],
        place=requests.place[one],
        context={name: column[one] for name, column in requests.context.items()},
        offsets=np.array([0, len(items)], np.int64),
        item=items.astype(np.int32),
        label=np.zeros(len(items), np.float32),
        list_id=np.zeros(len(items), np.uint8),
        candidate={
            name: np.zeros((len(items), *column.shape[1:]), column.dtype) for name, column in requests.candidate.items()
        },
    )


def _median_ms(call: Any) -> tuple[float, Any]:
    answer = call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        answer = call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times), answer


__all__ = ["measure_cost"]
