"""Multiply-adds with nothing but registers in their way: work of known size, to time the processor's own limit."""

from __future__ import annotations

import ctypes

import torch

from sostenuto.native.library import PeakShape, library


def multiply_adds(rounds: int) -> float | None:
    """Do `rounds` steps of float32 multiply-adds on each of torch's threads; return how many operations that was.

    A multiply-add counts as two. None, and nothing is done, without a compiled library: torch goes through memory.
    """
    twins = library()
    if twins is None:
        return None
    found = (ctypes.c_double * 2)()
    twins.handle.sostenuto_multiply_add_peak(
        ctypes.byref(PeakShape(rounds=rounds, threads=torch.get_num_threads())), found
    )
    return found[0]


__all__ = ["multiply_adds"]
