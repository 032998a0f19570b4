"""All of a two-stage ranker but its search: SIM, ETA and TWIN differ in which behaviours they select, and in no more.

whole history --> item vectors ------------------------------> selected by the model
                                                                    |
candidate ----> vector ----> exact attention over the selected <----+
   |               |                  |
   |               +--> target attention over the newest (as in DIN)
   v                                  v
match, fields, context, taste ----> tower ----> logit
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.dropout import Dropout
from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import DistinctItems, EncodedHistory, HistoryEncoder, request_gaps
from sostenuto.layers.exact_attention import ExactAttention
from sostenuto.layers.initialise import xavier_linear, zero_linear
from sostenuto.layers.item_table import ItemTable
from sostenuto.layers.request_features import RequestFeatures
from sostenuto.layers.search_config import SearchConfig
from sostenuto.layers.target_attention import TargetAttention
from sostenuto.layers.taste import TasteState
from sostenuto.layers.tower import Tower
from sostenuto.ops.selected_attention import selected_attention
from sostenuto.ops.table_rows import distinct_values, few_rows
from sostenuto.ops.time_gaps import NUM_GAP_FEATURES
from sostenuto.ops.top_k import Selected
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """What a two-stage ranker keeps of users beside the index of its search; a value."""

    history: EncodedHistory  # all behaviours; `side` is (N, H), what action, value and event fields add to the scores
    recent: EncodedHistory  # the newest, as DIN keeps them
    taste: TasteState | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Picked:
    """The behaviours that any candidate's selection holds, once each."""

    first: Tensor  # (U,) int64 positions in the history
    place: Tensor  # (M,) int64 which of them each pair of a selection is about
    key: Tensor  # (U, D) item vectors
    bias: Tensor | None  # (U, H) added to their scores
    gaps: Tensor | None  # (U, NUM_GAP_FEATURES + 1)

    @property
    def value(self) -> Tensor:
        """(U, V) what is averaged beside the item vectors."""
        return self.key.new_zeros(self.key.shape[0], 0) if self.gaps is None else self.gaps


