"""Everything said of one run, and several runs set against each other. Both return plain JSON-ready dictionaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.special import expit

from sostenuto.evaluation import calibration, coverage, diversity, gauc, logloss, novelty
from sostenuto.evaluation.measures import HEADLINE, OwnedTerms, measure, measure_terms
from sostenuto.evaluation.predictions import Predictions
from sostenuto.evaluation.score_counts import count_scores
from sostenuto.evaluation.significance import (
    ALPHA,
    DRAWS,
    Interval,
    RunDraws,
    auc_interval,
    bootstrap_ratios,
    bootstrap_runs,
    compare_pair,
    corrected,
    percentile_interval,
    run_interval,
    user_sums,
)
from sostenuto.evaluation.slices import Slice, standard_slices
from sostenuto.evaluation.terms import Array, row_terms
from sostenuto.evaluation.top_rows import top_rows
from sostenuto.schema.errors import DataError, SpecError, did_you_mean

FORMAT_VERSION = 1
KS = (5, 10, 20)
COMPARED = ("gauc_request", "gauc_user", "ndcg@10", "recall@10", "logloss")


def _plain(value: Any) -> Any:
    """Turn NaN and infinities into None and numpy scalars into Python's, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _intervals(
    owned: Mapping[str, OwnedTerms], users: Array, draws: int, seed: int
) -> tuple[dict[str, Interval], dict[str, Array]]:
    """Bootstrap all terms over common draws of users."""
    sums = np.stack([user_sums(o.terms, o.user, users) for o in owned.values()], 1)
    ratios = bootstrap_ratios(sums, draws=draws, seed=seed)
    columns = {name: ratios[:, place] for place, name in enumerate(owned)}
    return {name: percentile_interval(o.terms.value, columns[name]) for name, o in owned.items()}, columns


