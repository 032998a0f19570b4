"""EM3: end-to-end training of a multimodal model and a ranking model (arXiv:2404.06078).

The ranking loss trains the encoders of item content. Three parts make that affordable: a Fusion-Q-Former makes one
vector of all modalities; the long history of contents goes through a low-rank change of a frozen map over cached
vectors; a contrastive loss lets content and item ids tell each other what they know. Around them stands DIN: see
docs/models/em3.md for what is known of the paper, what is inferred, and every choice of ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from sostenuto.layers.checks import check_config
from sostenuto.layers.content_vectors import ContentVectors
from sostenuto.layers.dropout import Dropout
from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import EncodedHistory, HistoryEncoder
from sostenuto.layers.fusion_q_former import FusionQFormer
from sostenuto.layers.initialise import xavier_linear, zero_linear
from sostenuto.layers.item_table import ItemTable
from sostenuto.layers.lora import LoRALinear
from sostenuto.layers.refreshed_rows import RefreshedRows
from sostenuto.layers.request_features import RequestFeatures
from sostenuto.layers.target_attention import TargetAttention
from sostenuto.layers.taste import TasteState
from sostenuto.layers.text_encoder import LastLayerEncoder, TokenEncoder
from sostenuto.layers.tower import Activation, Tower
from sostenuto.ops.contrastive import contrastive_loss, sampled_negatives
from sostenuto.ops.jagged import interleave_rows, segment_mean
from sostenuto.ops.table_rows import distinct_values, spread_rows
from sostenuto.ops.target_attention import Normalise
from sostenuto.ops.time_gaps import NUM_GAP_FEATURES
from sostenuto.schema.content import ItemContent
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import ContentField, FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RankerOutput, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class EM3Config:
    """Sizes and switches of EM3. The first part is DIN's."""

    item_dim: int = 0  # width of an item's own trained row; 0 leaves it out
    vector_dim: int = 32  # width of fixed item vectors from early co-occurrence; 0 leaves them out
    key_vector_dim: int = 8  # their leading columns that behaviours and candidates are compared by
    category_dim: int = 8  # width per category level
    field_dim: int = 8  # width per categorical field
    attention_units: tuple[int, ...] = (32,)  # hidden widths of the activation unit of the id interest
    attention_activation: Literal["relu", "prelu"] = "prelu"
    normalise: Normalise = "softmax"  # of both weighted sums
    gaps: bool = True  # the time from a behaviour to the request enters both activation units
    tower_units: tuple[int, ...] = (128, 64)
    tower_activation: Activation = "prelu"
    dropout: float = 0.1  # after each tower layer
    embedding_dropout: float = 0.0  # on item and content vectors that enter the tower
    id_dropout: float = 0.0  # chance that an item's own row is replaced by the unknown row
    wide: bool = True  # linear path from match features and candidate numbers to the logit
    bins: int = 12  # piecewise-linear bins per match feature and candidate number; 0 = none
    field_std: float = 0.01  # initial rows of candidate and context fields
    table_std: float = 1e-2  # initial embedding rows

    end_to_end: Literal["tokens", "states", "off"] = "tokens"  # the text encoder that the ranking loss trains: a small
    # one over tokens, the frozen encoder's last layer with a low-rank change over its stored states, or none
    frozen_beside: bool = True  # stored vectors of a trained text are a modality beside it. Ours
    text_dim: int = 128  # width of the small text encoder
    text_layers: int = 1
    text_heads: int = 4
    max_tokens: int = 24  # of a text; more are cut
    content_dim: int = 32  # D, width of modality tokens and of the content vector
    queries: int = 2  # Q of the Fusion-Q-Former
    fusion_blocks: int = 1
    fusion_heads: int = 4
    fusion_dropout: float = 0.0  # inside its blocks
    content_units: tuple[int, ...] = (16,)  # hidden widths of the activation unit of the content interest
    history_map: Literal["lora", "full", "frozen"] = "lora"  # from a behaviour's cached queries to its content vector
    lora_rank: int = 8
    lora_alpha: float = 8.0
    contrastive_weight: float = 0.1  # of the content-id loss; 0 leaves it out
    contrastive_temperature: float = 0.1
    contrastive_negatives: int = 16  # J, drawn for each item among those of the step
    contrastive_exclude_self: bool = True  # False is the public code
    # what a training step may cost, in items that go through encoders and fusion:
    fresh_targets: int = 1024  # candidates' items, with gradients
    fresh_history: int = 128  # further items of histories, with gradients
    refreshed: int = 512  # rows of the cache brought up to date in turn, without gradients

    def __post_init__(self) -> None:
        check_config(self)
        for name in ("text_dim", "text_layers", "text_heads", "max_tokens", "content_dim", "queries", "fusion_blocks",
                     "fusion_heads", "lora_rank", "contrastive_negatives", "fresh_targets", "refreshed"):  # fmt: skip
            if getattr(self, name) < 1:
                raise SpecError(f"EM3Config.{name} must be at least 1, got {getattr(self, name)}; raise it")
        if self.fresh_history < 0 or self.contrastive_weight < 0:
            name = "fresh_history" if self.fresh_history < 0 else "contrastive_weight"
            raise SpecError(f"EM3Config.{name} must be 0, which leaves it out, or more, got {getattr(self, name)}")
        if not self.contrastive_temperature > 0:
            raise SpecError(
                f"EM3Config.contrastive_temperature must be above 0, got {self.contrastive_temperature}; take 0.1"
            )
        choices = {
            "end_to_end": ("tokens", "states", "off"),
            "history_map": ("lora", "full", "frozen"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise SpecError(f"EM3Config.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= self.fusion_dropout < 1:
            raise SpecError(f"EM3Config.fusion_dropout must be in [0, 1), got {self.fusion_dropout}; 0 is off")


class FrozenModality(nn.Module):
    """Stored vectors of one kind of content, scaled to entries of about 1."""

    def __init__(self, content: ContentField, num_items: int) -> None:
        super().__init__()
        self.vectors = ContentVectors(content, num_items)
        self.out_dim = content.vector_dim
        self.scale = 1.0

    def set_content(self, content: ItemContent) -> None:
        """Take the vectors over."""
        self.vectors.set_content(content)
        known = content.known.nonzero().squeeze(1)
        sample = self.vectors(known[:: max(1, len(known) // 4096)])
        self.scale = 1.0 / max(float(sample.square().mean().sqrt()), 1e-6) if len(known) else 1.0

    def forward(self, item: Tensor) -> Tensor:
        """Return (N, out_dim) of (N,) items."""
        found: Tensor = self.vectors(item) * self.scale
        return found

    def is_known(self, item: Tensor) -> Tensor:
        """Return (N,) bool."""
        return self.vectors.is_known(item)


class TextModality(nn.Module):
    """Texts through an encoder that is trained; each distinct text of a call goes through it once."""

    def __init__(self, encoder: TokenEncoder | LastLayerEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.out_dim = encoder.out_dim
        self._at_hand: Tensor | None = None

    @contextlib.contextmanager
    def at_hand(self) -> Generator[None]:
        """Encode every text once; calls inside look it up: they are for many parts of the catalogue."""
        with torch.no_grad():
            self._at_hand = self.encoder(torch.arange(self.encoder.num_texts, device=self.encoder.item_of.device))
        try:
            yield
        finally:
            self._at_hand = None

    def set_content(self, content: ItemContent) -> None:
        """Take tokens or states over."""
        self.encoder.set_content(content)

    def forward(self, item: Tensor) -> Tensor:
        """Return (N, out_dim) of (N,) items."""
        text = self.encoder.of_items(item)
        if self._at_hand is not None:
            return spread_rows(self._at_hand, text)
        found = distinct_values(text, self.encoder.num_texts)
        vectors: Tensor = self.encoder(text[found.first])
        return spread_rows(vectors, found.place)

    def is_known(self, item: Tensor) -> Tensor:
        """Return (N,) bool."""
        return self.encoder.of_items(item) > 0


class ContentEncoder(nn.Module):
    """All modalities of an item, fused (section 3 of the specification): Q * D numbers, then the content vector."""

    def __init__(self, config: EM3Config, features: FeatureSpec) -> None:
        super().__init__()
        modalities: dict[str, FrozenModality | TextModality] = {}
        for field in features.content:
            if (encoder := _encoder(config, field)) is not None:
                modalities[f"{field.name}_trained"] = TextModality(encoder)
            if encoder is None or config.frozen_beside:
                modalities[f"{field.name}_stored"] = FrozenModality(field, features.num_items)
        self.modalities = nn.ModuleDict(modalities)
        dim = config.content_dim
        self.project = nn.ModuleDict({name: xavier_linear(m.out_dim, dim) for name, m in modalities.items()})
        self.fuse = FusionQFormer(
            dim,
            queries=config.queries,
            blocks=config.fusion_blocks,
            heads=config.fusion_heads,
            dropout=config.fusion_dropout,
        )
        self.out_dim = self.fuse.out_dim

    def take_content(self, content: Mapping[str, ItemContent]) -> None:
        """Hand every modality its content."""
        for name, modality in self.modalities.items():
            modality.set_content(content[name.rpartition("_")[0]])  # type: ignore[operator]

    def forward(self, item: Tensor) -> Tensor:
        """Return (N, Q * D) of (N,) items."""
        tokens = torch.stack([self.project[name](m(item)) for name, m in self.modalities.items()], 1)
        fused: Tensor = self.fuse(tokens, self.is_present(item))
        return fused

    @contextlib.contextmanager
    def for_all_items(self) -> Generator[None]:
        """Prepare for calls that together ask for every item, without gradients or dropout."""
        was_training = self.training
        self.eval()
        try:
            with contextlib.ExitStack() as stack:
                for modality in self.modalities.values():
                    if isinstance(modality, TextModality):
                        stack.enter_context(modality.at_hand())
                yield
        finally:
            self.train(was_training)

    def is_present(self, item: Tensor) -> Tensor:
        """Return (N, M) bool."""
        return torch.stack([m.is_known(item) for m in self.modalities.values()], 1)  # type: ignore[operator]


def _encoder(config: EM3Config, field: ContentField) -> TokenEncoder | LastLayerEncoder | None:
    """Return the trained encoder of one kind of content, None where it has stored vectors only."""
    if config.end_to_end == "tokens" and "tokens" in field.kinds and field.token_dim:
        return TokenEncoder(
            field,
            dim=config.text_dim,
            layers=config.text_layers,
            heads=config.text_heads,
            max_tokens=config.max_tokens,
        )
    if config.end_to_end == "states" and "states" in field.kinds:
        return LastLayerEncoder(field, rank=config.lora_rank, alpha=config.lora_alpha, max_tokens=config.max_tokens)
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class EM3State:
    """The behaviours that attention sees, whose content is looked up by item, and the taste of all of them."""

    history: EncodedHistory
    item: Tensor  # (N,) int64
    taste: TasteState | None


class EM3(nn.Module):
    """DIN with a content interest whose encoders the ranking loss trains."""

    def __init__(self, config: EM3Config, features: FeatureSpec) -> None:
        super().__init__()
        if not features.content:
            raise SpecError(
                "EM3 lives by the content of items and the data have none; build some with `sostenuto content build`"
            )
        self.config = config
        self.num_items, self.num_item_rows = features.num_items, features.num_item_rows
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
        dim, width = items.out_dim, config.content_dim
        self.histories = HistoryEncoder(
            features,
            items,
            hidden=config.attention_units[0],
            field_dim=config.field_dim,
            std=config.table_std,
            gaps=config.gaps,
        )
        self.attention = TargetAttention(
            dim, config.attention_units, activation=config.attention_activation, normalise=config.normalise
        )
        self.requests = RequestFeatures(
            features, items, field_dim=config.field_dim, std=config.field_std, bins=config.bins
        )
        # content
        self.content = ContentEncoder(config, features)
        self.to_target = xavier_linear(self.content.out_dim, width)
        self.of_behaviours: LoRALinear | nn.Linear
        if config.history_map == "full":
            self.of_behaviours = xavier_linear(self.content.out_dim, width)
            self.of_behaviours.load_state_dict(self.to_target.state_dict())
        else:
            rank = config.lora_rank if config.history_map == "lora" else 0
            self.of_behaviours = LoRALinear(self.content.out_dim, width, rank=rank, alpha=config.lora_alpha)
            self.of_behaviours.set_base(self.to_target.weight, self.to_target.bias)
        self.cache = RefreshedRows(features.num_items, self.content.out_dim)
        self.register_buffer("base", torch.zeros(0 if config.history_map == "full" else features.num_items, width))
        self.kept, self.kept_contents = ItemTable(), ItemTable()
        self.content_attention = TargetAttention(
            width, config.content_units, activation=config.attention_activation, normalise=config.normalise
        )
        hidden = config.content_units[0]
        self.content_gaps = xavier_linear(NUM_GAP_FEATURES + 1, hidden, bias=False) if config.gaps else None
        contrast = config.contrastive_weight > 0
        self.id_dim = items.identity_dim or dim
        self.contrast_content = xavier_linear(width, width) if contrast else None
        self.contrast_id = xavier_linear(self.id_dim, width) if contrast else None

        gap_dim = NUM_GAP_FEATURES + 1 if config.gaps else 0
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.tower = Tower(
            (4 * dim + 1 + gap_dim) + (4 * width + 2) + self.requests.out_dim,
            config.tower_units,
            activation=config.tower_activation,
            dropout=config.dropout,
        )
        numbers = self.requests.num_numbers
        self.wide = zero_linear(numbers, 1) if config.wide and numbers else None

    # -- what is handed in --------------------------------------------------------------------------------------------

    def take_content(self, content: Mapping[str, ItemContent]) -> None:
        """Keep the content of all items; see `schema.ranker.ContentRanker`."""
        self.content.take_content(content)
        self.kept_contents.empty()

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step: see `RequestFeatures.calibrate`, and fill the cache."""
        self.requests.calibrate(self.histories.items, batches, item_vectors)
        self._fill_cache()

    def keep_items(self, catalogue: Catalogue) -> int:
        """Keep every item's vector and content vectors for scoring; see `schema.ranker.ItemKeeper`."""
        num_bytes = self.kept.keep(self.histories.items, catalogue)
        self._keep_contents()
        return num_bytes + self.kept_contents.num_bytes

    # -- the two functions --------------------------------------------------------------------------------------------

    def encode(self, histories: History) -> EM3State:
        """Embed the behaviours; their content stays an item number, because it is a constant of the item."""
        distinct = self.histories.distinct(histories)
        encoded: EncodedHistory = self.histories(histories, distinct)
        taste = self.requests.encode(self.histories.items, histories, distinct)
        return EM3State(history=encoded, item=histories.item, taste=taste)

    def append(self, state: EM3State, events: History) -> EM3State:
        """Fold later events in; equal to encoding everything anew."""
        later = self.encode(events)
        positions, _ = interleave_rows(state.history.offsets, later.history.offsets)
        return EM3State(
            history=state.history.joined(later.history),
            item=torch.cat([state.item, later.item])[positions],
            taste=self.requests.append(state.taste, later.taste),
        )

    def score(self, state: EM3State, candidates: Candidates, context: Context) -> RankerOutput:
        """Weigh the behaviours for each candidate, by id and by content, and read the tower."""
        past = state.history
        version = self.requests.version(self.histories.items, state.taste, candidates)
        target = self.kept.look_up(self.histories.items, candidates, version)["target"]
        content, behaviours, fresh = self._contents(candidates.item, state.item)
        hidden, gaps = self.histories.at_request(past, context)
        ones = past.key.new_ones(past.key.shape[0], 1)
        beside = ones if gaps is None else torch.cat([ones, gaps], 1)
        interest = self.attention(target, candidates.offsets, past.key, past.offsets, beside, hidden)
        by_gap = None if gaps is None or self.content_gaps is None else self.content_gaps(gaps)
        liked = self.content_attention(content, candidates.offsets, behaviours, past.offsets, ones, by_gap)
        mean = segment_mean(past.key, past.offsets, exact=True)[candidates.row]
        liked_mean = segment_mean(behaviours, past.offsets, exact=True)[candidates.row]
        width = content.shape[1]
        agreement = (content * liked[:, :width]).sum(1, keepdim=True) * width**-0.5
        vectors = [target, target * mean, target * interest[:, : target.shape[1]]]
        vectors += [content, content * liked_mean, content * liked[:, :width]]
        pooled = self.embedding_dropout(torch.cat(vectors, 1))
        logits = self.requests.logits(
            self.tower,
            self.wide,
            [pooled, interest, liked, agreement],
            self.histories.items,
            state.taste,
            candidates,
            context,
        )
        losses = {}
        if fresh is not None and self.config.contrastive_weight:
            losses["contrastive"] = self.config.contrastive_weight * self._contrast(content, target, fresh, candidates)
        return RankerOutput(logits=logits, aux_losses=losses)

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    # -- content vectors ----------------------------------------------------------------------------------------------

    def content_vectors(self, item: Tensor) -> tuple[Tensor, Tensor]:
        """Return content vectors of (N,) items as targets and as behaviours, (N, D) each, made anew."""
        fused = self.content(item)
        return self.to_target(fused), self.of_behaviours(fused)

    def _contents(self, targets: Tensor, behaviours: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (Nc, D) of targets, (Nh, D) of behaviours, and in training which targets have gradients, (Nc,) bool.

        In evaluation the table of all items is made once for the parameters of now; where a gradient is wanted there,
        the items of the call are made anew.
        """
        if self.training:
            return self._bounded(targets, behaviours)
        if not torch.is_grad_enabled():
            kept = self.kept_contents.columns() or self._keep_contents()
            return kept["target"][targets], spread_rows(kept["behaviour"], behaviours), None
        found = distinct_values(torch.cat([targets, behaviours]), self.num_items)
        of_targets, of_behaviours = self.content_vectors(torch.cat([targets, behaviours])[found.first])
        count = len(targets)
        return of_targets[found.place[:count]], spread_rows(of_behaviours, found.place[count:]), None

    def _bounded(self, targets: Tensor, behaviours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Do it in training: a bounded number of items with gradients, the rest from the cache."""
        if not bool(self.cache.filled):
            self._fill_cache()
        asked, past = distinct_values(targets, self.num_items), distinct_values(behaviours, self.num_items)
        target_item, past_item = targets[asked.first], behaviours[past.first]
        fresh = torch.cat([_some(target_item, self.config.fresh_targets), _some(past_item, self.config.fresh_history)])
        fresh = torch.unique(fresh)
        with self._exact():
            round_is_over = self.cache.refresh(self.content, self.config.refreshed)
        self._write_base(self._refreshed_last())
        made = self.content(fresh).float()  # autocast may make it in lower precision; what is kept has one
        if not self.config.fusion_dropout:  # a row with noise in it is not kept
            self.cache.write(fresh, made)
            self._write_base(fresh)
        if round_is_over:
            self._synchronise()
        # from here on nothing is written before the backward pass
        # `fresh` rises, so a search finds an item in it: no work over the whole catalogue
        place_of = partial(_place_in, fresh)

        def with_fresh(item: Tensor) -> Tensor:
            at = place_of(item)
            return torch.where((at >= 0)[:, None], made[at.clamp(min=0)], self.cache.rows[item])

        of_targets = self.to_target(with_fresh(target_item))
        if isinstance(self.of_behaviours, LoRALinear):
            of_past = self.of_behaviours.from_rows(self.base[past_item], self.cache.rows, past_item)
            at = place_of(past_item)
            place = (at >= 0).nonzero().squeeze(1)
            of_past = of_past.index_copy(0, place, self.of_behaviours(made[at[place]]).float())
        else:
            of_past = self.of_behaviours(with_fresh(past_item))
        return (
            spread_rows(of_targets, asked.place),
            spread_rows(of_past, past.place),
            (place_of(target_item) >= 0)[asked.place],
        )

    def _contrast(self, content: Tensor, target: Tensor, fresh: Tensor, candidates: Candidates) -> Tensor:
        """Return the content-id loss over distinct items that have content, a gradient and an id row of their own."""
        assert self.contrast_content is not None
        assert self.contrast_id is not None
        first = distinct_values(candidates.item, self.num_items).first
        item = candidates.item[first]
        known = fresh[first] & self.content.is_present(item).any(1) & (item < self.num_item_rows)
        rows = first[known]
        left: Tensor
        right: Tensor
        left, right = self.contrast_content(content[rows]), self.contrast_id(target[rows, : self.id_dim])
        if len(rows) < 2:
            return 0.0 * (left.sum() + right.sum())
        negative = sampled_negatives(
            len(rows),
            self.config.contrastive_negatives,
            exclude_self=self.config.contrastive_exclude_self,
            like=rows,
        )
        return contrastive_loss(left, right, negative, temperature=self.config.contrastive_temperature)

    # -- the cache of training ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _exact(self) -> Generator[None]:
        """Make content without dropout."""
        was_training = self.content.training
        self.content.eval()
        try:
            yield
        finally:
            self.content.train(was_training)

    def _fill_cache(self) -> None:
        with self.content.for_all_items():
            self.cache.fill(self.content)
        self._synchronise()

    @torch.no_grad()
    def _synchronise(self) -> None:
        """Make the frozen map of histories that of targets, and all its cached results anew."""
        if isinstance(self.of_behaviours, LoRALinear):
            self.of_behaviours.set_base(self.to_target.weight, self.to_target.bias)
            self.base.copy_(self.of_behaviours.base(self.cache.rows))

    @torch.no_grad()
    def _write_base(self, item: Tensor) -> None:
        if isinstance(self.of_behaviours, LoRALinear):
            self.base[item] = self.of_behaviours.base(self.cache.rows[item]).float()

    def _refreshed_last(self) -> Tensor:
        end = int(self.cache.cursor) or self.num_items
        return torch.arange(max(end - self.config.refreshed, 0), end, device=self.base.device)

    def _keep_contents(self) -> Mapping[str, Tensor]:
        """Make the content vectors of all items for the parameters of now, and return them."""

        def made(item: Tensor, _: Catalogue) -> dict[str, Tensor]:
            target, behaviour = self.content_vectors(item)
            return {"target": target, "behaviour": behaviour}

        nothing = torch.zeros(self.num_items, 0, dtype=torch.int64, device=self.base.device)
        parts: list[nn.Module] = [self.content, self.to_target, self.of_behaviours]
        sources = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        with self.content.for_all_items():
            self.kept_contents.fill(Catalogue(category=nothing), made, sources)
        with torch.no_grad():
            kept = self.kept_contents.columns()
        assert kept is not None
        return kept

    base: Tensor


def _place_in(rising: Tensor, item: Tensor) -> Tensor:
    """Return (N,) int64 places of items among rising ones, -1 where they are not."""
    if not len(rising):
        return torch.full_like(item, -1)
    at = torch.searchsorted(rising, item).clamp(max=len(rising) - 1)
    return torch.where(rising[at] == item, at, -1)


def _some(item: Tensor, count: int) -> Tensor:
    """Return at most `count` of distinct items, drawn from torch's generator where there are more."""
    return item if len(item) <= count else item[torch.randperm(len(item), device=item.device)[:count]]


__all__ = ["EM3", "ContentEncoder", "EM3Config", "EM3State"]
