"""Priors of a prepared data set: groups of items, actions or users, found in item tables or in the training log."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.array_cache import keep_arrays, kept_arrays
from sostenuto.features.cooccurrence import training_events
from sostenuto.schema.errors import MissingExtra
from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.schema.priors import PriorConfig, Priors, category_level, num_groups, tag_field

if TYPE_CHECKING:
    from sostenuto.data.prepared import PreparedData

Array = npt.NDArray[Any]

NEIGHBOURS = 20  # edges kept per node of a graph, the heaviest; more only slows the search for communities
HOLDERS = 2_000  # users of one item (items of one user) that are made into pairs, at most
BLOCK = 1_024  # rows of the graph made at once: bounds memory
SMOOTHING = 20.0  # behaviours' worth of doubt about which users meet an item
SEED = 0
COMMUNITIES_VERSION = 1  # raise it when equal data would give other communities: it names the cache


def priors_of(data: PreparedData, config: PriorConfig) -> Priors:
    """Return the tables of a prior. Statistics are of training events alone (`training_events`).

    Raises:
        SpecError: the data have no such level, field or action.
        MissingExtra: communities are asked for without the extra `graphs`.
    """
    features = data.features
    count = num_groups(config, features)
    at = np.flatnonzero(training_events(data))
    item = np.asarray(data.behaviours.item)[at].astype(np.int64)
    items = np.ones((features.num_items, count), bool)
    actions = np.ones((features.num_actions, count), bool)
    evidence = np.zeros((features.num_items, count), np.float32)
    names = [f"group {n}" for n in range(count)]
    held: Array | None = None  # (N, C) compatibility of the training events, where items do not tell
    if config.source == "category":
        level = category_level(config, features)
        values = data.item_category[:, level : level + 1]
        items, names = _most_frequent(values, item, count, _words(data, features.categories[level].name))
    elif config.source == "tags":
        field = tag_field(config, features)
        column = data.item_field(field.name)
        values = column[:, None] if column.ndim == 1 else column
        items, names = _most_frequent(values, item, count, _words(data, field.name))
    elif config.source == "action":
        did = np.asarray(data.behaviours.action)[at].astype(np.int64)
        table = np.arange(features.num_actions)[:, None]
        actions, names = _most_frequent(table, did, count, _words(data, "action"))
        held = actions[did]
    elif config.source in {"graph", "user"}:
        user = np.searchsorted(np.asarray(data.behaviours.offsets), at, side="right") - 1
        if config.source == "graph":
            items = _one_hot(_communities_of(data, config, user, item, features.num_items), count)
        else:
            users = _communities_of(data, config, item, user, len(data.behaviours.offsets) - 1)
            known = (users[user] >= 0) & (users[user] < count)
            evidence = _evidence(item[known], users[user[known]], features.num_items, count)
            held = _one_hot(users, count)[user]
    if config.scramble == "shuffle":
        shuffled = FIRST_KNOWN + np.random.default_rng(SEED).permutation(len(items) - FIRST_KNOWN)
        items = np.concatenate([items[:FIRST_KNOWN], items[shuffled]])
    elif config.scramble == "all":
        items = np.ones_like(items)
    compatible = items[item] if held is None else held
    known = np.arange(len(items)) < features.num_item_rows
    known[:FIRST_KNOWN] = False
    members = np.concatenate([items, np.ones((len(items), 1), bool)], 1) & known[:, None]
    return _tables(names, compatible.sum(0), items, actions, evidence, members, config.anchors)


def _tables(
    names: list[str], count: Array, items: Array, actions: Array, evidence: Array, members: Array, anchors: int
) -> Priors:
    import torch

    generator = np.random.default_rng(SEED)
    drawn = np.zeros((members.shape[1], anchors), np.int64)
    for group, own in enumerate(members.T):
        if own.any():
            drawn[group] = generator.choice(np.flatnonzero(own), anchors)
    share = count / count.sum() if count.sum() else np.full(len(count), 1 / len(count))
    return Priors(
        names=tuple(names),
        share=torch.from_numpy(share.astype(np.float32)),
        items=torch.from_numpy(np.ascontiguousarray(items)),
        actions=torch.from_numpy(np.ascontiguousarray(actions)),
        evidence=torch.from_numpy(evidence),
        size=torch.from_numpy(members.sum(0).astype(np.float32)),
        anchors=torch.from_numpy(drawn),
    )


def _words(data: PreparedData, name: str) -> list[str]:
    path = data.folder / "vocab" / f"{name}.parquet"
    return data.vocabulary(name) if path.is_file() else []


def _most_frequent(values: Array, index: Array, count: int, words: list[str]) -> tuple[Array, list[str]]:
    """Return the (T, C) compatibility of T things with the most frequent of their values, and the values' names.

    Args:
        values: (T, V) of every thing, 0 and 1 for none.
        index:  (N,) which thing each training event was with.
        count:  C.
        words:  of the values; numbers where there are none.
    """
    size = int(values.max(initial=FIRST_KNOWN)) + 1
    occurrences = np.bincount(values[index].ravel(), minlength=size)
    occurrences[:FIRST_KNOWN] = -1
    chosen = np.argsort(-occurrences, kind="stable")[: min(count, size - FIRST_KNOWN)]
    table = (values[:, :, None] == chosen).any(1)
    table = np.pad(table, ((0, 0), (0, count - table.shape[1])))
    names = [words[value] if value < len(words) else str(value) for value in chosen.tolist()]
    names += [f"empty {n}" for n in range(len(chosen), count)]
    return _everything_somewhere(table), names


def _everything_somewhere(table: Array) -> Array:
    """Make what is in no group compatible with all."""
    return np.asarray(table | ~table.any(1, keepdims=True))


def _one_hot(community: Array, count: int) -> Array:
    return _everything_somewhere(community[:, None] == np.arange(count))


def _evidence(item: Array, group: Array, num_items: int, count: int) -> Array:
    """Return (num_items, C) float32 log p(item | group) - log p(item), smoothed towards 0."""
    met = np.zeros((num_items, count))
    np.add.at(met, (item, group), 1.0)
    share = (met.sum(0) + 1.0) / (met.sum() + count)
    found = np.log((met + SMOOTHING * share) / (met.sum(1, keepdims=True) + SMOOTHING) / share)
    return np.asarray(found, np.float32)


def _communities_of(data: PreparedData, config: PriorConfig, by: Array, node: Array, num_nodes: int) -> Array:
    """Return the communities of a prepared folder's graph, made once and kept in its `cache/`."""
    what = f"communities-v{COMMUNITIES_VERSION}-{data.manifest.arrays_hash[:16]}-{config.source}-{config.resolution}"
    path = data.folder / "cache" / f"{what}.npz"
    if (kept := kept_arrays(path, "community")) is not None:
        return kept[0]
    found = communities(by, node, num_nodes, config.resolution)
    keep_arrays(path, community=found)
    return found