def _entropy(rate: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy: Array = -rate * np.log(rate) - (1 - rate) * np.log1p(-rate)
    return entropy


def _counts(p: Predictions, rows: Array | slice = slice(None)) -> dict[str, int]:
    return {
        "requests": len(np.unique(p.request[rows])),
        "rows": len(p.request[rows]),
        "positives": int((p.label[rows] == 1).sum()),
        "users": len(np.unique(p.user[rows])),
    }


def _slice_terms(p: Predictions, cuts: Sequence[Slice]) -> dict[tuple[str, int, str], OwnedTerms]:
    """Terms of each part: GAUC over the rows that `Slice.rows` gives, logloss and PCOC over the part's own rows."""
    loss, probability = logloss.row_loss(p.label, p.logit), expit(p.logit.astype(np.float64))
    out: dict[tuple[str, int, str], OwnedTerms] = {}
    for cut in cuts:
        for part in range(len(cut.parts)):
            wide = p.take(np.flatnonzero(cut.rows(part, p.label)))
            out[cut.name, part, "gauc_request"] = measure_terms(wide, ["gauc_request"])["gauc_request"]
            own = np.flatnonzero(cut.code == part)
            user = p.user[own]
            for name, terms in (
                ("logloss", row_terms(user, loss[own], np.ones(len(own)))),
                ("pcoc", row_terms(user, probability[own], p.label[own])),
            ):
                out[cut.name, part, name] = OwnedTerms(terms=terms, user=terms.group)
    return out


def _block(
    p: Predictions,
    cuts: Sequence[Slice],
    *,
    categories: Array | None,
    item_counts: Array | None,
    ks: Sequence[int],
    draws: int,
    seed: int,
    bins: int,
) -> dict[str, Any]:
    names = ["gauc_request", "gauc_user", "logloss", "pcoc", "rate"]
    names += [f"{kind}@{k}" for kind in ("ndcg", "recall", "hr", "mrr", "map") for k in ks]
    owned: dict[Any, OwnedTerms] = dict(measure_terms(p, names))
    owned |= _slice_terms(p, cuts)
    users = np.unique(p.user)
    intervals, columns = _intervals(owned, users, draws, seed)
    metrics: dict[str, Any] = {name: asdict(intervals[name]) for name in names if name != "rate"}
    metrics["auc"] = asdict(auc_interval(p.label, p.logit, p.user))
    entropy = logloss.normalised_entropy(logloss.state(p.label, p.logit))
    metrics["ne"] = asdict(percentile_interval(entropy, columns["logloss"] / _entropy(columns["rate"])))
    curve = calibration.value(calibration.state(p.label, p.logit), bins)
    metrics["ece"] = {"value": curve.ece}
    best = top_rows(p.logit, p.request_list, p.item, max(ks))
    for k in ks:
        top = best.first(k)
        metrics[f"coverage@{k}"] = {"value": coverage.value(coverage.state(top, p.item))}
        if item_counts is not None:
            bits = novelty.state(top, item_counts[p.item], total=int(item_counts.sum()), num_items=len(item_counts))
            metrics[f"novelty@{k}"] = {"value": novelty.value(bits)}
        if categories is not None and categories.shape[1]:
            spread = diversity.state(top, categories[p.item])
            metrics[f"diversity@{k}"] = {"value": diversity.value(spread)}
    standing = gauc.value(count_scores(p.label, p.logit, p.request_list))
    slices = {}
    for cut in cuts:
        parts = []
        for part, name in enumerate(cut.parts):
            of_part = {m: asdict(intervals[cut.name, part, m]) for m in ("gauc_request", "logloss", "pcoc")}  # type: ignore[index]
            parts.append({"name": name, **_counts(p, cut.code == part), "metrics": of_part})
        slices[cut.name] = {"title": cut.title, "by": cut.by, "parts": parts}
    return {
        **_counts(p),
        "groups": standing.groups,
        "dropped_groups": standing.dropped_groups,
        "dropped_exposures": standing.dropped_exposures,
        "metrics": metrics,
        "calibration": {
            name: getattr(curve, name).tolist() for name in ("probability", "observed", "rows", "low", "high")
        },
        "slices": slices,
    }


def _list_names(predictions: Predictions, lists: Sequence[str]) -> list[tuple[int, str]]:
    used = np.unique(predictions.list_id)
    if len(used) and int(used.max()) >= len(lists):
        raise DataError(
            f"lists must name every list_id, predictions hold {int(used.max())} but only {len(lists)} names came; "
            "pass the protocol's lists"
        )
    return [(int(i), lists[int(i)]) for i in used]


def evaluate(
    predictions: Predictions,
    *,
    lists: Sequence[str],
    item_counts: Array | None = None,
    categories: Array | None = None,
    time_zone: str = "UTC",
    start_ms: int | None = None,
    ks: Sequence[int] = KS,
    draws: int = DRAWS,
    seed: int = 0,
    bins: int = calibration.BINS,
) -> dict[str, Any]:
    """Measure one run on one split: per candidate list, and all lists together.

    The result holds `headline` (list -> GAUC by request), `lists` and `overall`; each of these blocks has counts,
    `metrics` (name -> value, low, high), `calibration` and `slices`. What does not exist is null, never NaN.

    Args:
        predictions: scored candidates, best passed through `with_log_facts` first.
        lists:       names of the protocol's candidate lists, indexed by list_id.
        item_counts: (num_items,) training counts, for novelty; see `predictions.training_counts`.
        categories:  (num_items, K) category path, coarse to fine, for diversity.
        time_zone:   of the week slices.
        start_ms:    first moment of the split, where week 1 starts; default the first request.
        ks:          cut-offs of the top-k measures.
        draws:       resamples of the bootstrap over users.
        seed:        of the resampling.
        bins:        of the reliability curve.
    """
    if len(predictions) == 0:
        raise DataError("predictions must hold at least one row, got none; was the split empty?")

    def block(p: Predictions) -> dict[str, Any]:
        cuts = standard_slices(p, start_ms=start_ms, time_zone=time_zone)
        return _block(p, cuts, categories=categories, item_counts=item_counts, ks=ks, draws=draws, seed=seed, bins=bins)

    names = _list_names(predictions, lists)
    blocks = {name: block(predictions.take(predictions.list_id == i)) for i, name in names}
    overall = block(predictions) if len(names) > 1 else next(iter(blocks.values()))
    return _plain(  # type: ignore[no-any-return]
        {
            "format_version": FORMAT_VERSION,
            "headline": {name: b["metrics"][HEADLINE]["value"] for name, b in blocks.items()},
            "settings": {
                "ks": list(ks),
                "draws": draws,
                "seed": seed,
                "bins": bins,
                "gauc_weight": "exposures",
                "gauc_one_class_groups": "dropped",
                "ties": "half a win in AUC; expected value under random order in top-k measures",
                "intervals": "95 % percentile bootstrap, users resampled; AUC: cluster-robust normal",
            },
            "lists": blocks,
            "overall": overall,
        }
    )


def _rows_key(p: Predictions) -> Array:
    order = np.lexsort((p.label, p.item, p.list_id, p.request))
    return np.stack([p.request, p.list_id, p.item, p.label.astype(np.int64)], 1)[order]


def check_same_rows(runs: Mapping[str, Sequence[Predictions]]) -> None:
    """Refuse runs that were not measured on the same candidates of the same requests."""
    first_name, first = next(((name, ps[0]) for name, ps in runs.items() if ps), (None, None))
    if first is None or any(not ps for ps in runs.values()):
        raise SpecError("runs must hold predictions of at least one seed each, one has none")
    wanted = _rows_key(first)
    for name, seeds in runs.items():
        for place, p in enumerate(seeds):
            if len(p) != len(first) or not np.array_equal(_rows_key(p), wanted):
                raise DataError(
                    f"runs must be measured on the same requests and candidates, {name} (seed number {place}) differs "
                    f"from {first_name}: {len(p)} rows against {len(first)}; evaluate both on one prepared folder"
                )


def compare_runs(
    runs: Mapping[str, Sequence[Predictions]],
    *,
    lists: Sequence[str],
    measures: Sequence[str] = COMPARED,
    baseline: str | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    alpha: float = ALPHA,
) -> dict[str, Any]:
    """Set runs against each other: per list and measure the mean over seeds with its interval, and who beats whom.

    Holm's correction runs, for each measure, over all pairs and all lists of this call.

    Args:
        runs:     name -> predictions by seed; all over the same rows. One seed stands for all (rules).
        lists:    names of the protocol's candidate lists.
        measures: names for `measures.measure`.
        baseline: tests every other run against this one.
        pairs:    tests these (A, B) instead; without baseline and pairs, every two runs are tested.
        draws:    resamples over users, common to all runs.
        seed:     of the resampling.
        alpha:    level of the table.
    """
    check_same_rows(runs)
    names = list(runs)
    if baseline is not None and baseline not in runs:
        raise SpecError(f"baseline must be one of the runs, got {baseline!r}.{did_you_mean(baseline, names)}")
    if pairs is None:
        if baseline is not None:
            pairs = [(name, baseline) for name in names if name != baseline]
        else:
            pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    kinds = [measure(name) for name in measures]
    first = runs[names[0]][0]
    list_names = _list_names(first, lists)
    drawn: dict[str, dict[str, dict[str, RunDraws]]] = {}
    for list_id, list_name in list_names:
        users = np.unique(first.user[first.list_id == list_id])
        sums: dict[str, dict[str, list[Array]]] = {kind.name: {name: [] for name in names} for kind in kinds}
        for name, seeds in runs.items():
            for p in seeds:
                owned = measure_terms(p.take(p.list_id == list_id), measures)
                for measured, o in owned.items():
                    sums[measured][name].append(user_sums(o.terms, o.user, users))
        flat = {(measured, name): s for measured, by_run in sums.items() for name, s in by_run.items()}
        all_draws = bootstrap_runs(flat, draws=draws, seed=seed)
        drawn[list_name] = {kind.name: {name: all_draws[kind.name, name] for name in names} for kind in kinds}
    out: dict[str, Any] = {name: {} for _, name in list_names}
    for kind in kinds:
        raw = [
            compare_pair(a, b, drawn[name][kind.name], larger_is_better=kind.larger_is_better, seed=seed, alpha=alpha)
            for _, name in list_names
            for a, b in pairs
        ]
        tested = iter(corrected(raw, alpha=alpha))
        for _, name in list_names:
            standing = {}
            for run, of_run in drawn[name][kind.name].items():
                interval = run_interval(of_run, seed=seed, level=1 - alpha)
                standing[run] = {
                    "per_seed": of_run.values.tolist(),
                    "mean": interval.value,
                    "spread": float(of_run.values.std(ddof=1)) if len(of_run.values) > 1 else None,
                    "low": interval.low,
                    "high": interval.high,
                }
            out[name][kind.name] = {
                "title": kind.title,
                "larger_is_better": kind.larger_is_better,
                "runs": standing,
                "comparisons": [asdict(next(tested)) for _ in pairs],
            }
    return _plain(  # type: ignore[no-any-return]
        {
            "format_version": FORMAT_VERSION,
            "settings": {
                "draws": draws,
                "seed": seed,
                "alpha": alpha,
                "baseline": baseline,
                "pairs": len(pairs),
                "correction": "Holm over all pairs and lists of a measure",
                "rule": "corrected p below alpha, interval above 0, all seeds agree in sign",
            },
            "lists": out,
        }
    )


__all__ = ["COMPARED", "FORMAT_VERSION", "KS", "check_same_rows", "compare_runs", "evaluate"]