class TwoStage(nn.Module):
    """Embeddings, exact attention, short branch, request features and tower.

    What only a behaviour has (action, value, event fields, gap to the request, same place) becomes one number per head,
    added to its scores: linear in those features. The gap features are averaged beside the item vectors.
    """

    def __init__(self, config: SearchConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
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
        dim, hidden, heads = items.out_dim, config.attention_units[0], config.heads
        self.dim = dim
        self.num_categories = features.categories[-1].size if features.categories else 0
        self.histories = HistoryEncoder(features, items, hidden=hidden, field_dim=config.field_dim, gaps=config.gaps)
        self.side_bias = xavier_linear(hidden, heads, bias=False) if self.histories.side_dim else None
        gap_dim = NUM_GAP_FEATURES + 1 if config.gaps else 0
        self.gap_bias = zero_linear(gap_dim, heads) if gap_dim else None
        self.exact = ExactAttention(dim, heads, config.head_dim, gain=config.gain)
        self.short = TargetAttention(
            dim, config.attention_units, activation=config.attention_activation, normalise=config.normalise
        )
        self.requests = RequestFeatures(
            features, items, field_dim=config.field_dim, std=config.field_std, bins=config.bins
        )
        self.kept = ItemTable()
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.tower = Tower(
            dim  # target
            + heads * (dim + gap_dim)  # long interests
            + 1  # behaviours found
            + dim
            + gap_dim  # short interest
            + (dim + heads * dim + 1 if config.products else 0)  # target x interests, and the sum of short weights
            + self.requests.out_dim,
            config.tower_units,
            activation=config.tower_activation,
            dropout=config.dropout,
        )
        numbers = self.requests.num_numbers
        self.wide = zero_linear(numbers, 1) if config.wide and numbers else None

    @property
    def items(self) -> ItemEmbedding:
        """The embedding that behaviours and candidates share."""
        return self.histories.items

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.requests.calibrate(self.items, batches, item_vectors)

    def keep_items(
        self,
        catalogue: Catalogue,
        more: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
        sources: Iterable[Tensor] = (),
    ) -> int:
        """Keep every item's vector for scoring, and what the search makes of it; see `schema.ranker.ItemKeeper`.

        Args:
            catalogue: all items.
            more: gives further columns of (n, D) vectors.
            sources: the parameters and buffers that `more` reads.
        """

        def made(item: Tensor, about: Catalogue) -> dict[str, Tensor]:
            target = self.items(item, about.category, about.fields)
            return {"target": target, **(more(target) if more is not None else {})}

        of_items = [*self.items.parameters(), *self.items.buffers()]
        return self.kept.fill(self.items.catalogue_of(catalogue), made, [*of_items, *sources])

    def of_items(
        self, past: Past, candidates: Candidates, more: Callable[[Tensor], Mapping[str, Tensor]] | None = None
    ) -> Mapping[str, Tensor]:
        """Return the columns of the candidates' items that `keep_items` keeps, looked up or made."""
        if (kept := self.kept.rows(candidates)) is not None:
            return kept
        version = self.requests.version(self.items, past.taste, candidates)
        target = self.items(candidates.item, candidates.category, candidates.fields, version)
        return {"target": target, **(more(target) if more is not None else {})}

    def encode(self, histories: History, distinct: DistinctItems) -> Past:
        """Embed the behaviours; nothing here knows the candidate or the request."""
        encoded: EncodedHistory = self.histories(histories, distinct)
        bias = None if self.side_bias is None or encoded.side is None else self.side_bias(encoded.side)
        return Past(
            history=EncodedHistory(
                offsets=encoded.offsets, key=encoded.key, side=bias, time_ms=encoded.time_ms, place=encoded.place
            ),
            recent=encoded.newest(self.config.short_recent),
            taste=self.requests.encode(self.items, histories, distinct),
        )

    def append(self, past: Past, later: Past) -> Past:
        """Fold later events in; equal to encoding everything anew."""
        return Past(
            history=past.history.joined(later.history),
            recent=past.recent.joined(later.recent).newest(self.config.short_recent),
            taste=self.requests.append(past.taste, later.taste),
        )

    def bias(self, side: Tensor | None, gaps: Tensor | None) -> Tensor | None:
        """Return (N, H), what is added to the scores of behaviours with these side terms and gaps."""
        if gaps is None or self.gap_bias is None:
            return side
        hidden: Tensor = self.gap_bias(gaps)
        return hidden if side is None else side + hidden

    def gaps(self, history: EncodedHistory, context: Context) -> Tensor | None:
        """Return (N, NUM_GAP_FEATURES + 1) of all behaviours, None where gaps are left out."""
        if self.gap_bias is None:
            return None
        return request_gaps(history, None, context)

    def picked(self, history: EncodedHistory, context: Context, chosen: Selected) -> Picked:
        """Gather the behaviours of a selection, and what the request adds to them; each of them once."""
        positions = chosen.taken.positions
        found = distinct_values(positions, max(history.time_ms.shape[0], 1))
        first = positions[found.first]
        side = None if history.side is None else history.side[first]
        gaps = None if self.gap_bias is None else request_gaps(history, first, context)
        key = few_rows(history.key, first)
        return Picked(first=first, place=found.place, key=key, bias=self.bias(side, gaps), gaps=gaps)

    def attend(self, past: Past, context: Context, target: Tensor, chosen: Selected) -> tuple[Tensor, Tensor]:
        """Return (Nc, H, D + V) interests of candidates with a selection each, and the (Nc,) sizes of these."""
        picked = self.picked(past.history, context, chosen)
        query, offsets = self.exact.folded(target), chosen.taken.offsets
        interest = selected_attention(
            query, picked.key, picked.bias, picked.value, picked.place, offsets, with_key=True
        )
        return interest, offsets[1:] - offsets[:-1]

    def predict(
        self,
        past: Past,
        candidates: Candidates,
        context: Context,
        target: Tensor,
        interest: Tensor,
        count: Tensor,
    ) -> Tensor:
        """Weigh the newest behaviours for each candidate and read the tower.

        Args:
            past: of the users.
            candidates: of one request per user.
            context: of the requests.
            target: (Nc, D).
            interest: (Nc, H, D + V) of the exact attention.
            count: (Nc,) behaviours that it has read.

        Returns:
            (Nc,) logits.
        """
        recent, dim, config = past.recent, self.dim, self.config
        hidden, gaps = self.histories.at_request(recent, context)
        beside = recent.key.new_ones(recent.key.shape[0], int(config.products))
        if gaps is not None:
            beside = torch.cat([beside, gaps], 1)
        short = self.short(target, candidates.offsets, recent.key, recent.offsets, beside, hidden)
        parts = [target, interest.flatten(1)]
        if config.products:
            products = (target[:, None] * interest[:, :, :dim]).flatten(1)
            parts = [target, target * short[:, :dim], interest.flatten(1), products]
        pooled = self.embedding_dropout(torch.cat(parts, 1))
        numbers = self.requests(self.items, past.taste, candidates, context)
        found = torch.log1p(count.float())[:, None]
        logits: Tensor = self.tower(torch.cat([pooled, found, short, numbers], 1)).squeeze(1)
        if self.wide is not None:
            logits = logits + self.wide(numbers[:, : self.requests.num_numbers]).squeeze(1)
        return logits


__all__ = ["Past", "Picked", "TwoStage"]
