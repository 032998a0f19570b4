"""Find and open the compiled library, and decide once whether it is used.

The library is optional. `SOSTENUTO_BACKEND` says `auto` (the default: compiled where a library is there), `plain`
(torch only) or `native` (refuse to go on without it). `SOSTENUTO_PROCESSOR` holds it to an older instruction set
(`generic`, `avx2`, `avx512`), for tests and comparisons. `SOSTENUTO_NATIVE` names another folder of libraries.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from sostenuto.schema.errors import NoLibrary

VERSION = 13  # of the C interface; a library of another version is not used
FOLDER = Path(os.environ.get("SOSTENUTO_NATIVE") or Path(__file__).parent / "built")  # see building.py
LEVELS = {"generic": 0, "avx2": 2, "avx512": 3}  # what a processor must offer; see source/library.cpp
_P, _I, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class AttentionShape(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [
        *(
            (name, _I)
            for name in (
                "requests",
                "candidates",
                "behaviours",
                "dim",
                "units",
                "width",
                "with_key",
                "normalise",
                "threads",
            )
        ),
        *((name, _P) for name in ("query_offsets", "key_offsets")),
    ]


class AttentionInputs(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [
        (name, _P)
        for name in (
            "query",
            "query_hidden",
            "key",
            "key_hidden",
            "value",
            "w_key",
            "w_product",
            "w_above",
            "w_below",
            "bias",
        )
    ]


class AttentionOutputs(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [("out", _P), ("weights", _P), ("signs", _P)]


class AttentionGradients(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [
        (name, _P)
        for name in (
            "weights",
            "signs",
            "d_out",
            "d_weights",
            "d_query",
            "d_query_hidden",
            "d_key",
            "d_key_hidden",
            "d_value",
            "d_w_key",
            "d_w_product",
            "d_w_above",
            "d_w_below",
            "d_bias",
        )
    ]


class BucketShape(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [
        *((name, _I) for name in ("rows", "groups", "buckets", "sets", "width", "threads")),
        ("offsets", _P),
    ]


class InterestShape(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [
        *((name, _I) for name in ("rows", "groups", "buckets", "sets", "width", "parts", "threads")),
        *((name, _P) for name in ("offsets", "part_ends")),
    ]


class HashShape(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [(name, _I) for name in ("rows", "dim", "groups", "bits", "threads")]


class RowsShape(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [(name, _I) for name in ("rows", "dim", "count", "threads")]


class PeakShape(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [(name, _I) for name in ("rounds", "threads")]


class SearchShape(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [
        *((name, _I) for name in ("requests", "width", "k", "threads")),
        *((name, _P) for name in ("query_offsets", "key_offsets")),
    ]


class RowUpdate(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [
        *((name, _I) for name in ("rows", "dim", "count", "threads", "kind", "by_frequency")),
        *((name, _D) for name in ("learning_rate", "beta1", "beta2", "eps", "decay")),
    ]


class MatchShape(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [
        *((name, _I) for name in ("requests", "behaviours", "candidates", "levels", "first_known")),
        ("day_ms", _D),
        ("rate", _D * 2),
        *((name, _P) for name in ("offsets", "candidate_offsets")),
    ]


class MatchInputs(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [(name, _P) for name in ("time_ms", "moment", "key", "key_stride", "asked", "asked_stride")]


class MetLevel(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [
        *((name, _I) for name in ("candidates", "first_known", "width")),
        ("day_ms", _D),
        ("rate", _D * 2),
        *((name, _P) for name in ("offsets", "key", "count", "last_ms", "decayed", "moment", "length")),
    ]


class BinsShape(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [(name, _I) for name in ("rows", "columns", "bins", "units", "threads")]


class TextTable(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [("texts", _I), ("slots", _I), ("seed", ctypes.c_uint64), ("bytes", _P), ("offsets", _P)]


class RecurrenceShape(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [
        *((name, _I) for name in ("requests", "candidates", "steps", "units", "cell", "every", "threads")),
        *((name, _P) for name in ("query_offsets", "key_offsets")),
    ]


class RecurrenceInputs(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [(name, _P) for name in ("inputs", "attention", "initial", "weight", "bias")]


class RecurrenceOutputs(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [(name, _P) for name in ("last", "states", "kept")]


class RecurrenceGradients(ctypes.Structure):
    """As in source/interface.h."""

    _fields_ = [
        (name, _P)
        for name in (
            "states",
            "kept",
            "d_last",
            "d_states",
            "d_inputs",
            "d_attention",
            "d_initial",
            "d_weight",
            "d_bias",
        )
    ]


_ENTRIES = {  # name -> number of pointer arguments
    "sostenuto_attention_pairs": 1,
    "sostenuto_attention_forward": 3,
    "sostenuto_attention_backward": 3,
    "sostenuto_bucket_sums": 6,
    "sostenuto_bucket_sums_backward": 6,
    "sostenuto_asked_sums": 8,
    "sostenuto_interests": 4,
    "sostenuto_interests_backward": 5,
    "sostenuto_interests_to_values": 9,
    "sostenuto_hash_rows": 4,
    "sostenuto_gather_rows": 4,
    "sostenuto_distinct_rows": 4,
    "sostenuto_sum_rows": 4,
    "sostenuto_multiply_add_peak": 2,
    "sostenuto_hamming_top_k": 5,
    "sostenuto_product_top_k": 5,
    "sostenuto_pair_products": 7,
    "sostenuto_update_rows": 7,
    "sostenuto_match": 3,
    "sostenuto_met": 4,
    "sostenuto_lower_bounds": 6,
    "sostenuto_binned_product": 8,
    "sostenuto_fill_texts": 2,
    "sostenuto_recurrence_kept": 1,
    "sostenuto_recurrence_forward": 3,
    "sostenuto_recurrence_backward": 3,
}
_RETURNS = {  # the others return nothing
    "sostenuto_attention_pairs": _I,
    "sostenuto_distinct_rows": _I,
    "sostenuto_update_rows": _I,
    "sostenuto_match": _I,
    "sostenuto_recurrence_kept": _I,
}


@dataclass(frozen=True, slots=True)
class Library:
    """An opened library."""

    handle: ctypes.CDLL
    processor: str  # the instruction set it was compiled for


def _path(processor: str) -> Path:
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    return FOLDER / f"sostenuto_{processor}{suffix}"


def _open(processor: str) -> Library | None:
    path = _path(processor)
    if not path.is_file():
        return None
    try:
        handle = ctypes.CDLL(str(path))
        handle.sostenuto_version.restype = _I
        handle.sostenuto_processor.restype = _I
        if int(handle.sostenuto_version()) != VERSION:
            return None
        for name, arguments in _ENTRIES.items():
            getattr(handle, name).argtypes = [_P] * arguments
            getattr(handle, name).restype = _RETURNS.get(name)
        handle.sostenuto_find_texts.argtypes = [_P, _P, _I, _P, _P, _P]
        handle.sostenuto_find_texts.restype = None
        handle.sostenuto_square_sum.argtypes = [_P, _I]
        handle.sostenuto_square_sum.restype = _D
    except (OSError, AttributeError):
        return None
    return Library(handle, processor)


@functools.cache
def available() -> dict[str, Library]:
    """Return the libraries that are built here and that this processor can run, plainest first."""
    found = {name: library for name in LEVELS if (library := _open(name)) is not None}
    if not found:
        return {}
    level = int(next(iter(found.values())).handle.sostenuto_processor())
    return {name: library for name, library in found.items() if LEVELS[name] <= level}


@functools.cache
def _resolved() -> tuple[Library | None, str]:
    wanted = os.environ.get("SOSTENUTO_BACKEND", "auto")
    if wanted not in ("auto", "plain", "native"):
        raise NoLibrary(f"SOSTENUTO_BACKEND must be auto, plain or native, got {wanted!r}; set it so or unset it")
    if wanted == "plain":
        return None, "plain torch, as SOSTENUTO_BACKEND asks"
    found = available()
    held = os.environ.get("SOSTENUTO_PROCESSOR")
    if held is not None:
        found = {name: library for name, library in found.items() if name == held}
    if found:
        library = list(found.values())[-1]
        return library, f"compiled twins for {library.processor}"
    why = f"no compiled library for {held or 'this processor'} in {FOLDER}"
    if wanted == "native":
        raise NoLibrary(
            f"SOSTENUTO_BACKEND is native and there is {why}; install with a C++ compiler at hand, or unset it"
        )
    return None, f"plain torch: {why} (install with a C++ compiler at hand for a faster one)"


_forced: list[Library | None] = []


def library() -> Library | None:
    """Return the library that is in use, None for plain torch. Decided once in a process."""
    return _forced[-1] if _forced else _resolved()[0]


def any_library() -> Library:
    """Return the library in use, or else the best that is here: a backward pass may come after `using` has ended."""
    found = library() or next(reversed(available().values()), None)
    if found is None:
        raise NoLibrary(f"this operator needs the compiled library, there is none in {FOLDER}; use the plain form")
    return found


def notice() -> str:
    """Return one line on what is in use and why."""
    return _resolved()[1]


@contextlib.contextmanager
def using(chosen: Library | None) -> Generator[None]:
    """Use this library (None: plain torch) inside the block; for tests and for timing twins side by side."""
    _forced.append(chosen)
    try:
        yield
    finally:
        _forced.pop()


__all__ = [
    "AttentionGradients",
    "AttentionInputs",
    "AttentionOutputs",
    "AttentionShape",
    "BinsShape",
    "BucketShape",
    "HashShape",
    "InterestShape",
    "Library",
    "MatchInputs",
    "MatchShape",
    "PeakShape",
    "RecurrenceGradients",
    "RecurrenceInputs",
    "RecurrenceOutputs",
    "RecurrenceShape",
    "RowUpdate",
    "RowsShape",
    "SearchShape",
    "TextTable",
    "any_library",
    "available",
    "library",
    "notice",
    "using",
]
