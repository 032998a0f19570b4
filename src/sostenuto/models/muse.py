"""MUSE: multimodal search-based lifelong user interest modelling (arXiv:2512.07216).

Both stages read frozen content vectors of items. The general search unit keeps the behaviours whose content is most
like the candidate's; the exact search unit counts the same cosines in tiers (SimTier) and fuses them into the scores of
its attention (SA-TA). Items that nobody has met yet are searched for and searched by as soon as they have content.
Differs from the paper: docs/models/muse.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.layers.content_vectors import ContentVectors
from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import EncodedHistory
from sostenuto.layers.long_branch import LongBranch
from sostenuto.layers.search_config import SearchConfig
from sostenuto.layers.search_head import Beside, SearchHead
from sostenuto.layers.selector import CategorySelector, ProductSelector, SearchIndex, searched_kind
from sostenuto.ops.jagged import Taken, interleave_rows, lengths_to_offsets, newest_moments, row_index, segment_mean
from sostenuto.ops.pair_products import pair_products
from sostenuto.ops.selected_attention import Fusion
from sostenuto.ops.sim_tier import MIDDLE, TIERS, tier_counts
from sostenuto.ops.table_rows import spread_rows
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
        if len(self.fusion_start) != 3 or not all(map(math.isfinite, self.fusion_start)):
            raise SpecError(
                f"MUSEConfig.fusion_start must be three numbers, of id score, cosine and their product, got "
                f"{self.fusion_start!r}; (1, 10, 1) is the default"
            )
        if not 0 <= self.aux_weight < math.inf:
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
            part.inverse_length(part.known.new_zeros(0, dtype=torch.int64))  # now, and not in the first request

    @torch.no_grad()
    def forward(self, item: Tensor) -> ContentBlock:
        """Return the content of (N,) items. A scale of codes falls out of a cosine and is not looked at."""
        share = len(self.contents) ** -0.5  # cosines are averaged
        rows, inverse = [], []
        for part in self.contents:
            assert isinstance(part, ContentVectors)
            rows.append(part.stored(item))
            inverse.append(part.inverse_length(item) * share)
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
    beside: Beside


class MUSE(nn.Module):
    """The behaviours of the most alike content, attention that reads both likenesses, and a tower."""

    def __init__(self, config: MUSEConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.num_categories = features.categories[-1].size if features.categories else 0
        self.content = ContentSimilarity(config, features)
        self.long = LongBranch(config, features)
        self.fusion: nn.Parameter | None = None
        if config.fusion:
            self.fusion = nn.Parameter(torch.tensor(config.fusion_start)[:, None].repeat(1, config.heads))
        self.long_tiers = SimTier() if config.tiers else None
        self.short_tiers = SimTier() if config.tiers else None
        dim = self.long.dim
        self.head = SearchHead(
            config,
            features,
            self.items,
            2 * dim  # target, and its product with the short interest
            + self.long.out_dim
            + (config.heads * dim if config.products else 0)
            + 2 * dim  # means of the retrieved and of the newest
            + 1  # behaviours found
            + (2 * TIERS if config.tiers else 0),
            totals=config.products,
            aux_dim=self.long.out_dim + dim if config.aux_weight else 0,
            aux_units=config.aux_units,
        )
        self.by_product, self.by_category = ProductSelector(config.kept), CategorySelector(config.kept)

    @property
    def items(self) -> ItemEmbedding:
        """The embedding that behaviours and candidates share."""
        return self.long.items

    def take_content(self, content: Mapping[str, ItemContent]) -> None:
        """Keep the content of all items; see `schema.ranker.ContentRanker`."""
        self.content.take_content(content)

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.head.calibrate(self.items, batches, item_vectors)

    def keep_items(self, catalogue: Catalogue) -> int:
        """Keep every item's vector for scoring; see `schema.ranker.ItemKeeper`. Content is kept as it is."""
        return self.head.keep_items(self.items, catalogue)

    # -- the two functions --------------------------------------------------------------------------------------------

    def encode(self, histories: History) -> MUSEState:
        """Embed the behaviours and fetch their content; nothing here knows the candidate or the request."""
        distinct = self.long.histories.distinct(histories)
        encoded: EncodedHistory = self.long.histories(histories, distinct)
        return MUSEState(
            history=self.long.bias.of_side(encoded),
            content=self.content(histories.item),
            kind=self._kind(histories.item, histories.category),
            beside=self.head.encode(self.items, encoded, histories, distinct),
        )

    def append(self, state: MUSEState, events: History) -> MUSEState:
        """Fold later events in; equal to encoding everything anew."""
        later = self.encode(events)
        positions, _ = interleave_rows(state.history.offsets, later.history.offsets)
        return MUSEState(
            history=state.history.joined(later.history),
            content=state.content.followed_by(later.content).take(positions),
            kind=torch.cat([state.kind, later.kind])[positions],
            beside=self.head.append(state.beside, later.beside),
        )

    def score(self, state: MUSEState, candidates: Candidates, context: Context) -> RankerOutput:
        """Search by content, attend by content and identity, and read the tower."""
        target = self.head.of_items(self.items, state.beside, candidates)["target"]
        content, behaviours = self.content(candidates.item).unit(), state.content.unit()
        taken = self.search(state, candidates, target, content, behaviours)
        cosine = pair_products(content, behaviours, row_index(taken.offsets), taken.positions).product.float()
        picked = self.long.picked(state.history, context, taken)
        long = self.long(target, picked, taken.offsets, None if self.fusion is None else Fusion(cosine, self.fusion))
        mean = segment_mean(spread_rows(picked.key, picked.place), taken.offsets)
        dim, histories = self.long.dim, self.long.histories
        short = self.head.read_recent(histories, state.beside, candidates, context, target)
        vectors = [target, target * short[:, :dim], long.flatten(1)]
        if self.config.products:
            vectors.append((target[:, None] * long[:, :, :dim]).flatten(1))
        vectors += [mean, self._recent_mean(state)[candidates.row]]
        parts = [self.head.embedding_dropout(torch.cat(vectors, 1)), torch.log1p(taken.offsets.diff().float())[:, None]]
        parts += self._tiers(state, candidates, content, behaviours, cosine, taken)
        logits = self.head(self.items, state.beside, candidates, context, [*parts, short])
        if not self.training or self.head.aux_head is None:
            return RankerOutput(logits=logits)
        heard: Tensor = self.head.aux_head(torch.cat([long.flatten(1), mean], 1)).squeeze(1)
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

    # -- what the tower reads beside the interest ---------------------------------------------------------------------

    def _recent_mean(self, state: MUSEState) -> Tensor:
        """Return the (B, D) mean vectors of the newest behaviours."""
        recent = state.beside.recent
        assert recent is not None
        return segment_mean(recent.key, recent.offsets, exact=True)

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
        cosine_to_recent = pair_products(content, behaviours, candidate, positions).product.float()
        recent = tier_counts(cosine_to_recent, candidate, count)
        found = tier_counts(cosine, row_index(taken.offsets), count)
        if self.config.count_padding:
            found[:, MIDDLE] += (self.config.kept - taken.offsets.diff()).clamp(min=0)
            recent[:, MIDDLE] += (self.config.short_recent - lengths).clamp(min=0)
        return [self.long_tiers(found), self.short_tiers(recent)]

    def _kind(self, item: Tensor, category: Tensor) -> Tensor:
        return searched_kind(item, category, self.num_categories)


__all__ = ["MUSE", "ContentBlock", "ContentSimilarity", "MUSEConfig", "MUSEState", "SimTier"]
