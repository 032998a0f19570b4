"""Strategies and small worlds shared by the tests of evaluation."""

import numpy as np
from hypothesis import strategies as st

from sostenuto.evaluation.predictions import Predictions


@st.composite
def labelled(draw, *, max_rows=40, max_groups=5):
    """Labels, scores with many ties and extremes, groups in any order."""
    rows = draw(st.integers(1, max_rows))
    few = st.sampled_from([-3.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1e30, -1e30])
    some = st.floats(-30, 30, width=32)
    scores = draw(st.lists(draw(st.sampled_from([few, some])), min_size=rows, max_size=rows))
    labels = draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))
    group = draw(st.lists(st.integers(-2, max_groups), min_size=rows, max_size=rows))
    return np.array(labels, np.float32), np.array(scores, np.float64), np.array(group)


def make_predictions(*, requests=60, users=15, seed=0, noise=1.0, signal=1.5, lists=2, model_seed=0) -> Predictions:
    """Requests of some users; the same rows for every `noise`, `signal` and `model_seed`."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 15, requests * lists)
    request = np.repeat(np.repeat(np.arange(requests), lists), sizes)
    list_id = np.repeat(np.tile(np.arange(lists), requests), sizes)
    rows = len(request)
    user = rng.integers(2, users + 2, requests)
    label = (rng.random(rows) < 0.3).astype(np.float32)
    length = rng.integers(0, 300, requests)
    item = rng.integers(2, 50, rows)
    count = 1000 // item
    easy = rng.normal(size=rows)
    logit = signal * label - 1.5 + 0.3 * easy
    logit = logit + noise * np.random.default_rng((seed, model_seed)).normal(size=rows)
    return Predictions(
        request=request,
        user=user[request],
        list_id=list_id,
        item=item,
        label=label,
        logit=logit,
        time_ms=(1_500_000_000_000 + rng.integers(0, 20 * 86_400_000, requests))[request],
        seen_length=length[request],
        history_length=length[request],
        prior_count=rng.integers(0, 3, rows),
        item_count=count,
        is_new_item=count < 25,
    )
