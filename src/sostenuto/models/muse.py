"""MUSE: multimodal search-based lifelong user interest modelling (arXiv:2512.07216).

Both stages read frozen content vectors of items. The general search unit keeps the behaviours whose content is most
like the candidate's; the exact search unit counts the same cosines in tiers (SimTier) and fuses them into the scores of
its attention (SA-TA). Items that nobody has met yet are searched for and searched by as soon as they have content.
Differs from the paper: docs/models/muse.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.layers.content_vectors import ContentVectors
from sostenuto.layers.dropout import Dropout
from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import EncodedHistory, HistoryEncoder, request_gaps
from sostenuto.layers.exact_attention import ExactAttention
from sostenuto.layers.initialise import xavier_linear, zero_linear
from sostenuto.layers.item_table import ItemTable
from sostenuto.layers.request_features import RequestFeatures
from sostenuto.layers.search_config import SearchConfig
from sostenuto.layers.selector import CategorySelector, ProductSelector, SearchIndex, searched_kind
from sostenuto.layers.target_attention import TargetAttention
from sostenuto.layers.taste import TasteState
from sostenuto.layers.tower import Tower
from sostenuto.ops.jagged import Taken, interleave_rows, lengths_to_offsets, newest_moments, row_index, segment_mean
from sostenuto.ops.selected_attention import Fusion, selected_attention
from sostenuto.ops.sim_tier import MIDDLE, TIERS, pair_cosines, tier_counts
from sostenuto.ops.table_rows import distinct_values, few_rows, spread_rows
from sostenuto.ops.time_gaps import NUM_GAP_FEATURES
from sostenuto.schema.content import ItemContent
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import AuxHead, Candidates, Catalogue, Context, History, RankerOutput, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class MUSEConfig(SearchConfig):
    """Sizes and switches of MUSE."""

    content: str = ""  # name of the content that is compared; "" = all there is, the mean of their cosines
    search: Literal["content", "id", "category"] = "content"  # what stage one goes by; stage two is the same
    fusion: bool = True  # SA-TA: cosines enter the scores; False is plain target attention
    fusion_start: tuple[float, float, float] = (1.0, 10.0, 1.0)  # factors of id score, cosine and their product
    tiers: bool = True  # SimTier: counts of cosines enter the tower
    count_padding: bool = False  # count places that a short history left empty as cosines of 0, as the published code
    aux_weight: float = 0.0  # of a head on the long interest alone, beside the main loss; 0 leaves it out
    aux_units: tuple[int, ...] = (64,)  # of that head

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        if self.search not in ("content", "id", "category"):
            raise SpecError(f"MUSEConfig.search must be one of content, id, category, got {self.search!r}; set it so")
        if self.aux_weight < 0:
            raise SpecError(f"MUSEConfig.aux_weight must be 0, which leaves it out, or more, got {self.aux_weight}")
        if self.aux_weight and (not self.aux_units or min(self.aux_units) < 1):
            raise SpecError(f"MUSEConfig.aux_units must be one or more widths of at least 1, got {self.aux_units}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentBlock:
    """Stored content of N behaviours: what a prefetch brings to the machine that ranks; a value.

    Content is a constant of the item, so the block never goes out of date: int8 codes are one byte a number.
    """

    rows: tuple[Tensor, ...]  # (N, W) each, as stored
    inverse: Tensor  # (N, number of contents) float32, what makes rows as long as they should be; 0 without content

    def unit(self) -> Tensor:
        """Return (N, all W) float32: products of two of them are mean cosines; zero where there is no content."""
        scaled = [rows.float() * self.inverse[:, n, None] for n, rows in enumerate(self.rows)]
        return torch.cat(scaled, 1) if len(scaled) > 1 else scaled[0]

    def take(self, positions: Tensor) -> ContentBlock:
        """Return the rows at some positions."""
        return ContentBlock(rows=tuple(rows[positions] for rows in self.rows), inverse=self.inverse[positions])

    def followed_by(self, later: ContentBlock) -> ContentBlock:
        """Return the rows of both, one behind the other."""
        rows = tuple(torch.cat(pair) for pair in zip(self.rows, later.rows, strict=True))
        return ContentBlock(rows=rows, inverse=torch.cat([self.inverse, later.inverse]))


class ContentSimilarity(nn.Module):
    """The frozen content of items, and cosines between them."""

    def __init__(self, config: MUSEConfig, features: FeatureSpec) -> None:
        super().__init__()
        there = [field.name for field in features.content]
        wanted = [field for field in features.content if config.content in ("", field.name)]
        if not there:
            raise SpecError(
                "MUSE searches by the content of items and the data have none; "
                "build some with `sostenuto content build`"
            )
        if not wanted:
            raise SpecError(
                f"MUSEConfig.content must be one of {', '.join(there)}, got {config.content!r}; or leave it"
            )
        self.contents = nn.ModuleList(ContentVectors(field, features.num_items) for field in wanted)

    def take_content(self, content: Mapping[str, ItemContent]) -> None:
        """Keep the content of all items; see `schema.ranker.ContentRanker`."""
        for part in self.contents:
            assert isinstance(part, ContentVectors)
            part.set_content(content[part.name])

    @torch.no_grad()
    def forward(self, item: Tensor) -> ContentBlock:
        """Return the content of (N,) items. A scale of codes falls out of a cosine and is not looked at."""
        rows, inverse = [], []
        for part in self.contents:
            assert isinstance(part, ContentVectors)
            stored = part.stored(item)
            length = stored.float().double().norm(dim=1)
            known = part.is_known(item) & (length > 0)
            rows.append(stored)
            inverse.append(torch.where(known, 1.0 / length.clamp(min=1e-12), 0.0) * len(self.contents) ** -0.5)
        return ContentBlock(rows=tuple(rows), inverse=torch.stack(inverse, 1).float())


class SimTier(nn.Module):
    """h_n = ln(1 + c_n) w_n over 22 tiers of cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(TIERS))

    def forward(self, counts: Tensor) -> Tensor:
        """Return (Nc, 22) of counts."""
        return torch.log1p(counts) * self.weight


