"""A user's behaviours as a ranker keeps them: everything that needs neither a candidate nor the request."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import DEFAULT_STD, FieldEncoder, ItemEmbedding, Table
from sostenuto.layers.initialise import xavier_linear
from sostenuto.ops.jagged import Taken, interleave_rows, newest_moments, row_index
from sostenuto.ops.table_rows import distinct_values, few_rows, spread_rows
from sostenuto.ops.time_gaps import NUM_GAP_FEATURES, gap_features
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Context, History


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedHistory:
    """Encoded behaviours of B users; a value, never changed in place."""

    offsets: Tensor  # (B + 1,) int64
    key: Tensor  # (N, D) item vectors, the space that candidates live in
    side: Tensor | None  # (N, H) what action, value and event fields add to the activation unit; None without any
    time_ms: Tensor  # (N,) int64
    place: Tensor  # (N,) int64

    @property
    def lengths(self) -> Tensor:
        """(B,) int64 behaviours per user."""
        return self.offsets[1:] - self.offsets[:-1]

    def take(self, taken: Taken) -> EncodedHistory:
        """Return the behaviours at the taken positions."""
        return EncodedHistory(
            offsets=taken.offsets,
            key=few_rows(self.key, taken.positions),
            side=None if self.side is None else self.side[taken.positions],
            time_ms=self.time_ms[taken.positions],
            place=self.place[taken.positions],
        )

    def newest(self, count: int) -> EncodedHistory:
        """Return the newest `count` behaviours of each user, with the rest of the moment that the cut would split."""
        if int(self.lengths.max() if self.lengths.numel() else 0) <= count:
            return self
        return self.take(newest_moments(self.offsets, self.time_ms, count))

    def joined(self, later: EncodedHistory) -> EncodedHistory:
        """Return each user's behaviours with the `later` ones behind them."""
        positions, offsets = interleave_rows(self.offsets, later.offsets)

        def join(a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([a, b])[positions]

        return EncodedHistory(
            offsets=offsets,
            key=join(self.key, later.key),
            side=None if self.side is None or later.side is None else join(self.side, later.side),
            time_ms=join(self.time_ms, later.time_ms),
            place=join(self.place, later.place),
        )


def request_gaps(history: EncodedHistory, positions: Tensor | None, context: Context) -> Tensor:
    """Return (M, NUM_GAP_FEATURES + 1): gap to the request, rhythms, and whether at the same (known) place.

    Args:
        history: N behaviours.
        positions: (M,) of some of them; None is all.
        context: one request per user.
    """
    time_ms, place = history.time_ms, history.place
    if positions is None:
        row = row_index(history.offsets)
    else:
        time_ms, place = time_ms[positions], place[positions]
        row = torch.searchsorted(history.offsets, positions, right=True) - 1
    same = (place == context.place[row]) & (place > 0)
    return torch.cat([gap_features(context.time_ms[row] - time_ms), same.float()[:, None]], 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistinctItems:
    """The distinct items of a batch of histories: what depends on the item alone is made once for each."""

    key: Tensor  # (U, D) item vectors
    fixed: Tensor  # (U, F) fixed vectors
    place: Tensor  # (N,) int64 in [0, U): which of them a behaviour is of


class HistoryEncoder(nn.Module):
    """Encode behaviours, and later say what the request adds to them.

    The item vector is the key. What only a behaviour has (action, value, event fields; at the request also the gap
    and whether it happened at the same place) cannot be compared with a candidate: it enters the hidden layer of the
    activation unit as an additive term, computed once per behaviour.

    Args:
        features: sizes of everything.
        items: the embedding shared with the candidates.
        hidden: H, width of the additive term.
        field_dim: width per categorical event field.
        std: standard deviation of the initial rows.
        gaps: also tell the unit how long before the request a behaviour was, and whether at the same place.
    """

    def __init__(
        self,
        features: FeatureSpec,
        items: ItemEmbedding,
        *,
        hidden: int,
        field_dim: int,
        std: float = DEFAULT_STD,
        gaps: bool = True,
    ) -> None:
        super().__init__()
        self.items = items
        self.value_mean, self.value_std = features.value_mean, features.value_std
        self.has_value = features.has_value
        self.action = Table(features.num_actions, field_dim, std=std) if features.num_actions > 2 else None
        self.fields = FieldEncoder(features.behaviour_fields, field_dim, std=std)
        self.side_dim = self.fields.out_dim + (field_dim if self.action is not None else 0) + 2 * self.has_value
        self.from_side = xavier_linear(self.side_dim, hidden, bias=False) if self.side_dim else None
        self.from_request = xavier_linear(NUM_GAP_FEATURES + 1, hidden, bias=False) if gaps else None

    def distinct(self, histories: History, version: Tensor | None = None) -> DistinctItems:
        """Embed every distinct item of a batch once, at every version of the fixed vectors that its behaviours see.

        Args:
            histories: the behaviours.
            version: (N,) of the fixed vectors, in training; by default that of each row's newest behaviour.
        """
        if version is None:
            version = self.items.version_of_behaviours(histories.offsets, histories.time_ms)
        versions = 1 if version is None else self.items.num_versions
        item = histories.item if version is None else version * self.items.num_items + histories.item
        found = distinct_values(item, versions * self.items.num_items)
        first = found.first
        own = histories.item[first]
        fixed = self.items.fixed(own, None if version is None else version[first])
        fields = {field.name: histories.fields[field.name][first] for field in self.items.fields.fields}
        key = self.items(own, histories.category[first], fields, fixed=fixed)
        return DistinctItems(key=key, fixed=fixed, place=found.place)

    def forward(self, histories: History, distinct: DistinctItems | None = None) -> EncodedHistory:
        """Encode a batch of histories, whose distinct items may be at hand already."""
        items = distinct or self.distinct(histories)
        return EncodedHistory(
            offsets=histories.offsets,
            key=spread_rows(items.key, items.place),
            side=None if self.from_side is None else self.from_side(self.side_features(histories)),
            time_ms=histories.time_ms,
            place=histories.place,
        )

    def side_features(self, histories: History) -> Tensor:
        """Return (N, side_dim): action, value and event fields of every behaviour."""
        parts = []
        if self.action is not None:
            parts.append(self.action(histories.action))
        if self.has_value:
            missing = histories.value.isnan()
            amount = torch.log1p(torch.nan_to_num(histories.value, nan=0.0).clamp(min=0))
            scale = self.value_std if self.value_std > 0 else 1.0
            parts += [torch.where(missing, 0.0, (amount - self.value_mean) / scale)[:, None], missing.float()[:, None]]
        if self.fields.out_dim:
            parts.append(self.fields(histories.fields, histories.item.shape[0]))
        return torch.cat(parts, 1)

    def at_request(self, state: EncodedHistory, context: Context) -> tuple[Tensor | None, Tensor | None]:
        """Return what the request adds.

        Returns:
            (N, H) the behaviour's whole part of the hidden layer, None without any; and (N, NUM_GAP_FEATURES + 1) the
            gap to the request, rhythms and same (known) place, None where gaps are left out.
        """
        if self.from_request is None:
            return state.side, None
        gaps = request_gaps(state, None, context)
        hidden = self.from_request(gaps)
        return hidden if state.side is None else state.side + hidden, gaps


__all__ = ["DistinctItems", "EncodedHistory", "HistoryEncoder", "request_gaps"]
