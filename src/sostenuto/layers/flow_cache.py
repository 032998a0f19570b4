"""Keys and values of a user's tokens, layer by layer: the state of a generative ranker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sostenuto.layers.hstu_block import KeysValues
from sostenuto.layers.relative_bias import TokenPlaces
from sostenuto.layers.taste import TasteState
from sostenuto.ops.jagged import interleave_rows
from sostenuto.ops.moments import moment_places
from sostenuto.schema.histories import History


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """When the behaviours of B users happened; a value."""

    offsets: Tensor  # (B + 1,) int64
    time_ms: Tensor  # (N,) int64
    position: Tensor  # (N,) int64 behaviours of the row at strictly earlier times

    @classmethod
    def of(cls, offsets: Tensor, time_ms: Tensor) -> Timeline:
        """Count positions."""
        return cls(offsets=offsets, time_ms=time_ms, position=moment_places(offsets, time_ms).start)

    def newest(self, row: Tensor, prefix: Tensor) -> Tensor:
        """Return (R,) the time of the last of the first `prefix` behaviours of each row; 0 where there is none."""
        if not len(self.time_ms):
            return torch.zeros_like(prefix)
        last = (self.offsets[row] + prefix - 1).clamp(min=0)
        return self.time_ms[last] * (prefix > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """A timeline, and how its rows are made of those that were there and those that came."""

    timeline: Timeline
    order: Tensor | None  # (N,) int64 places in [there, came]; None = nothing was there
    came: Tensor  # (M,) int64 places of what came

    @classmethod
    def of(cls, there: Timeline | None, events: History) -> Joined:
        """Put the events of each user behind what was there."""
        if there is None:
            timeline = Timeline.of(events.offsets, events.time_ms)
            return cls(timeline=timeline, order=None, came=torch.arange(len(events.item), device=events.item.device))
        order, offsets = interleave_rows(there.offsets, events.offsets)
        timeline = Timeline.of(offsets, torch.cat([there.time_ms, events.time_ms])[order])
        return cls(timeline=timeline, order=order, came=(order >= len(there.time_ms)).nonzero().squeeze(1))

    @property
    def position(self) -> Tensor:
        """(M,) positions of what came."""
        return self.timeline.position[self.came]

    def values(self, there: Tensor | None, came: Tensor, tokens: int = 1) -> Tensor:
        """Return the joined rows of (N * tokens, ...) values, `tokens` of them per behaviour."""
        if self.order is None or there is None:
            return came
        groups = [torch.unflatten(part, 0, (-1, tokens)) for part in (there, came)]
        return torch.cat(groups)[self.order].flatten(0, 1)

    def keys_values(self, there: KeysValues | None, came: KeysValues, tokens: int = 1) -> KeysValues:
        """Return the joined keys and values of a layer."""
        if there is None:
            return came
        return KeysValues(*(self.values(a, b, tokens) for a, b in zip(there, came, strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowState:
    """The cached flow of B users, and their taste; grows with the history."""

    timeline: Timeline
    layers: tuple[
        KeysValues, ...
    ]  # of each block: (N, ...), or (2 N, ...) where item and action are tokens of their own
    taste: TasteState | None


def places_of(timeline: Timeline) -> TokenPlaces:
    """Return where the tokens of behaviours stand, one token each."""
    return TokenPlaces.at(timeline.position, timeline.time_ms)


__all__ = ["FlowState", "Joined", "Timeline", "places_of"]
