"""What a knob of decoding trades: accuracy against diversity, and the near against the far future.

One trained model, the same requests, one ranking of the catalogue per value of the knob.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sostenuto.evaluation import diversity, entropy
from sostenuto.evaluation.catalogue import Standing, rank_catalogue
from sostenuto.evaluation.group_requests import exploring, restricted
from sostenuto.evaluation.terms import Array
from sostenuto.evaluation.top_rows import TopRows
from sostenuto.features.loading import sample_rows
from sostenuto.features.windows import FutureWindows
from sostenuto.schema.errors import DataError, SpecError, did_you_mean

if TYPE_CHECKING:
    import torch

    from sostenuto.data.prepared import PreparedData
    from sostenuto.features.collation import Collator

KNOBS = ("habit", "frequency", "long_term")
VALUES = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringPoint:
    """Measures at one value of a knob; NaN where no request counts."""

    value: float
    ndcg: float  # @k, of the set of items in the window
    recall: float  # @k
    near: float  # recall@k of items in the first segment of the window
    far: float  # recall@k of items in the last segment
    exploring: float  # recall@k of requests with a target of a group that their history does not know
    entropy: float  # Entropy@k, bits
    diversity: float  # mean distance of pairs in the first k, by category path
    coverage: float  # share of the catalogue in some first k


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTruth:
    """What happened in the moments after R requests."""

    rows: Array  # (R,) of the split
    items: list[Array]  # all of each window
    near: list[Array]  # of its first segment
    far: list[Array]  # of its last segment


def window_truth(
    data: PreparedData, split: str, *, window: int, segments: int, requests: int, seed: int
) -> WindowTruth:
    """Return what users did in the `window` moments after requests, their own moment first; evaluation sees it all."""
    asked = data.requests(split)
    rows = sample_rows(asked, None, seed)
    windows = FutureWindows(data, moments=window, per_moment=1 << 20, whole_log=True)
    found = windows.of(np.asarray(asked.user), np.asarray(asked.prefix))
    rows = rows[np.diff(found.offsets) > 0]
    if not len(rows):
        raise DataError(
            f"{split} must hold requests that something followed, {data.folder} has none; take another split"
        )
    rows = np.sort(np.random.default_rng([seed, len(rows)]).permutation(rows)[:requests])
    item, segment = np.asarray(data.behaviours.item)[found.position], found.step * segments // window

    def of(row: int, which: int | None) -> Array:
        span = slice(int(found.offsets[row]), int(found.offsets[row + 1]))
        return np.unique(item[span] if which is None else item[span][segment[span] == which]).astype(np.int64)

    return WindowTruth(
        rows=rows,
        items=[of(r, None) for r in rows],
        near=[of(r, 0) for r in rows],
        far=[of(r, segments - 1) for r in rows],
    )


def shown(standing: Standing, k: int) -> TopRows:
    """Return the first k of every ranked request as rows of `standing.top_item`."""
    _, group = np.unique(standing.top_request, return_inverse=True)
    place = np.arange(len(group)) - np.searchsorted(standing.top_request, standing.top_request)
    top = TopRows(row=np.arange(len(group)), group=group.reshape(-1), place=place)
    return top.first(k)


def recall_of(standing: Standing, truth: Sequence[Array], k: int) -> float:
    """Return the mean share of some true items among the first k; requests without any are left out."""
    top = shown(standing, k)
    lists = np.split(standing.top_item[top.row], np.searchsorted(top.group, np.arange(1, len(truth))))
    shares = [np.isin(wanted, first).mean() for wanted, first in zip(truth, lists, strict=True) if len(wanted)]
    return float(np.mean(shares)) if shares else float("nan")


def steering_curve(
    ranker: Any,
    collator: Collator,
    knob: str,
    values: Sequence[float] = VALUES,
    *,
    split: str = "test",
    requests: int = 500,
    k: int = 10,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Measure a model of prior heads at several values of a knob; its steering is put back afterwards.

    Args:
        ranker:   a model with heads, on `device`.
        collator: of the data and view that it was trained with.
        knob:     habit, frequency or long_term; see `Steering`.
        values:   of the knob.
        split:    valid or test.
        requests: at most so many, drawn by `seed`.
        k:        length of the lists.
        seed:     of the draw.
        device:   where the ranker lives.
    """
    if knob not in KNOBS:
        raise SpecError(f"knob must be one of {', '.join(KNOBS)}, got {knob!r}.{did_you_mean(knob, KNOBS)}")
    if not hasattr(ranker, "steering"):
        raise SpecError("the model must have heads to steer, this one has none; train prior_heads")
    data = collator.data
    config = ranker.config
    truth = window_truth(data, split, window=config.window, segments=config.segments, requests=requests, seed=seed)
    groups = ranker.items.cpu().numpy()
    explorers = truth.rows[exploring(truth.items, _histories(data, split, truth.rows), groups)]
    kept = ranker.steering
    points = []
    try:
        for value in values:
            ranker.steering = replace(kept, **{knob: value})
            standing = rank_catalogue(
                ranker, collator, split, rows=truth.rows, truth=truth.items, most=k, device=device
            )
            top = shown(standing, k)
            recall = standing.terms("recall", k)
            item = standing.top_item
            points.append(
                SteeringPoint(
                    value=float(value),
                    ndcg=standing.terms("ndcg", k).terms.value,
                    recall=recall.terms.value,
                    near=recall_of(standing, truth.near, k),
                    far=recall_of(standing, truth.far, k),
                    exploring=restricted(recall, explorers).terms.value if len(explorers) else float("nan"),
                    entropy=entropy.value(entropy.state(top, groups[item])),
                    diversity=diversity.value(diversity.state(top, data.item_category[item])),
                    coverage=standing.coverage(k),
                )
            )
    finally:
        ranker.steering = kept
    return {
        "knob": knob,
        "k": k,
        "split": split,
        "requests": len(truth.rows),
        "exploring_requests": len(explorers),
        "window": config.window,
        "segments": config.segments,
        "groups": int(groups.shape[1]),
        "points": [asdict(point) for point in points],
    }


def _histories(data: PreparedData, split: str, rows: Array) -> list[Array]:
    asked = data.requests(split)
    low = np.asarray(data.behaviours.offsets, np.int64)[np.asarray(asked.user)[rows]]
    end = low + np.asarray(asked.prefix, np.int64)[rows]
    item = np.asarray(data.behaviours.item)
    return [item[a:z] for a, z in zip(low.tolist(), end.tolist(), strict=True)]


__all__ = ["KNOBS", "VALUES", "SteeringPoint", "WindowTruth", "recall_of", "shown", "steering_curve", "window_truth"]
