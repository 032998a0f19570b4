"""How well a ranker's representation of candidates tells one label from the other, before any tower reads it.

The analysis of DARE (arXiv:2410.02604): vectors of candidates are clustered by mini-batch k-means, labels unseen; what
the cluster says of the label is the mutual information of the two. The more of it, and the fewer clusters it takes,
the better the representation separates.

Differs from the paper: counting alone finds information where there is none, about (clusters - 1) / (2 N ln 2) bits of
N candidates. So the same clusters are counted with labels in random order as well, and that mean is told and taken off.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sostenuto.evaluation.terms import Array
from sostenuto.features.loading import RequestLoader, sample_rows
from sostenuto.schema.errors import MissingExtra, SpecError

if TYPE_CHECKING:
    from sostenuto.features.collation import Collator

CLUSTERS = (2, 5, 10, 20, 50, 100, 200, 500, 1_000)  # of the paper: 2 to 1,000
PERMUTATIONS = 20
BATCH = 4_096  # rows of a k-means step
LEAST = 2  # candidates of a cluster, on average


def cluster_information(cluster: Array, label: Array) -> float:
    """Return the bits that the cluster says of the label, counted; at most the entropy of the label.

    Args:
        cluster: (N,) int64, from 0.
        label:   (N,) bool.

    >>> cluster_information(np.array([0, 0, 1, 1]), np.array([False, False, True, True]))
    1.0
    """
    counts = np.bincount(cluster * 2 + label, minlength=2 * (int(cluster.max(initial=0)) + 1)).reshape(-1, 2)
    joint = counts / max(counts.sum(), 1)
    alone = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    known = joint > 0
    return max(0.0, float((joint[known] * np.log2(joint[known] / alone[known])).sum()))  # no rounding below 0


def chance_information(cluster: Array, label: Array, *, permutations: int, seed: int) -> float:
    """Return the mean of `cluster_information` over random orders of the labels: what counting finds in nothing."""
    rng = np.random.default_rng(seed)
    return float(np.mean([cluster_information(cluster, rng.permutation(label)) for _ in range(permutations)]))


def clustered(vectors: Array, count: int, *, seed: int) -> Array:
    """Return the (N,) cluster of (N, D) vectors, by mini-batch k-means.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtra(
            "clusters of a representation need the extra 'analysis', which is not installed; "
            "run `pip install 'sostenuto[analysis]'`"
        )
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(
        count, batch_size=BATCH, init_size=max(3 * count, BATCH), n_init=3, random_state=seed, compute_labels=True
    )
    found: Array = means.fit(vectors).labels_.astype(np.int64)
    return found


def label_separation(
    vectors: Array, label: Array, clusters: Sequence[int], *, permutations: int = PERMUTATIONS, seed: int = 0
) -> list[dict[str, float]]:
    """Return, per number of clusters, `bits` as counted, `chance`, and `corrected`, the difference.

    Where clusters decide the label nothing is left to chance, and `corrected` is too low: it is the cautious one.

    Args:
        vectors:      (N, D).
        label:        (N,) bool.
        clusters:     numbers of clusters, each at most N / 2.
        permutations: of the labels, for `chance`.
        seed:         of k-means and permutations.
    """
    if not clusters or min(clusters) < 2 or max(clusters) * LEAST > len(vectors):
        raise SpecError(
            f"clusters must be 2 to half the candidates, {len(vectors) // LEAST:,}, got "
            f"{', '.join(map(str, clusters)) or 'none'}; take fewer of them, or more requests"
        )
    points = []
    for count in clusters:
        cluster = clustered(vectors, count, seed=seed)
        bits = cluster_information(cluster, label)
        chance = chance_information(cluster, label, permutations=permutations, seed=seed)
        points.append({"bits": bits, "chance": chance, "corrected": bits - chance})
    return points


def discriminability(
    ranker: Any,
    collator: Collator,
    *,
    split: str = "test",
    requests: int = 2_000,
    clusters: Sequence[int] = (),
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure what clusters of a ranker's representations say of the labels.

    Args:
        ranker:       one that says what it makes of candidates (`represented`), in evaluation mode.
        collator:     of the data and view that it was trained with.
        split:        whose requests are read.
        requests:     at most so many, drawn by `seed`.
        clusters:     numbers of clusters; by default those of `CLUSTERS` that the candidates suffice for.
        permutations: of the labels, for the level of chance.
        seed:         of everything drawn.

    Returns:
        `candidates`, `entropy` of their labels in bits, and `points`: of each number of clusters, for each
        representation, information as counted, by chance, and corrected.
    """
    if not hasattr(ranker, "represented"):
        raise SpecError("the model must say how it represents candidates, this one does not; take a run of dare")
    vectors, label = _represented(ranker, collator, split, requests, seed)
    asked = tuple(clusters) or tuple(count for count in CLUSTERS if count * LEAST <= len(label))
    columns = {
        name: label_separation(rows, label, asked, permutations=permutations, seed=seed)
        for name, rows in vectors.items()
    }
    share = float(label.mean()) if len(label) else 0.0
    entropy = -sum(p * np.log2(p) for p in (share, 1 - share) if p > 0)
    return {
        "split": split,
        "candidates": len(label),
        "permutations": permutations,
        "entropy": float(entropy),
        "points": [
            {"clusters": count} | {f"{name}_{what}": v for name, of in columns.items() for what, v in of[n].items()}
            for n, count in enumerate(asked)
        ],
    }


def _represented(
    ranker: Any, collator: Collator, split: str, requests: int, seed: int
) -> tuple[dict[str, Array], Array]:
    """Return the (N, D) representations of the candidates of some requests by name, and their (N,) bool labels."""
    import torch

    asked = collator.data.requests(split)
    loader = RequestLoader(collator, asked, sample_rows(asked, requests, seed), batch_requests=64)
    parts: dict[str, list[Array]] = {}
    labels = []
    for batch in loader:
        with torch.no_grad():
            found = ranker.represented(ranker.encode(batch.histories), batch.candidates, batch.context)
        for name, rows in found.items():
            parts.setdefault(name, []).append(rows.float().cpu().numpy())
        labels.append(batch.labels.cpu().numpy() > 0.5)
    joined = {name: np.concatenate(rows) for name, rows in parts.items()}
    return joined, np.concatenate(labels) if labels else np.zeros(0, bool)


__all__ = ["CLUSTERS", "chance_information", "cluster_information", "discriminability", "label_separation"]
