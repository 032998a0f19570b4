"""Watches what operations allocate."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LargestNew(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation newly allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {a.data_ptr() for a in args if isinstance(a, Tensor) and not a.is_sparse}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not out.is_sparse and out.data_ptr() not in known:
            self.numel = max(self.numel, out.numel())
        return out
