"""Items that go together: for each item those that share its occasions, made once when a bundle is exported.

An occasion is a run of one user's events without a long gap: a basket, a visit. Similarity of two items is the number
of occasions that hold both, over sqrt(occasions of the one * occasions of the other) + a constant that keeps rare pairs
small; a cosine with shrinkage. Where most events stand alone in their occasion (a purchase a month), occasions are
blocks of consecutive events instead. Ours.

A pair counts only when it was seen on several occasions, so that the table says what users do and not what one did.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.features.cooccurrence import training_events
from sostenuto.schema.features import FIRST_KNOWN, PADDING

if TYPE_CHECKING:
    from sostenuto.data.prepared import PreparedData
    from sostenuto.schema.features import FeatureSpec

Array = npt.NDArray[Any]

TOGETHER = "together.safetensors"
ITEMS_AT_ONCE = 2_048  # rows of the product held in memory at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class TogetherConfig:
    """How the table is made."""

    gap_ms: int = 6 * 3_600_000  # a longer gap between two events ends an occasion
    most_events: int = 100  # of one occasion; a longer one is cut: pairs grow with the square
    block: int = 20  # events of an occasion where most stand alone
    least_occasions: int = 3  # that hold a pair
    shrink: float = 10.0  # occasions
    neighbours: int = 32  # kept per item

    def __post_init__(self) -> None:
        for name in ("gap_ms", "most_events", "block", "least_occasions", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"TogetherConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.shrink < 0:
            raise ValueError(f"TogetherConfig.shrink must not be negative, got {self.shrink}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Neighbours of items, nearest first. Rows end where the items do that a table is worth while for."""

    item: Array  # (R, K) int32 item indices; 0 behind the last
    weight: Array  # (R, K) float32 in [0, 1), falling; 0 behind the last

    def of(self, items: Array) -> tuple[Array, Array]:
        """Return neighbours (N, K) and weights (N, K) of (N,) items; none where the table has no row."""
        inside = np.where(items < len(self.item), items, PADDING)  # padding has no neighbours
        return self.item[inside], self.weight[inside]


DEFAULT = TogetherConfig()


def occasions(offsets: Array, time_ms: Array, config: TogetherConfig = DEFAULT) -> Array:
    """Return (N,) rising numbers of the occasion that each event belongs to.

    Args:
        offsets: (U + 1,) of the users' events.
        time_ms: (N,) never decreasing inside a user.
        config:  what an occasion is.
    """
    new_user = np.zeros(len(time_ms), np.bool_)
    new_user[offsets[:-1][np.diff(offsets) > 0]] = True
    starts = new_user | (np.diff(time_ms, prepend=time_ms[:1]) > config.gap_ms)
    size = np.bincount(np.cumsum(starts) - 1) if len(starts) else np.zeros(0, np.int64)
    if size[size > 1].sum() * 2 >= len(time_ms):
        return _cut(starts, config.most_events)
    return _cut(new_user, config.block)


def _cut(starts: Array, most: int) -> Array:
    """Return the numbers of runs that begin where `starts` says, cut into pieces of at most `most`."""
    at = np.arange(len(starts))
    since = at - np.maximum.accumulate(np.where(starts, at, 0)) if len(starts) else at
    return np.cumsum(starts | (since % most == 0)) - 1


def together_of(occasion: Array, item: Array, num_rows: int, config: TogetherConfig = DEFAULT) -> Together:
    """Count pairs.

    Args:
        occasion: (N,) int64 of each event.
        item:     (N,) int64.
        num_rows: R; items from there on are left out, and so are padding and unknown.
        config:   what counts.
    """
    import scipy.sparse as sparse

    width = min(config.neighbours, num_rows)
    found = Together(item=np.zeros((num_rows, width), np.int32), weight=np.zeros((num_rows, width), np.float32))
    kept = (item >= FIRST_KNOWN) & (item < num_rows)
    if not kept.any():
        return found
    count = int(occasion.max()) + 1
    joint = np.unique(item[kept].astype(np.int64) * count + occasion[kept])  # an item counts once per occasion
    row, column = np.divmod(joint, count)
    held = sparse.csr_matrix((np.ones(len(joint), np.float32), (row, column)), shape=(num_rows, count))
    by_occasion = held.T.tocsr()
    times = np.bincount(row, minlength=num_rows).astype(np.float64)
    for start in range(0, num_rows, ITEMS_AT_ONCE):
        pairs = (held[start : start + ITEMS_AT_ONCE] @ by_occasion).tocoo()
        one, other, both = pairs.row + start, pairs.col, pairs.data
        wanted = (one != other) & (both >= config.least_occasions)
        one, other, both = one[wanted], other[wanted], both[wanted].astype(np.float64)
        weight = (both / (np.sqrt(times[one] * times[other]) + config.shrink)).astype(np.float32)
        order = np.lexsort((other, -weight, one))  # equal weights: the more frequent item, which has the lower index
        one, other, weight = one[order], other[order], weight[order]
        place = np.arange(len(one)) - np.searchsorted(one, one)
        near = place < width
        found.item[one[near], place[near]] = other[near]
        found.weight[one[near], place[near]] = weight[near]
    return found


def together_from(data: PreparedData, config: TogetherConfig = DEFAULT) -> Together:
    """Return the table of prepared data, from the events that statistics of training may use."""
    b = data.behaviours
    lawful = training_events(data)
    user = np.repeat(np.arange(len(b.offsets) - 1), np.diff(b.offsets))[lawful]
    offsets = np.searchsorted(user, np.arange(len(b.offsets)))
    occasion = occasions(offsets, np.asarray(b.time_ms)[lawful], config)
    return together_of(occasion, np.asarray(b.item, np.int64)[lawful], data.features.num_vector_items, config)


def write_together(data: PreparedData, folder: Path, config: TogetherConfig = DEFAULT) -> None:
    """Write the table of prepared data into the folder of a bundle."""
    from safetensors.numpy import save_file

    table = together_from(data, config)
    save_file({"item": table.item, "weight": table.weight}, folder / TOGETHER)


def read_together(folder: Path, features: FeatureSpec) -> Together:
    """Read what `write_together` wrote.

    Raises:
        ValueError: it is none.
    """
    from safetensors.numpy import load_file

    arrays = load_file(folder / TOGETHER)
    item, weight = arrays["item"], arrays["weight"]
    if item.dtype != np.int32 or weight.dtype != np.float32 or item.ndim != 2 or item.shape != weight.shape:
        raise ValueError("item and weight must be int32 and float32 of one shape")
    if not 0 < len(item) <= features.num_items or item.min(initial=0) < 0 or item.max(initial=0) >= len(item):
        raise ValueError(f"neighbours must be items below {len(item):,}, of {features.num_items:,}")
    if item[:FIRST_KNOWN].any() or not np.isfinite(weight).all():
        raise ValueError("padding and unknown have no neighbours, and weights are finite")
    return Together(item=item, weight=weight)


__all__ = [
    "TOGETHER",
    "Together",
    "TogetherConfig",
    "occasions",
    "read_together",
    "together_from",
    "together_of",
    "write_together",
]
