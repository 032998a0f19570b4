"""From predictions of many runs to a `ComparisonResult`: all numbers of the report are computed here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sostenuto.evaluation import auc, calibration, logloss, pcoc
from sostenuto.evaluation.by_part import measure_by_part
from sostenuto.evaluation.evaluate import compare_runs
from sostenuto.evaluation.measures import HEADLINE
from sostenuto.evaluation.predictions import Predictions
from sostenuto.evaluation.significance import DRAWS
from sostenuto.evaluation.slices import by_history_length
from sostenuto.reports.comparison import (
    Calibration,
    ComparisonResult,
    Contrast,
    Cost,
    DataSummary,
    Difference,
    LengthQuality,
    ListResult,
    Row,
    Score,
    TrainingCurve,
)
from sostenuto.schema.errors import SpecError

MEASURES = (HEADLINE, "gauc_user", "ndcg@10", "recall@10", "logloss")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunGroup:
    """One row to be: the predictions of a model in one variant, by seed, and what is known beside them.

    Predictions should have passed through `with_log_facts`, so that lengths are those of the log, not of the view.
    """

    key: str
    model: str
    title: str
    kind: Literal["neural", "fitted", "rule"]
    seeds: Sequence[Predictions]  # one entry stands for all seeds
    history: str = "full"
    match: bool = True
    cost: Cost = field(default_factory=Cost)
    training: tuple[TrainingCurve, ...] = ()
    note: str = ""


def _canonical(p: Predictions) -> Predictions:
    """Give rows one order, so that seeds lie row against row."""
    return p.take(np.lexsort((p.logit, p.label, p.item, p.list_id, p.request)))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _pooled_scores(seeds: Sequence[Predictions]) -> dict[str, Score]:
    measured = {
        "auc": [auc.auc(p.label, p.logit) for p in seeds],
        "ne": [logloss.normalised_entropy(logloss.state(p.label, p.logit)) for p in seeds],
        "pcoc": [pcoc.pcoc(p.label, p.logit) for p in seeds],
        "ece": [calibration.ece(p.label, p.logit) for p in seeds],
    }
    scores = {}
    for name, values in measured.items():
        scores[name] = Score(
            mean=_number(float(np.mean(values))),
            per_seed=tuple(_number(v) for v in values),
            spread=_number(float(np.std(values, ddof=1))) if len(values) > 1 else None,
        )
    return scores


def _difference(found: Mapping[str, Any]) -> Difference | None:
    names = ("difference", "low", "high", "p_holm", "seeds_agree", "beats", "loses")
    if any(found[name] is None for name in names):
        return None
    return Difference(**{name: found[name] for name in names})


def natural_contrasts(groups: Sequence[RunGroup]) -> list[tuple[str, str, str]]:
    """Return (question, A, B) for pairs of rows that differ in one thing: history length, or match features."""
    found = []
    for a, b in itertools.permutations(groups, 2):
        if a.model != b.model:
            continue
        if a.history == "full" and b.history != "full" and a.match == b.match:
            found.append((f"Full history against {b.history}", a.key, b.key))
        if a.match and not b.match and a.history == b.history:
            found.append(("With against without match features", a.key, b.key))
    return sorted(found, key=lambda one: one[0])


def assemble_comparison(
    groups: Sequence[RunGroup],
    *,
    title: str,
    lists: Sequence[str],
    baseline: str,
    data: DataSummary,
    contrasts: Sequence[tuple[str, str, str]] | None = None,
    budget: str = "",
    seeds: Sequence[int] = (),
    draws: int = DRAWS,
    seed: int = 0,
    settings: Mapping[str, str] | None = None,
    caveats: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
    command: str = "",
    made_at: str = "",
) -> ComparisonResult:
    """Measure every row on every list, test it against the baseline, answer the contrasts.

    Holm's correction runs over the rows against the baseline and the contrasts together, over all lists.

    Args:
        groups:    the rows.
        title:     of the report.
        lists:     names of the protocol's candidate lists, indexed by list_id.
        baseline:  key of the row that marks refer to.
        data:      from `summarise_data`.
        contrasts: (question, A, B) by row keys; default `natural_contrasts`.
        budget:    its name, for people.
        seeds:     of the runs, for people.
        draws:     of the bootstrap over users.
        seed:      of the bootstrap.
        settings:  further lines of the method section.
        caveats:   sentences that a reader must know.
        versions:  package -> version.
        command:   that repeats the comparison.
        made_at:   ISO 8601.
    """
    if not groups:
        raise SpecError("groups must hold at least one row, got none")
    runs = {g.key: [_canonical(p) for p in g.seeds] for g in groups}
    asked = list(natural_contrasts(groups) if contrasts is None else contrasts)
    pairs = [(g.key, baseline) for g in groups if g.key != baseline]
    pairs += [pair for _, *pair in asked if tuple(pair) not in pairs]  # type: ignore[misc]
    found = compare_runs(
        runs,
        lists=lists,
        measures=MEASURES,
        baseline=baseline,
        pairs=list(dict.fromkeys(tuple(p) for p in pairs)),  # type: ignore[misc]
        draws=draws,
        seed=seed,
    )["lists"]
    tested = {
        (name, c["a"], c["b"]): _difference(c) for name, table in found.items() for c in table[HEADLINE]["comparisons"]
    }
    rows = []
    for group in groups:
        results = {}
        for list_name, table in found.items():
            list_id = list(lists).index(list_name)
            mine = [p.take(p.list_id == list_id) for p in runs[group.key]]
            metrics = {m: Score(**table[m]["runs"][group.key]) for m in MEASURES} | _pooled_scores(mine)
            cut = by_history_length(mine[0])
            by_length = measure_by_part(mine, cut, draws=draws, seed=seed)
            requests = [len(np.unique(mine[0].request[cut.code == part])) for part in range(len(cut.parts))]
            curve = calibration.value(calibration.state(mine[0].label, mine[0].logit))
            results[list_name] = ListResult(
                metrics=metrics,
                versus_baseline=tested.get((list_name, group.key, baseline)),
                by_length=LengthQuality(
                    parts=cut.parts,
                    requests=tuple(requests),
                    value=tuple(_number(i.value) for i in by_length),
                    low=tuple(_number(i.low) for i in by_length),
                    high=tuple(_number(i.high) for i in by_length),
                ),
                calibration=Calibration(
                    **{n: tuple(getattr(curve, n).tolist()) for n in ("probability", "observed", "rows", "low", "high")}
                ),
            )
        rows.append(
            Row(
                key=group.key,
                model=group.model,
                title=group.title,
                kind=group.kind,
                history=group.history,
                match=group.match,
                lists=results,
                cost=group.cost,
                training=group.training,
                note=group.note,
            )
        )
    answers = [
        Contrast(question=question, list_name=name, a=a, b=b, result=result)
        for question, a, b in asked
        for name in found
        if (result := tested.get((name, a, b))) is not None
    ]
    return ComparisonResult(
        title=title,
        headline=HEADLINE,
        lists=tuple(found),
        baseline=baseline,
        rows=tuple(rows),
        contrasts=tuple(answers),
        data=data,
        budget=budget,
        seeds=tuple(seeds),
        draws=draws,
        settings=dict(settings or {}),
        caveats=tuple(caveats),
        versions=dict(versions or {}),
        command=command,
        made_at=made_at,
    )


__all__ = ["RunGroup", "assemble_comparison", "natural_contrasts"]
