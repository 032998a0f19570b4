"""History, Candidates, Context, RankerOutput: what passes between data and rankers.

Everything is jagged: the rows of a batch lie one after another in flat arrays, `offsets` says where each starts.
A ranker that wants padding makes it inside (`ops.jagged`), so padding can never reach a score by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sostenuto.schema.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def _cut(value: Any, rows: slice) -> Any:
    """Slice a tensor, or every tensor of a mapping."""
    return {name: column[rows] for name, column in value.items()} if isinstance(value, Mapping) else value[rows]


def _jagged_part(whole: Any, first: int, last: int) -> Any:
    """Return rows first .. last of a dataclass whose `offsets` say where the rows of all other fields start."""
    offsets = whole.offsets[first : last + 1]
    rows = slice(int(offsets[0]), int(offsets[-1]))
    changes = {f.name: _cut(getattr(whole, f.name), rows) for f in fields(whole) if f.name != "offsets"}
    return replace(whole, offsets=offsets - offsets[0], **changes)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(item, device) for name, item in value.items()}
    return value.to(device) if hasattr(value, "to") else value


class _OnDevice:
    """Moves every tensor of a frozen dataclass at once."""

    __slots__ = ()

    def to(self, device: torch.device | str) -> Self:
        """Return a copy whose tensors live on `device`."""
        changes = {f.name: _moved(getattr(self, f.name), device) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, kw_only=True)
class History(_OnDevice):
    """The behaviours of B users, each strictly before a moment; oldest first; N behaviours in all.

    Behaviours of one moment have no order: they stand in a seeded random one.
    """

    offsets: Tensor  # (B + 1,) int64; row b is offsets[b] .. offsets[b + 1]
    item: Tensor  # (N,) int64 item index; 0 never occurs, 1 unknown
    category: Tensor  # (N, K) int64 category path, coarse to fine
    time_ms: Tensor  # (N,) int64 epoch milliseconds, never decreasing inside a row
    action: Tensor  # (N,) int64; 0 where the log has no actions
    value: Tensor  # (N,) float32; NaN where missing
    place: Tensor  # (N,) int64; 0 where missing
    fields: Mapping[str, Tensor] = field(default_factory=dict)  # further event columns and item fields, (N,) or (N, V)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64 behaviours per row."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def num_rows(self) -> int:
        """B, the number of users."""
        return int(self.offsets.shape[0]) - 1

    def part(self, first: int, last: int) -> Self:
        """Return the users first .. last; nothing is copied but the offsets."""
        found: Self = _jagged_part(self, first, last)
        return found

    @classmethod
    def from_padded(
        cls,
        *,
        mask: Tensor,
        item: Tensor,
        category: Tensor,
        time_ms: Tensor,
        action: Tensor,
        value: Tensor,
        place: Tensor,
        fields: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """Make a jagged history of padded (B, L) tensors; whatever stands behind the mask is dropped.

        Args:
            mask: (B, L) bool, True = real, in any pattern; the order inside a row is kept.
            item, time_ms, action, value, place: (B, L).
            category: (B, L, K).
            fields: (B, L) or (B, L, V) each.
        """
        import torch

        if mask.dtype != torch.bool or mask.dim() != 2:
            raise DataError(
                f"mask must be a (B, L) tensor of bool, True = real, got {tuple(mask.shape)} of {mask.dtype}; "
                "compare it to 0 first"
            )
        lengths = mask.sum(1)
        return cls(
            offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            item=item[mask],
            category=category[mask],
            time_ms=time_ms[mask],
            action=action[mask],
            value=value[mask],
            place=place[mask],
            fields={name: column[mask] for name, column in (fields or {}).items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates(_OnDevice):
    """The items to be ranked in B requests; N candidates in all."""

    offsets: Tensor  # (B + 1,) int64
    item: Tensor  # (N,) int64
    category: Tensor  # (N, K) int64
    match: Tensor  # (N, F) float32, what the user did with this item and its kind; F = 0 when switched off
    fields: Mapping[str, Tensor] = field(default_factory=dict)  # candidate fields and item fields, (N,) or (N, V)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64 candidates per request."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def row(self) -> Tensor:
        """(N,) int64 request row of each candidate."""
        import torch

        if self.offsets.shape[0] == 2:  # one request, as in every ranking that is served
            return self.offsets.new_zeros(self.item.shape[0])
        rows = torch.arange(self.offsets.shape[0] - 1, device=self.offsets.device)
        return torch.repeat_interleave(rows, self.lengths, output_size=self.item.shape[0])

    def part(self, first: int, last: int) -> Self:
        """Return the candidates of requests first .. last; nothing is copied but the offsets."""
        found: Self = _jagged_part(self, first, last)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue(_OnDevice):
    """What is known of I items, by item index: row i is item i."""

    category: Tensor  # (I, K) int64
    fields: Mapping[str, Tensor] = field(default_factory=dict)  # item fields, (I,) or (I, V)

    @property
    def num_items(self) -> int:
        """I, padding and the unknown item included."""
        return int(self.category.shape[0])

    def part(self, first: int, last: int) -> Self:
        """Return items first .. last; nothing is copied."""
        rows = slice(first, last)
        return replace(self, **{f.name: _cut(getattr(self, f.name), rows) for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Context(_OnDevice):
    """Moment, place and circumstances of B requests."""

    time_ms: Tensor  # (B,) int64
    place: Tensor  # (B,) int64; 0 where missing
    fields: Mapping[str, Tensor] = field(default_factory=dict)  # (B,) or (B, V): hour_of_day, day_of_week, user fields

    def part(self, first: int, last: int) -> Self:
        """Return requests first .. last."""
        rows = slice(first, last)
        return replace(self, **{f.name: _cut(getattr(self, f.name), rows) for f in fields(self)})


class AuxHead(NamedTuple):
    """What a part of a ranker says of N candidates by itself, so that training can teach it by the labels."""

    logits: Tensor  # (N,) aligned with the candidates
    weight: float  # of its binary cross-entropy beside the main loss


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerOutput:
    """What a ranker says of N candidates."""

    logits: Tensor  # (N,) float32, flat, aligned with the candidates
    aux_heads: Mapping[str, AuxHead] = field(default_factory=dict)  # trained on the candidates' own labels
    aux_losses: Mapping[str, Tensor] = field(default_factory=dict)  # scalar terms that training adds, already weighted
    sample_weight: Tensor | None = None  # (N,) multiplies the main loss


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBatch(_OnDevice):
    """B requests ready for a ranker, with what was observed."""

    histories: History
    candidates: Candidates
    context: Context
    labels: Tensor  # (N,) float32
    list_id: Tensor  # (N,) int64 which candidate list of the protocol
    request: Tensor  # (B,) int64 row in the split
    user: Tensor  # (B,) int64

    def part(self, first: int, last: int) -> Self:
        """Return requests first .. last; nothing is copied but the offsets."""
        start, end = (int(self.candidates.offsets[at]) for at in (first, last))
        return replace(
            self,
            histories=self.histories.part(first, last),
            candidates=self.candidates.part(first, last),
            context=self.context.part(first, last),
            labels=self.labels[start:end],
            list_id=self.list_id[start:end],
            request=self.request[first:last],
            user=self.user[first:last],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FutureWindow(_OnDevice):
    """What the users of R requests did in the next moments: targets of training, never an input. W behaviours in all.

    The first moment is the request's own (or the next one, where nothing happened at the request's time itself).
    """

    items: Candidates  # of R requests, in order of time; without match features
    step: Tensor  # (W,) int64 0 .. P - 1, which of the next P distinct moments
    action: Tensor  # (W,) int64; 0 where the log has no actions

    def part(self, first: int, last: int) -> Self:
        """Return requests first .. last."""
        rows = slice(int(self.items.offsets[first]), int(self.items.offsets[last]))
        return replace(self, items=self.items.part(first, last), step=self.step[rows], action=self.action[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBatch(_OnDevice):
    """Timelines of U users, and R requests at moments along them: many requests of a user in one pass.

    Request r may read the first `prefix[r]` behaviours of user row `row[r]` and no other. These are whole moments: what
    happened at the request's own time is not among them, even where it stands in the timeline.
    """

    histories: History  # U rows
    row: Tensor  # (R,) int64 user row of each request, never decreasing
    prefix: Tensor  # (R,) int64 behaviours of that row strictly before the request; rising inside a row
    candidates: Candidates  # of R requests; match features are of each request's own prefix
    context: Context  # of R requests
    labels: Tensor  # (N,) float32
    list_id: Tensor  # (N,) int64
    request: Tensor  # (R,) int64 row in the split
    user: Tensor  # (R,) int64
    # G rows of as many items each, M in all: request r is held against those of row r modulo G
    negatives: Candidates | None = None
    log_q: Tensor | None = None  # (M,) float32 log of how often each was to be expected among them
    pool: Tensor | None = None  # (M,) int64 group of items that each was drawn from, -1 = from all items
    future: FutureWindow | None = None  # of R requests

    @property
    def num_requests(self) -> int:
        """R."""
        return int(self.row.shape[0])

    @property
    def ends(self) -> Tensor:
        """(R,) int64 flat position behind the last behaviour that each request may read."""
        return self.histories.offsets[self.row] + self.prefix

    @property
    def request_offsets(self) -> Tensor:
        """(U + 1,) int64 where the requests of each user row begin."""
        import torch

        users = torch.arange(self.histories.num_rows + 1, device=self.row.device)
        return torch.searchsorted(self.row, users)

    def part(self, first: int, last: int) -> Self:
        """Return the users first .. last with their requests; nothing is copied but offsets and rows."""
        bounds = self.request_offsets[[first, last]].tolist()
        start, end = (int(self.candidates.offsets[at]) for at in bounds)
        asked = slice(bounds[0], bounds[1])
        return replace(
            self,
            histories=self.histories.part(first, last),
            row=self.row[asked] - first,
            prefix=self.prefix[asked],
            candidates=self.candidates.part(*bounds),
            context=self.context.part(*bounds),
            labels=self.labels[start:end],
            list_id=self.list_id[start:end],
            request=self.request[asked],
            user=self.user[asked],
            future=None if self.future is None else self.future.part(*bounds),
        )


__all__ = [
    "AuxHead",
    "Candidates",
    "Catalogue",
    "Context",
    "FutureWindow",
    "History",
    "RankerOutput",
    "RequestBatch",
    "SequenceBatch",
]
