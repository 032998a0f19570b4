"""Tokens of the generative rankers: what happened (item and action), and what may be asked (item and a placeholder).

Items and side features of behaviours are those of `layers/encoded_history.HistoryEncoder`, which is held here; a token
adds where along the timeline and at which place it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.dropout import Dropout
from sostenuto.layers.embedding import ItemEmbedding, Table
from sostenuto.layers.encoded_history import DistinctItems, HistoryEncoder
from sostenuto.layers.flow_config import FlowConfig
from sostenuto.layers.initialise import xavier_linear
from sostenuto.ops.table_rows import spread_rows
from sostenuto.ops.time_gaps import NUM_OCTAVES, octave_weights
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History


@dataclass(frozen=True, kw_only=True, slots=True)
class EventParts:
    """The parts of N behaviours' tokens, before anybody adds them."""

    item: Tensor  # (N, D) the item, where it happened and how far along the timeline: all that is known beforehand
    action: Tensor  # (N, D) what the user did: action, value and event fields


class EventTokens(nn.Module):
    """Sums of linear maps: item vector, place, position along the timeline; of what happened also action and value.

    A position is the number of behaviours at strictly earlier times, counted from the timeline's start, so a token
    never changes when later events come. It enters in octaves: counts span one to many thousands. Ours.
    """

    def __init__(self, config: FlowConfig, features: FeatureSpec) -> None:
        super().__init__()
        items = ItemEmbedding(
            features,
            item_dim=config.item_dim,
            category_dim=config.category_dim,
            field_dim=config.field_dim,
            std=config.table_std,
            vector_dim=config.vector_dim,
            key_vector_dim=config.key_vector_dim,
            id_dropout=config.id_dropout,
        )
        self.histories = HistoryEncoder(
            features, items, hidden=config.dim, field_dim=config.field_dim, std=config.table_std, gaps=False
        )
        self.from_item = xavier_linear(items.out_dim, config.dim)
        self.happened = nn.Parameter(torch.empty(config.dim).normal_(0.0, config.table_std))
        has_places = features.num_places > 2
        self.place = Table(features.num_places, config.field_dim, std=config.table_std) if has_places else None
        self.from_place = xavier_linear(config.field_dim, config.dim, bias=False) if has_places else None
        self.from_position = nn.Parameter(torch.empty(NUM_OCTAVES, config.dim).normal_(0.0, config.table_std))
        self.dropout = Dropout(config.token_dropout)

    @property
    def items(self) -> ItemEmbedding:
        """Shared by behaviours and candidates."""
        return self.histories.items

    def distinct(self, histories: History) -> DistinctItems:
        """Embed every distinct item once; in training, with the fixed vectors as they stood at each behaviour's time.

        One pass holds requests at all times of a timeline, so no version of its newest behaviour may be used.
        """
        return self.histories.distinct(histories, self.items.version_at(histories.time_ms))

    def of_events(self, histories: History, position: Tensor, distinct: DistinctItems) -> EventParts:
        """Return the parts of behaviours at (N,) positions."""
        item = spread_rows(self.from_item(distinct.key), distinct.place)
        action = self.happened.expand(item.shape[0], -1)
        side = self.histories.from_side
        if side is not None:
            action = action + side(self.histories.side_features(histories))
        return EventParts(
            item=self.dropout(item + self._around(histories.place, position)), action=self.dropout(action)
        )

    def of_candidates(
        self, candidates: Candidates, context: Context, position: Tensor, version: Tensor | None
    ) -> Tensor:
        """Return (N, D) tokens of candidates at (N,) positions, without an action."""
        vectors = self.items(candidates.item, candidates.category, candidates.fields, version)
        around = self._around(context.place[candidates.row], position)
        result: Tensor = self.dropout(self.from_item(vectors) + around)
        return result

    def _around(self, place: Tensor, position: Tensor) -> Tensor:
        # octaves are of 1 + seconds for gaps; here of 1 + behaviours
        around = octave_weights(position * 1000) @ self.from_position
        if self.place is not None and self.from_place is not None:
            around = around + self.from_place(self.place(place))
        return around


__all__ = ["EventParts", "EventTokens"]
