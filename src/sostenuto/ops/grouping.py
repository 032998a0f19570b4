"""Groups of bounded size: split where they are too large, by one column after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 8  # of moving centres, per level
NODE_ITEMS = 2  # a node with fewer items is not split


def split_groups(group: Tensor, columns: Sequence[Tensor], rank: Tensor, most: int) -> Tensor:
    """Return (N,) group numbers from 0, refining `group` until none holds more than `most`.

    A group that is too large is split by the values of the first column, then what still is too large by the second,
    and so on; at last it is cut into runs of `most` in the order of `rank`.

    Args:
        group: (N,) int64, any numbers.
        columns: (N,) int64 each, coarse to fine.
        rank: (N,) int64, all different.
        most: at least 1.
    """
    ids: Tensor = torch.unique(group, return_inverse=True)[1]
    for column in (*columns, None):
        large = (torch.bincount(ids)[ids] > most).nonzero().squeeze(1)
        if not large.numel():
            break
        if column is None:
            order = large[rank[large].argsort()]
            order = order[ids[order].sort(stable=True).indices]
            of = ids[order]
            starts = torch.ones_like(of, dtype=torch.bool)
            starts[1:] = of[1:] != of[:-1]
            places = torch.arange(of.shape[0], device=of.device)
            first = places[starts][starts.cumsum(0) - 1]
            part, large = (places - first) // most, order
        else:
            part = torch.unique(column[large], return_inverse=True)[1]
        fine = ids[large] * (int(part.max()) + 1) + part
        ids = ids.index_put((large,), int(ids.max()) + 1 + torch.unique(fine, return_inverse=True)[1])
    numbered: Tensor = torch.unique(ids, return_inverse=True)[1]
    return numbered


def halving_tree(vectors: Tensor, levels: int) -> Tensor:
    """Split vectors in two, then each half in two, and so on: 2-means at every node of a tree.

    The centres of a node start at the vector farthest from its mean and at the one farthest from that. Nothing is
    random, and the order of the vectors decides between equally far ones only.

    Args:
        vectors: (I, V).
        levels: T, at most 62.

    Returns:
        (I,) int64 of T bits, the first split highest: vectors that share their first t bits share a node of level t.
    """
    points = vectors.double()
    code = torch.zeros(points.shape[0], dtype=torch.int64, device=points.device)
    for _ in range(levels):
        node = torch.unique(code, return_inverse=True)[1]
        count = torch.bincount(node)
        mean = _sums(points, node, len(count)) / count[:, None]
        first = points[_farthest(points, mean, node)]
        centres = torch.stack([first, points[_farthest(points, first, node)]], 1)  # (G, 2, V)
        side = _nearer(points, centres, node)
        for _ in range(ROUNDS):
            both = 2 * node + side
            size = torch.bincount(both, minlength=2 * len(count)).view(-1, 2)
            sums = _sums(points, both, 2 * len(count)).view(-1, 2, points.shape[1])
            moved = torch.where((size > 0)[:, :, None], sums / size.clamp(min=1)[:, :, None], centres)
            again = _nearer(points, moved, node)
            if torch.equal(again, side):
                break
            centres, side = moved, again
        code = 2 * code + torch.where(count[node] >= NODE_ITEMS, side, 0)
    return code


def _sums(points: Tensor, node: Tensor, nodes: int) -> Tensor:
    return points.new_zeros(nodes, points.shape[1]).index_add(0, node, points)


def _farthest(points: Tensor, centre: Tensor, node: Tensor) -> Tensor:
    """Return (G,) of every node the vector farthest from its centre, the first of equals."""
    distance = (points - centre[node]).square().sum(1)
    most = distance.new_zeros(centre.shape[0]).scatter_reduce(0, node, distance, "amax")
    places = torch.arange(points.shape[0], device=points.device)
    there = torch.where(distance == most[node], places, points.shape[0])
    return there.new_full((centre.shape[0],), points.shape[0]).scatter_reduce(0, node, there, "amin")


def _nearer(points: Tensor, centres: Tensor, node: Tensor) -> Tensor:
    """Return (I,) int64, 1 where the second centre of a vector's node is nearer."""
    first, second = ((points - centres[node, side]).square().sum(1) for side in range(2))
    return (second < first).long()


__all__ = ["halving_tree", "split_groups"]
