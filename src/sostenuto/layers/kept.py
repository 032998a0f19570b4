"""What is made of parameters once and kept while they stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Kept(nn.Module, Generic[T]):
    """A value made of parameters, for scoring without gradients; no part of a state dict.

    It is handed out until something may have changed a parameter: training mode, loading, moving to another device or
    type, other tensors in their place, and changes in place, which the tensors' version counters tell. Not seen are
    changes through `.data`, by torch's fused optimisers, and of tensors made in inference mode, which have no counter:
    call `empty`. Nothing is handed out in training mode, nor while a gradient is wanted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: tuple[T, tuple[Tensor, ...], tuple[tuple[int, int], ...]] | None = None

    def hold(self, value: T, sources: Iterable[Tensor]) -> None:
        """Keep a value, and watch the parameters and buffers that it was made of."""
        held = tuple(sources)
        self._held = (value, held, _stamp(held))

    def held(self, sources: Iterable[Tensor] | None = None) -> T | None:
        """Return the value, or None where it must be made.

        Args:
            sources: what it would be made of now, where that may be other tensors than when it was made.
        """
        kept = self._held  # other threads may forget it meanwhile
        if kept is None or self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        value, known, stamp = kept
        if stamp != _stamp(known) or not _are_same(known, sources):
            self.empty()
            return None
        return value

    @property
    def value(self) -> T | None:
        """What is kept, whether or not it may still be used."""
        kept = self._held
        return None if kept is None else kept[0]

    def empty(self) -> None:
        """Forget the value."""
        self._held = None

    def train(self, mode: bool = True) -> Self:
        """Forget the value in training mode."""
        if mode:
            self.empty()
        return super().train(mode)

    def _apply(self, *given: Any, **named: Any) -> Self:
        self.empty()
        moved: Self = super()._apply(*given, **named)  # type: ignore[no-untyped-call]
        return moved

    def _load_from_state_dict(self, *given: Any, **named: Any) -> None:
        self.empty()
        super()._load_from_state_dict(*given, **named)


def _are_same(known: tuple[Tensor, ...], sources: Iterable[Tensor] | None) -> bool:
    if sources is None:
        return True
    now = tuple(sources)
    return len(now) == len(known) and all(a is b for a, b in zip(known, now, strict=True))


def _stamp(sources: tuple[Tensor, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in sources)


__all__ = ["Kept"]
