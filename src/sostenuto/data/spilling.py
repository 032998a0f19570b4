"""Events on disk between reading and the final arrays: what keeps memory bounded.

First the log is spilled in its own order, as records of fixed width. Then users are cut into ranges that fit into
memory, each range is sorted by user and time, and the sorted columns are written one range after another.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.data.prepared import Array

KEYS_AT_ONCE = 1 << 22  # int64 keys that `sorted_keys` holds, three copies at its peak
SORT_COPIES = 6  # copies of a record that sorting a range holds at its peak, measured generously


class ArrayFile:
    """A one-dimensional .npy file of known length, written front to back without mapping it."""

    def __init__(self, path: Path, dtype: npt.DTypeLike, length: int) -> None:
        self.dtype, self.length, self._written = np.dtype(dtype), length, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: Array) -> None:
        """Write the next values."""
        np.ascontiguousarray(values, self.dtype).tofile(self._file)
        self._written += len(values)

    def close(self) -> None:
        """Finish the file; it must be full."""
        self._file.close()
        assert self._written == self.length, (self._written, self.length)


class Spill:
    """A file of fixed-width records, appended and read back in pieces."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype, self.length = path, dtype, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def append(self, records: Array) -> None:
        """Write records behind those before."""
        if len(records):
            with self.path.open("ab") as file:
                np.ascontiguousarray(records).tofile(file)
            self.length += len(records)

    def pieces(self, records: int) -> Iterator[Array]:
        """Yield the records in order, at most `records` at once."""
        with self.path.open("rb") as file:
            while len(piece := np.fromfile(file, self.dtype, records)):
                yield piece

    def part(self, start: int, stop: int) -> Array:
        """Return the records start .. stop."""
        return np.fromfile(self.path, self.dtype, stop - start, offset=start * self.dtype.itemsize)

    def all(self) -> Array:
        """Return all records."""
        return np.fromfile(self.path, self.dtype)

    def remove(self) -> None:
        """Give the disk space back."""
        self.path.unlink()


def records_of(columns: Mapping[str, Array], dtype: np.dtype[Any]) -> Array:
    """Put columns side by side as records."""
    records = np.empty(len(next(iter(columns.values()))), dtype)
    for name, column in columns.items():
        records[name] = column
    return records


def user_ranges(counts: Array, most: int) -> Array:
    """Cut users into ranges of at most `most` events each (one user may exceed it).

    Args:
        counts: (U,) events per user.
    Returns:
        (P + 1,) bounds: range p holds users bounds[p] .. bounds[p + 1].
    """
    ends = np.cumsum(counts, dtype=np.int64)
    bounds = [0]
    while bounds[-1] < len(counts):
        before = ends[bounds[-1] - 1] if bounds[-1] else 0
        bounds.append(max(int(np.searchsorted(ends, before + most, side="right")), bounds[-1] + 1))
    return np.array(bounds, np.int64)


def mixed(values: Array) -> Array:
    """Return a well-mixed uint64 of each uint64 (the finaliser of splitmix64); wraps by design."""
    with np.errstate(over="ignore"):
        x = values + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def content_hash(columns: list[Array], seed: int) -> Array:
    """Return a uint64 per row that depends on the seed and on what the row says, never on where it stood."""
    state = mixed(np.full(len(columns[0]), np.uint64(seed % 2**64)))
    for column in columns:
        bits = column.view(np.uint32) if column.dtype == np.float32 else column
        state = mixed(state ^ bits.astype(np.int64).view(np.uint64))
    return state


