"""Memory for tables on large pages: a row looked up at random then costs one miss less, that of its address.

A processor remembers where some thousand pages lie. On pages of 4 KiB that is 8 MB of table, on pages of 2 MiB all of
it. Linux hands large pages out when it is asked to (`madvise`), as long as its setting is not `never`.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

from torch import Tensor

LARGE_PAGE = 2 << 20  # bytes
LEAST = 8 << 20  # bytes of a tensor below which small pages do as well
_MADV_HUGEPAGE = 14  # linux/mman.h


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        found = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found


def on_large_pages(tensor: Tensor) -> Tensor:
    """Ask the system to put a tensor on large pages where it can, and return it.

    It helps memory that nothing was written to yet (`torch.empty`); values are not touched. Where the system has no
    large pages, or the tensor is small or not in the machine's own memory, nothing happens.
    """
    if tensor.device.type != "cpu" or tensor.nbytes < LEAST:
        return tensor
    if (madvise := _madvise()) is not None:
        first = -(-tensor.data_ptr() // LARGE_PAGE) * LARGE_PAGE  # pages that lie inside as a whole
        last = (tensor.data_ptr() + tensor.nbytes) // LARGE_PAGE * LARGE_PAGE
        madvise(first, last - first, _MADV_HUGEPAGE)  # advice: a refusal changes nothing
    return tensor


__all__ = ["LARGE_PAGE", "LEAST", "on_large_pages"]