def communities(by: Array, node: Array, num_nodes: int, resolution: float) -> Array:
    """Return (num_nodes,) community of each node, the largest community being 0; -1 for nodes without events.

    Two nodes are joined by how many `by` they share, over the root of the product of how many each has (cosine). Each
    keeps its heaviest `NEIGHBOURS` edges; communities are Louvain's (Blondel et al., 2008), of a fixed seed.

    Args:
        by, node:   (N,) of each event: (user, item) joins items by users, (item, user) users by items.
        num_nodes:  of the table that is returned.
        resolution: see `PriorConfig.resolution`.
    """
    if importlib.util.find_spec("networkx") is None:
        raise MissingExtra(
            "priors from graphs need the extra 'graphs', which is not installed; run `pip install 'sostenuto[graphs]'`"
        )
    import networkx

    edges = _edges(by, node, num_nodes)
    graph = networkx.Graph()
    graph.add_nodes_from(np.unique(node).tolist())
    graph.add_weighted_edges_from(edges)
    found = networkx.community.louvain_communities(graph, resolution=resolution, seed=SEED)
    out = np.full(num_nodes, -1, np.int64)
    for number, members in enumerate(sorted(found, key=lambda members: (-len(members), min(members)))):
        out[list(members)] = number
    return out


def _edges(by: Array, node: Array, num_nodes: int) -> list[tuple[int, int, float]]:
    import scipy.sparse as sparse

    pairs = np.unique(np.stack([by, node], 1), axis=0)
    generator = np.random.default_rng(SEED)
    order = generator.permutation(len(pairs))
    order = order[np.argsort(pairs[order, 0], kind="stable")]
    first = np.searchsorted(pairs[order, 0], pairs[order, 0])
    pairs = pairs[order[np.arange(len(order)) - first < HOLDERS]]  # at most so many of one `by`, drawn
    holders, row = np.unique(pairs[:, 0], return_inverse=True)
    table = sparse.csr_matrix(
        (np.ones(len(pairs), np.float32), (pairs[:, 1], row.reshape(-1))), shape=(num_nodes, len(holders))
    )
    degree = np.maximum(np.asarray(table.sum(1)).ravel(), 1.0)
    edges: dict[tuple[int, int], float] = {}
    for start in range(0, num_nodes, BLOCK):
        shared = (table[start : start + BLOCK] @ table.T).tocsr()
        for at in range(shared.shape[0]):
            a, span = start + at, slice(shared.indptr[at], shared.indptr[at + 1])
            other = shared.indices[span]
            weight = shared.data[span] / np.sqrt(degree[a] * degree[other])
            weight[other == a] = 0.0
            heaviest = np.lexsort((other, -weight))[:NEIGHBOURS]
            for b, w in zip(other[heaviest].tolist(), weight[heaviest].tolist(), strict=True):
                if w > 0:
                    edges[min(a, b), max(a, b)] = w
    return [(a, b, w) for (a, b), w in sorted(edges.items())]


__all__ = ["communities", "priors_of"]