@dataclass(frozen=True, kw_only=True, slots=True)
class MUSEState:
    """All behaviours with their content; a value."""

    history: EncodedHistory  # `side` is (N, H), added to the fused scores
    content: ContentBlock
    kind: Tensor  # (N,) int64 category, for the search by category
    recent: EncodedHistory  # the newest, as DIN keeps them
    taste: TasteState | None


class MUSE(nn.Module):
    """The behaviours of the most alike content, attention that reads both likenesses, and a tower."""

    def __init__(self, config: MUSEConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.content = ContentSimilarity(config, features)
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
        self.num_categories = features.categories[-1].size if features.categories else 0
        self.histories = HistoryEncoder(features, items, hidden=hidden, field_dim=config.field_dim, gaps=config.gaps)
        self.side_bias = xavier_linear(hidden, heads, bias=False) if self.histories.side_dim else None
        gap_dim = NUM_GAP_FEATURES + 1 if config.gaps else 0
        self.gap_bias = zero_linear(gap_dim, heads) if gap_dim else None
        self.exact = ExactAttention(dim, heads, config.head_dim, gain=config.gain)
        self.fusion: nn.Parameter | None = None
        if config.fusion:
            self.fusion = nn.Parameter(torch.tensor(config.fusion_start)[:, None].repeat(1, heads))
        self.long_tiers = SimTier() if config.tiers else None
        self.short_tiers = SimTier() if config.tiers else None
        self.short = TargetAttention(
            dim, config.attention_units, activation=config.attention_activation, normalise=config.normalise
        )
        self.requests = RequestFeatures(
            features, items, field_dim=config.field_dim, std=config.field_std, bins=config.bins
        )
        self.kept = ItemTable()
        self.embedding_dropout = Dropout(config.embedding_dropout)
        long_dim = heads * (dim + gap_dim)
        self.tower = Tower(
            2 * dim  # target, and its product with the short interest
            + long_dim
            + (heads * dim if config.products else 0)
            + 2 * dim  # means of the retrieved and of the newest
            + 1  # behaviours found
            + (2 * TIERS if config.tiers else 0)
            + dim
            + config.products
            + gap_dim  # short interest
            + self.requests.out_dim,
            config.tower_units,
            activation=config.tower_activation,
            dropout=config.dropout,
        )
        self.aux_head = None
        if config.aux_weight:
            self.aux_head = Tower(long_dim + dim, config.aux_units, activation="prelu")
        numbers = self.requests.num_numbers
        self.wide = zero_linear(numbers, 1) if config.wide and numbers else None
        self.by_product, self.by_category = ProductSelector(config.kept), CategorySelector(config.kept)

    @property
    def items(self) -> ItemEmbedding:
        """The embedding that behaviours and candidates share."""
        return self.histories.items

    def take_content(self, content: Mapping[str, ItemContent]) -> None:
        """Keep the content of all items; see `schema.ranker.ContentRanker`."""
        self.content.take_content(content)

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.requests.calibrate(self.items, batches, item_vectors)

    def keep_items(self, catalogue: Catalogue) -> int:
        """Keep every item's vector for scoring; see `schema.ranker.ItemKeeper`. Content is kept as it is."""

        def made(item: Tensor, about: Catalogue) -> dict[str, Tensor]:
            return {"target": self.items(item, about.category, about.fields)}

        sources = [*self.items.parameters(), *self.items.buffers()]
        return self.kept.fill(self.items.catalogue_of(catalogue), made, sources)

    # -- the two functions --------------------------------------------------------------------------------------------

    def encode(self, histories: History) -> MUSEState:
        """Embed the behaviours and fetch their content; nothing here knows the candidate or the request."""
        distinct = self.histories.distinct(histories)
        encoded: EncodedHistory = self.histories(histories, distinct)
        bias = None if self.side_bias is None or encoded.side is None else self.side_bias(encoded.side)
        return MUSEState(
            history=replace(encoded, side=bias),
            content=self.content(histories.item),
            kind=self._kind(histories.item, histories.category),
            recent=encoded.newest(self.config.short_recent),
            taste=self.requests.encode(self.items, histories, distinct),
        )

    def append(self, state: MUSEState, events: History) -> MUSEState:
        """Fold later events in; equal to encoding everything anew."""
        later = self.encode(events)
        positions, _ = interleave_rows(state.history.offsets, later.history.offsets)
        return MUSEState(
            history=state.history.joined(later.history),
            content=state.content.followed_by(later.content).take(positions),
            kind=torch.cat([state.kind, later.kind])[positions],
            recent=state.recent.joined(later.recent).newest(self.config.short_recent),
            taste=self.requests.append(state.taste, later.taste),
        )

    def score(self, state: MUSEState, candidates: Candidates, context: Context) -> RankerOutput:
        """Search by content, attend by content and identity, and read the tower."""
        target, content = self._target(state, candidates), self.content(candidates.item).unit()
        behaviours = state.content.unit()
        taken = self.search(state, candidates, target, content, behaviours)
        cosine = pair_cosines(content, behaviours, row_index(taken.offsets), taken.positions)
        found = distinct_values(taken.positions, max(state.history.time_ms.shape[0], 1))
        first = taken.positions[found.first]
        gaps = None if self.gap_bias is None else request_gaps(state.history, first, context)
        key = few_rows(state.history.key, first)
        long = self.attend(target, key, self._bias(state, first, gaps), gaps, cosine, found.place, taken.offsets)
        mean = segment_mean(spread_rows(key, found.place), taken.offsets)
        recent, dim = state.recent, self.items.out_dim
        hidden, recent_gaps = self.histories.at_request(recent, context)
        beside = recent.key.new_ones(recent.key.shape[0], int(self.config.products))
        if recent_gaps is not None:
            beside = torch.cat([beside, recent_gaps], 1)
        short = self.short(target, candidates.offsets, recent.key, recent.offsets, beside, hidden)
        vectors = [target, target * short[:, :dim], long.flatten(1)]
        if self.config.products:
            vectors.append((target[:, None] * long[:, :, :dim]).flatten(1))
        vectors += [mean, segment_mean(recent.key, recent.offsets, exact=True)[candidates.row]]
        parts = [self.embedding_dropout(torch.cat(vectors, 1)), torch.log1p(taken.offsets.diff().float())[:, None]]
        parts += self._tiers(state, candidates, content, behaviours, cosine, taken)
        numbers = self.requests(self.items, state.taste, candidates, context)
        logits: Tensor = self.tower(torch.cat([*parts, short, numbers], 1)).squeeze(1)
        if self.wide is not None:
            logits = logits + self.wide(numbers[:, : self.requests.num_numbers]).squeeze(1)
        if not self.training or self.aux_head is None:
            return RankerOutput(logits=logits)
        heard: Tensor = self.aux_head(torch.cat([long.flatten(1), mean], 1)).squeeze(1)
        return RankerOutput(logits=logits, aux_heads={"long": AuxHead(heard, self.config.aux_weight)})

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    # -- stage one ----------------------------------------------------------------------------------------------------

    def search(
        self, state: MUSEState, candidates: Candidates, target: Tensor, content: Tensor, behaviours: Tensor
    ) -> Taken:
        """Return the behaviours that each candidate attends over; no gradient flows back.

        Args:
            state: of the users.
            candidates: of one request per user.
            target: (Nc, D) item vectors.
            content: (Nc, W) unit content.
            behaviours: (N, W) the same of behaviours.
        """
        past = state.history
        if self.config.search == "category":
            kinds = SearchIndex(offsets=past.offsets, time_ms=past.time_ms, rows=state.kind)
            return self.by_category.select(
                self._kind(candidates.item, candidates.category), candidates.offsets, kinds
            ).taken
        if self.config.search == "id":
            content, behaviours = F.normalize(target.detach(), dim=1), F.normalize(past.key.detach(), dim=1)
        index = SearchIndex(offsets=past.offsets, time_ms=past.time_ms, rows=behaviours)
        return self.by_product.select(content, candidates.offsets, index).taken

    # -- stage two ----------------------------------------------------------------------------------------------------

    def attend(
        self,
        target: Tensor,
        key: Tensor,
        bias: Tensor | None,
        gaps: Tensor | None,
        cosine: Tensor,
        place: Tensor,
        offsets: Tensor,
    ) -> Tensor:
        """Return (Nc, H, D + gap features) interests; see `ops.selected_attention`.

        Args:
            target: (Nc, D).
            key: (U, D) behaviours that any candidate has found.
            bias: (U, H), added to their scores.
            gaps: (U, gap features), averaged beside the keys.
            cosine: (M,) of the pairs of candidates and what they have found.
            place: (M,) which of the U each pair is about.
            offsets: (Nc + 1,) where candidates begin among the pairs.
        """
        value = key if gaps is None else torch.cat([key, gaps], 1)
        fusion = None if self.fusion is None else Fusion(cosine, self.fusion)
        return selected_attention(self.exact.folded(target), key, bias, value, place, offsets, fusion=fusion)

    def _bias(self, state: MUSEState, first: Tensor, gaps: Tensor | None) -> Tensor | None:
        side = None if state.history.side is None else state.history.side[first]
        if gaps is None or self.gap_bias is None:
            return side
        hidden: Tensor = self.gap_bias(gaps)
        return hidden if side is None else side + hidden

    def _tiers(
        self,
        state: MUSEState,
        candidates: Candidates,
        content: Tensor,
        behaviours: Tensor,
        cosine: Tensor,
        taken: Taken,
    ) -> list[Tensor]:
        """Return (Nc, 22) of what was found, and of the newest behaviours."""
        if self.long_tiers is None or self.short_tiers is None:
            return []
        past, count = state.history, candidates.item.shape[0]
        newest = newest_moments(past.offsets, past.time_ms, self.config.short_recent)
        lengths = newest.offsets.diff()[candidates.row]
        offsets = lengths_to_offsets(lengths)
        candidate = row_index(offsets)
        inside = torch.arange(candidate.shape[0], device=candidate.device) - offsets[:-1][candidate]
        positions = newest.positions[newest.offsets[:-1][candidates.row[candidate]] + inside]
        recent = tier_counts(pair_cosines(content, behaviours, candidate, positions), candidate, count)
        found = tier_counts(cosine, row_index(taken.offsets), count)
        if self.config.count_padding:
            found[:, MIDDLE] += (self.config.kept - taken.offsets.diff()).clamp(min=0)
            recent[:, MIDDLE] += (self.config.short_recent - lengths).clamp(min=0)
        return [self.long_tiers(found), self.short_tiers(recent)]

    def _target(self, state: MUSEState, candidates: Candidates) -> Tensor:
        """Return the (Nc, D) vectors of the candidates' items."""
        if (kept := self.kept.rows(candidates)) is not None:
            return kept["target"]
        version = self.requests.version(self.items, state.taste, candidates)
        found: Tensor = self.items(candidates.item, candidates.category, candidates.fields, version)
        return found

    def _kind(self, item: Tensor, category: Tensor) -> Tensor:
        return searched_kind(item, category, self.num_categories)


__all__ = ["MUSE", "ContentBlock", "ContentSimilarity", "MUSEConfig", "MUSEState", "SimTier"]
