"""What stands behind the search of every two-stage ranker: short branch, request features, tower and wide path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.dropout import Dropout
from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import DistinctItems, EncodedHistory, HistoryEncoder
from sostenuto.layers.initialise import zero_linear
from sostenuto.layers.item_table import ItemColumns, ItemTable
from sostenuto.layers.request_features import RequestFeatures
from sostenuto.layers.search_config import TwoStageConfig
from sostenuto.layers.target_attention import TargetAttention
from sostenuto.layers.taste import TasteState
from sostenuto.layers.tower import Tower
from sostenuto.ops.time_gaps import NUM_GAP_FEATURES
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """What is kept of users beside the history that is searched; a value, and bounded."""

    recent: EncodedHistory | None  # the newest behaviours, as DIN keeps them; None without a short branch
    taste: TasteState | None


class SearchHead(nn.Module):
    """Target attention over the newest behaviours, features of the request, and a tower over these and what is given.

    The items belong to the ranker, as in `RequestFeatures`, and are handed in.

    Args:
        config: sizes and switches.
        features: sizes of everything.
        items: the embedding that behaviours and candidates share.
        in_dim: width of what the ranker itself makes of a candidate.
        totals: the short branch also gives the sum of its weights.
        short: there is a short branch.
        aux_dim: width that a second head reads, which is heard in training alone; 0 leaves it out.
        aux_units: hidden widths of that head.
    """

    def __init__(
        self,
        config: TwoStageConfig,
        features: FeatureSpec,
        items: ItemEmbedding,
        in_dim: int,
        *,
        totals: bool,
        short: bool = True,
        aux_dim: int = 0,
        aux_units: Sequence[int] = (),
    ) -> None:
        super().__init__()
        dim = items.out_dim
        self.totals, self.short_recent = int(totals), config.short_recent
        self.short = None
        if short:
            self.short = TargetAttention(
                dim, config.attention_units, activation=config.attention_activation, normalise=config.normalise
            )
            in_dim += dim + self.totals + (NUM_GAP_FEATURES + 1 if config.gaps else 0)
        self.requests = RequestFeatures(
            features, items, field_dim=config.field_dim, std=config.field_std, bins=config.bins
        )
        self.kept = ItemTable()
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.tower = Tower(
            in_dim + self.requests.out_dim,
            config.tower_units,
            activation=config.tower_activation,
            dropout=config.dropout,
        )
        self.aux_head = Tower(aux_dim, aux_units, activation="prelu") if aux_dim else None
        numbers = self.requests.num_numbers
        self.wide = zero_linear(numbers, 1) if config.wide and numbers else None

    # -- items --------------------------------------------------------------------------------------------------------

    def calibrate(
        self, items: ItemEmbedding, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]
    ) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.requests.calibrate(items, batches, item_vectors)

    def keep_items(
        self,
        items: ItemEmbedding,
        catalogue: Catalogue,
        make: ItemColumns | None = None,
        sources: Iterable[Tensor] = (),
    ) -> int:
        """Keep what is made of every item for scoring; see `ItemTable.keep`."""
        return self.kept.keep(items, catalogue, make, sources)

    def of_items(
        self, items: ItemEmbedding, beside: Beside, candidates: Candidates, make: ItemColumns | None = None
    ) -> Mapping[str, Tensor]:
        """Return the columns of the candidates' items that `keep_items` keeps, looked up or made."""
        return self.kept.look_up(items, candidates, self.requests.version(items, beside.taste, candidates), make)

    # -- users --------------------------------------------------------------------------------------------------------

    def encode(
        self, items: ItemEmbedding, encoded: EncodedHistory, histories: History, distinct: DistinctItems
    ) -> Beside:
        """Keep the newest behaviours and the taste of all."""
        return Beside(
            recent=None if self.short is None else encoded.newest(self.short_recent),
            taste=self.requests.encode(items, histories, distinct),
        )

    def append(self, beside: Beside, later: Beside) -> Beside:
        """Fold later events in; equal to encoding everything anew."""
        recent = None
        if beside.recent is not None and later.recent is not None:
            recent = beside.recent.joined(later.recent).newest(self.short_recent)
        return Beside(recent=recent, taste=self.requests.append(beside.taste, later.taste))

    # -- candidates ---------------------------------------------------------------------------------------------------

    def read_recent(
        self, histories: HistoryEncoder, beside: Beside, candidates: Candidates, context: Context, target: Tensor
    ) -> Tensor:
        """Return (Nc, D + totals + gap features): target attention over the newest behaviours.

        Args:
            histories: what encoded them.
            beside: of the users.
            candidates: of one request per user.
            context: of the requests.
            target: (Nc, D).
        """
        recent = beside.recent
        assert self.short is not None
        assert recent is not None
        hidden, gaps = histories.at_request(recent, context)
        values = recent.key.new_ones(recent.key.shape[0], self.totals)
        if gaps is not None:
            values = torch.cat([values, gaps], 1)
        found: Tensor = self.short(target, candidates.offsets, recent.key, recent.offsets, values, hidden)
        return found

    def forward(
        self,
        items: ItemEmbedding,
        beside: Beside,
        candidates: Candidates,
        context: Context,
        parts: Sequence[Tensor],
    ) -> Tensor:
        """Return the (Nc,) logits of what a ranker makes of candidates, (Nc, width) parts that fill the tower."""
        return self.requests.logits(self.tower, self.wide, parts, items, beside.taste, candidates, context)


__all__ = ["Beside", "SearchHead"]
