"""Which form of the operators runs: the plain torch definitions, or their compiled twins where they are built."""

from __future__ import annotations

import torch
from torch import Tensor

from sostenuto.native.library import available, library, notice, using


def is_usable(*tensors: Tensor | None) -> bool:
    """Say whether a compiled twin is in use and takes these tensors: float32 on a CPU."""
    given = [t for t in tensors if t is not None]
    return library() is not None and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in given)


__all__ = ["available", "is_usable", "library", "notice", "using"]