def order_events(columns: Mapping[str, Array], seed: int, *, content: list[str]) -> Array:
    """Return the order by user and time; events of one user and one time in a random order drawn by the seed.

    The random order is that of a hash of `content`, so it does not depend on how the log was cut or arranged; rows
    that say the same are interchangeable.
    """
    user, time_ms = columns["user"], columns["time_ms"]
    if not len(user):
        return np.zeros(0, np.int64)
    first_user, first_time = int(user.min()), int(time_ms.min())
    time_span, user_span = int(time_ms.max()) - first_time + 1, int(user.max()) - first_user + 1
    if time_span * user_span < 2**63:
        key = (user.astype(np.int64) - first_user) * time_span + (time_ms - first_time)
        order = np.argsort(key)
        sorted_key = key[order]
        same = sorted_key[1:] == sorted_key[:-1]
    else:
        order = np.lexsort((time_ms, user))
        same = (user[order][1:] == user[order][:-1]) & (time_ms[order][1:] == time_ms[order][:-1])
    tied = np.zeros(len(order), bool)
    tied[1:] |= same
    tied[:-1] |= same
    places = np.flatnonzero(tied)
    if len(places):
        rows = order[places]
        run = np.cumsum(~np.concatenate(([False], same)))[places]  # which run of ties each row is in
        chosen = [columns[name][rows] for name in content]
        order[places] = rows[np.lexsort((content_hash([user[rows], time_ms[rows], *chosen], seed), run))]
    return order


def sorted_keys(pieces: Iterable[Array], total: int, path: Path, *, most: int = KEYS_AT_ONCE) -> Array:
    """Return int64 keys in order: in memory where there are at most `most`, else mapped from the file `path`.

    Sorted runs of `most` keys are spilled; evenly spaced keys of all runs then cut the keys into ranges of at most
    `most` (more only where so many are equal), each of which is read, sorted and written.

    Args:
        pieces: the keys, in any order and cut.
        total:  how many there are.
        path:   file to make where they are many; `<path>.runs` lies beside it meanwhile.
    """
    if total <= most:
        return np.sort(np.concatenate([np.zeros(0, np.int64), *pieces]))
    path.unlink(missing_ok=True)  # never cut short: an earlier file may still be mapped
    runs = Spill(path.with_name(f"{path.name}.runs"), np.dtype(np.int64))
    num_runs = -(-total // most)
    step = max(most // (2 * num_runs), 1)
    spaced = []
    for run in _runs(pieces, most):
        run.sort()
        runs.append(run)
        spaced.append(run[::step].copy())
    assert runs.length == total, (runs.length, total)
    cuts = np.sort(np.concatenate(spaced))[num_runs::num_runs]
    del spaced
    mapped = np.memmap(runs.path, np.int64, "r")
    starts = range(0, total, most)
    edges = np.array([start + np.searchsorted(mapped[start : start + most], cuts) for start in starts])
    edges = np.column_stack((list(starts), edges, [min(start + most, total) for start in starts]))
    del mapped
    ordered = Spill(path, np.dtype(np.int64))
    for low, high in zip(edges.T[:-1].tolist(), edges.T[1:].tolist(), strict=True):
        ordered.append(np.sort(np.concatenate([runs.part(a, b) for a, b in zip(low, high, strict=True)])))
    runs.remove()
    return np.asarray(np.memmap(path, np.int64, "r"))


def _runs(pieces: Iterable[Array], most: int) -> Iterator[Array]:
    """Yield the keys in runs of `most`, the last perhaps shorter; each run is overwritten by the next."""
    run, filled = np.empty(most, np.int64), 0
    for piece in pieces:
        done = 0
        while done < len(piece):
            taken = min(most - filled, len(piece) - done)
            run[filled : filled + taken] = piece[done : done + taken]
            filled, done = filled + taken, done + taken
            if filled == most:
                yield run
                filled = 0
    if filled:
        yield run[:filled]


def sync_tree(folder: Path) -> None:
    """Force every file and folder below `folder` to the disk."""
    for path in [*sorted(folder.rglob("*")), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


__all__ = [
    "KEYS_AT_ONCE",
    "SORT_COPIES",
    "ArrayFile",
    "Spill",
    "content_hash",
    "mixed",
    "order_events",
    "records_of",
    "sorted_keys",
    "sync_tree",
    "user_ranges",
]
