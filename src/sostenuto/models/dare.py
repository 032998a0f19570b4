"""DARE: decoupled attention and representation embeddings (ICLR 2025, arXiv:2410.02604).

One embedding table that both decides which behaviours matter and is summed into what is said of the user gets gradients
of two jobs, which disagree. Here each job has tables of its own; those of attention are narrow, so the search is
cheaper. Differs from the paper: docs/models/dare.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from sostenuto.layers.behaviour_bias import BehaviourBias
from sostenuto.layers.category_first import CategoryFirstSelector
from sostenuto.layers.embedding import ItemEmbedding, Table, TimedVectors
from sostenuto.layers.encoded_history import EncodedHistory, HistoryEncoder
from sostenuto.layers.initialise import xavier_linear
from sostenuto.layers.search_config import TwoStageConfig, item_embedding
from sostenuto.layers.search_head import Beside, SearchHead
from sostenuto.layers.selector import ProductSelector, SearchIndex, searched_kind
from sostenuto.ops.biased_attention import biased_attention
from sostenuto.ops.moments import moment_places
from sostenuto.ops.selected_attention import selected_attention
from sostenuto.ops.table_rows import distinct_values, few_rows, spread_rows
from sostenuto.ops.time_gaps import NUM_OCTAVES
from sostenuto.ops.top_k import Selected
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FIRST_KNOWN, UNKNOWN, FeatureSpec
from sostenuto.schema.histories import AuxHead, Candidates, Catalogue, Context, History, RankerOutput, RequestBatch

Tables = Literal["separate", "shared", "three", "four"]
TARGET_TIME = UNKNOWN  # row of a time table that stands for the candidate; distances begin behind it


@dataclass(frozen=True, kw_only=True, slots=True)
class DAREConfig(TwoStageConfig):
    """Sizes and switches of DARE. `gain` is of the item part of the scores; item widths are of the representation."""

    # separate: one set of tables for attention, one for representation; shared: one for both (the paper's TWIN);
    # three: attention of candidates, attention of behaviours, representation; four: representation apart as well
    tables: Tables = "separate"
    attention_item_dim: int = 0  # width of an item's own attention row; 0 leaves it out
    attention_category_dim: int = 4  # width per category level
    attention_field_dim: int = 4  # width per categorical field
    attention_time_dim: int = 4  # width of a time row
    attention_fixed_dim: int = 4  # fixed vectors and numbers of items enter attention through a map of this width
    attention_std: float = 0.05  # initial attention rows; shared tables have `table_std`
    attention_rate: float = 1.0  # learning rate of attention tables, times that of all tables
    time_dim: int = 8  # width of a time row in the representation; 0 leaves times out of both
    times: Literal["place", "gap"] = "place"  # distance from the end in moments, or octaves of the gap to the request
    time_rows: int = 2000  # largest distance that has a row of its own
    search: Literal["attention", "category"] = "attention"  # category: the hard variant
    target_aware: bool = True  # the tower reads target x interest (TR)
    projections: bool = False  # linear maps for each of attention and representation, candidate and behaviour
    full_weight: float = 1.0  # of the head over the whole history, beside the main loss; 0 leaves it out
    full_units: tuple[int, ...] = (64,)  # of that head
    short: bool = True  # the short branch that all two-stage rankers here have

    def __post_init__(self) -> None:
        TwoStageConfig.__post_init__(self)

        def refuse(name: str, wanted: str) -> None:
            raise SpecError(f"DAREConfig.{name} must be {wanted}, got {getattr(self, name)!r}; set it so")

        for name in ("time_rows", "attention_time_dim", "attention_fixed_dim"):
            if getattr(self, name) < 1:
                refuse(name, "at least 1")
        for name in ("attention_item_dim", "attention_category_dim", "attention_field_dim", "time_dim", "full_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                refuse(name, "0, which leaves it out, or more")
        for name in ("attention_std", "attention_rate"):
            if not getattr(self, name) > 0:
                refuse(name, "above 0")
        if self.full_weight and (not self.full_units or min(self.full_units) < 1):
            refuse("full_units", "one or more widths of at least 1")
        choices = {
            "tables": ("separate", "shared", "three", "four"),
            "times": ("place", "gap"),
            "search": ("attention", "category"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                refuse(name, f"one of {', '.join(allowed)}")

    def alike(self) -> DAREConfig:
        """Return the config with separate tables as wide as those of the representation: what sharing shares."""
        return replace(
            self,
            tables="separate",
            attention_item_dim=self.item_dim,
            attention_category_dim=self.category_dim,
            attention_field_dim=self.field_dim,
            attention_time_dim=max(self.time_dim, 1),
            attention_std=self.table_std,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DAREState:
    """All behaviours in both spaces; a value."""

    history: EncodedHistory  # representation: keys are (N, D); `side` is (N, 1), added to the scores
    index: SearchIndex  # attention: rows are (N, A)
    kind: Tensor  # (N,) int64 category that the hard variant searches by
    beside: Beside


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns of an item's vector come from tables."""

    trained: tuple[int, ...]
    categories: int  # of the trained ones, how many are of the category path
    item: int  # and how many of the item's own row, which stands first
    others: tuple[int, ...]  # fixed vectors and numbers, which nothing trains

    @classmethod
    def of(cls, config: DAREConfig, features: FeatureSpec) -> Columns:
        """Follow the order of `ItemEmbedding`."""
        fixed = min(config.key_vector_dim, config.vector_dim)
        categories = config.category_dim * len(features.categories)
        at = fixed + config.item_dim + categories
        trained, others = list(range(fixed, at)), list(range(fixed))
        for field in features.item_fields if config.field_dim else ():
            has_table = field.kind in {"categorical", "multi"}
            width = config.field_dim if has_table else field.width if field.kind == "vector" else 1
            (trained if has_table else others).extend(range(at, at + width))
            at += width
        return cls(trained=tuple(trained), categories=categories, item=config.item_dim, others=tuple(others))


def _table_part(features: FeatureSpec) -> FeatureSpec:
    """Return the features of items that have tables."""
    kinds = tuple(f for f in features.item_fields if f.kind in {"categorical", "multi"})
    return replace(features, item_fields=kinds)


def _own_tables(features: FeatureSpec, item_dim: int, category_dim: int, field_dim: int, std: float) -> nn.Module:
    """Return tables of items alone; an empty module where there would be no column."""
    spec = _table_part(features)
    if not item_dim and not (spec.categories and category_dim) and not (spec.item_fields and field_dim):
        return nn.Identity()
    return ItemEmbedding(spec, item_dim=item_dim, category_dim=category_dim, field_dim=field_dim, std=std)


class AttentionSpace(nn.Module):
    """Vectors of items for attention, (N, A): own tables, or the shared columns, and a map of what nothing trains.

    Where everything is in tables this is the paper's embedding and no more: no parameter stands between a table and a
    score. Fixed vectors and numbers have no rows to be decoupled, so each job reads them through a map of its own.
    """

    table_columns: Tensor
    other_columns: Tensor

    def __init__(self, config: DAREConfig, features: FeatureSpec, columns: Columns) -> None:
        super().__init__()
        self.shared = config.tables == "shared"
        self.tables: nn.Module = nn.Identity()
        item, categories = columns.item, columns.categories
        width = len(columns.trained)
        if not self.shared:
            item, level = config.attention_item_dim, config.attention_category_dim
            self.tables = _own_tables(features, item, level, config.attention_field_dim, config.attention_std)
            categories = level * len(features.categories)
            width = self.tables.out_dim if isinstance(self.tables, ItemEmbedding) else 0
        others = len(columns.others)
        self.from_fixed = xavier_linear(others, config.attention_fixed_dim, bias=False) if others else None
        self.register_buffer("table_columns", torch.tensor(columns.trained, dtype=torch.int64), persistent=False)
        self.register_buffer("other_columns", torch.tensor(columns.others, dtype=torch.int64), persistent=False)
        self.out_dim = width + (config.attention_fixed_dim if others else 0)
        self.of_category = slice(item, item + categories)
        if not self.out_dim:
            raise SpecError(
                "attention must have at least one column: attention_item_dim is 0 and the data have no category, item "
                "field or fixed vector; set attention_item_dim to 8 or more"
            )

    def forward(self, item: Tensor, category: Tensor, fields: Mapping[str, Tensor], vector: Tensor) -> Tensor:
        """Return (N, A) of items whose (N, D) vectors of the representation are at hand."""
        parts = []
        if self.shared and self.table_columns.numel():
            parts.append(vector[:, self.table_columns])
        elif isinstance(self.tables, ItemEmbedding):
            parts.append(self.tables(item, category, fields))
        if self.from_fixed is not None:
            parts.append(self.from_fixed(vector[:, self.other_columns].detach()))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


class DARE(nn.Module):
    """The behaviours of the highest scores in one space, averaged in another, and a tower."""

    def __init__(self, config: DAREConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        items = item_embedding(config, features)
        dim, hidden = items.out_dim, config.attention_units[0]
        self.num_categories = features.categories[-1].size if features.categories else 0
        self.histories = HistoryEncoder(
            features, items, hidden=hidden, field_dim=config.field_dim, gaps=config.gaps and config.short
        )
        columns = Columns.of(config, features)
        # attention
        self.attention = AttentionSpace(config, features, columns)
        apart = config.tables in ("three", "four")
        self.asking = AttentionSpace(config, features, columns) if apart else None  # of candidates
        width = self.attention.out_dim
        self.log_gain = nn.Parameter(torch.tensor(math.log(config.gain)))
        self.behaviour_bias = BehaviourBias(hidden if self.histories.side_dim else 0, 1, gaps=config.gaps)
        rows = FIRST_KNOWN + (NUM_OCTAVES if config.times == "gap" else config.time_rows)
        self.time = _time_table(rows, config.time_dim, config.table_std) if config.time_dim else None
        self.attention_time: Table | None = None
        if config.time_dim and config.tables != "shared":
            self.attention_time = _time_table(rows, config.attention_time_dim, config.attention_std)
        self.last_time = rows - 1
        # representation
        self.target_tables: nn.Module = nn.Identity()
        if config.tables == "four":
            self.target_tables = _own_tables(
                features, config.item_dim, config.category_dim, config.field_dim, config.table_std
            )
        self.maps = nn.ModuleDict()
        if config.projections:
            self.maps.update({"asked": _identity(width), "searched": _identity(width)})
            self.maps.update({"target": _identity(dim), "behaviour": _identity(dim)})
        whole = dim + config.time_dim
        self.selector = ProductSelector(config.kept)
        self.hard = CategoryFirstSelector(config.kept)
        parts = 3 if config.target_aware else 2
        self.head = SearchHead(
            config,
            features,
            items,
            parts * whole  # target, interest, and their product
            + self.behaviour_bias.gap_dim
            + 1  # behaviours found
            + (dim if config.short else 0),  # product of target and short interest
            totals=True,
            short=config.short,
            aux_dim=parts * whole if config.full_weight else 0,
            aux_units=config.full_units,
        )
        for module in self.attention_tables():
            module.rate = config.attention_rate

    @property
    def items(self) -> ItemEmbedding:
        """The tables of the representation."""
        return self.histories.items

    def attention_tables(self) -> list[Table]:
        """Return every table that makes scores and nothing else; none while tables are shared."""
        spaces = [space for space in (self.attention, self.asking) if space is not None]
        found = [module for space in spaces for module in space.modules() if isinstance(module, Table)]
        return found + ([] if self.attention_time is None else [self.attention_time])

    def table_pairs(self) -> dict[str, tuple[Table, Table]]:
        """Return (attention, representation) tables by name, of separate tables; what stands for the same rows.

        Raises:
            SpecError: tables are not separate.
        """
        if self.config.tables != "separate":
            raise SpecError(
                f"DAREConfig.tables must be separate to tell tables of two jobs apart, got {self.config.tables!r}; "
                "take config.alike()"
            )
        own = {name: m for name, m in self.items.named_modules() if isinstance(m, Table)}
        other = {name: m for name, m in self.attention.tables.named_modules() if isinstance(m, Table)}
        pairs = {name: (other[name], own[name]) for name in own if name in other}
        if self.attention_time is not None and self.time is not None:
            pairs["time"] = (self.attention_time, self.time)
        return pairs

    @torch.no_grad()
    def take_shared(self, weights: Mapping[str, Tensor]) -> None:
        """Take over parameters of a ranker with shared tables: both tables of a pair become the shared one."""
        own = dict(self.named_parameters())
        for name, value in weights.items():
            if name in own:
                own[name].copy_(value)
        for attention, representation in self.table_pairs().values():
            attention.weight.copy_(representation.weight)

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.head.calibrate(self.items, batches, item_vectors)

    def keep_items(self, catalogue: Catalogue) -> int:
        """Keep every item's vector and query for scoring; see `schema.ranker.ItemKeeper`."""

        parts = [self.attention, self.asking, self.target_tables, self.maps]
        sources = [t for part in parts if part is not None for t in (*part.parameters(), *part.buffers())]
        return self.head.keep_items(self.items, catalogue, self._columns, [*sources, self.log_gain])

    # -- the two functions --------------------------------------------------------------------------------------------

    def encode(self, histories: History) -> DAREState:
        """Embed the behaviours in both spaces; nothing here knows the candidate or the request."""
        distinct = self.histories.distinct(histories)
        encoded: EncodedHistory = self.histories(histories, distinct)
        first = histories.item.new_empty(distinct.key.shape[0])
        first[distinct.place] = torch.arange(histories.item.shape[0], device=first.device)
        fields = {field.name: histories.fields[field.name][first] for field in self.items.fields.fields}
        rows = self.attention(histories.item[first], histories.category[first], fields, distinct.key)
        rows = self._compared(rows)
        if "searched" in self.maps:
            rows = self.maps["searched"](rows)
        return DAREState(
            history=self.behaviour_bias.of_side(encoded),
            index=SearchIndex(
                offsets=histories.offsets, time_ms=histories.time_ms, rows=spread_rows(rows, distinct.place)
            ),
            kind=self._kind(histories.item, histories.category),
            beside=self.head.encode(self.items, encoded, histories, distinct),
        )

    def append(self, state: DAREState, events: History) -> DAREState:
        """Fold later events in; equal to encoding everything anew."""
        later = self.encode(events)
        kinds = replace(state.index, rows=state.kind).joined(replace(later.index, rows=later.kind))
        return DAREState(
            history=state.history.joined(later.history),
            index=state.index.joined(later.index),
            kind=kinds.rows,
            beside=self.head.append(state.beside, later.beside),
        )

    def score(self, state: DAREState, candidates: Candidates, context: Context) -> RankerOutput:
        """Search by attention, average by representation, and read the tower."""
        columns = self.of_items(state, candidates)
        target, asked = columns["target"], columns["asked"]
        time = self.time_index(state, context)
        gaps = self.behaviour_bias.gaps(state.history, None, context)
        bias = self.bias(state, time, gaps)
        chosen = self.search(state, candidates, asked, bias)
        interest, rest = self.exact(state, asked, bias, time, gaps, chosen)
        count = torch.log1p(chosen.taken.offsets.diff().float())[:, None]
        v = self._targets(target)
        parts = [self.head.embedding_dropout(torch.cat(self._read(v, interest), 1)), count]
        if rest is not None:
            parts.append(rest)
        if self.config.short:
            short = self.head.read_recent(self.histories, state.beside, candidates, context, target)
            parts += [self.head.embedding_dropout(target * short[:, : target.shape[1]]), short]
        logits = self.head(self.items, state.beside, candidates, context, parts)
        if not self.training or self.head.aux_head is None:
            return RankerOutput(logits=logits)
        full = self.full_interest(state, candidates, asked, bias, time)
        heard: Tensor = self.head.aux_head(torch.cat(self._read(v, full), 1)).squeeze(1)
        return RankerOutput(logits=logits, aux_heads={"full": AuxHead(heard, self.config.full_weight)})

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    # -- attention: s_i = gain <e_i, v> / sqrt(d) + <t_i, t_0> / sqrt(d_t) + b_i --------------------------------------

    def of_items(self, state: DAREState, candidates: Candidates) -> Mapping[str, Tensor]:
        """Return (Nc, D) vectors `target` and (Nc, A) scaled queries `asked` of candidates, looked up or made."""
        return self.head.of_items(self.items, state.beside, candidates, self._columns)

    def _columns(
        self, item: Tensor, category: Tensor, fields: Mapping[str, Tensor], version: Tensor | None = None
    ) -> dict[str, Tensor]:
        target = self.items(item, category, fields, version)
        asked = (self.attention if self.asking is None else self.asking)(item, category, fields, target)
        if isinstance(self.target_tables, ItemEmbedding):
            rows = self.target_tables(item, category, fields)
            target = target.detach().index_copy(1, self.attention.table_columns, rows)
        asked = self._compared(asked)
        if "asked" in self.maps:
            asked = self.maps["asked"](asked)
        return {"target": target, "asked": asked * (self.log_gain.exp() * asked.shape[1] ** -0.5)}

    def _compared(self, vectors: Tensor) -> Tensor:
        """Leave the category out of (N, A) vectors where it is the same for all that were searched for."""
        if self.config.search != "category":
            return vectors
        seen = vectors.new_ones(vectors.shape[1])
        seen[self.attention.of_category] = 0.0
        return vectors * seen

    def time_index(self, state: DAREState, context: Context) -> Tensor | None:
        """Return (N,) rows of the time tables: behaviours of one moment have no order, so they share a distance."""
        if self.time is None:
            return None
        history = state.history
        if self.config.times == "place":
            index = moment_places(history.offsets, history.time_ms).from_end(history.offsets)
        else:
            asked = context.time_ms.repeat_interleave(history.lengths, output_size=history.time_ms.shape[0])
            index = torch.log2(1.0 + (asked - history.time_ms).clamp(min=0).double() / 1000.0).long()
        return (FIRST_KNOWN + index).clamp(max=self.last_time)

    def bias(self, state: DAREState, time: Tensor | None, gaps: Tensor | None) -> Tensor:
        """Return (N,), what is added to the scores of behaviours whatever the candidate."""
        found = state.index.rows.new_zeros(state.index.rows.shape[0])
        if time is not None:
            table = self.time if self.attention_time is None else self.attention_time
            assert table is not None
            rows = table(time)
            mine = table(time.new_full((1,), TARGET_TIME))
            found = found + (rows * mine).sum(1) * rows.shape[1] ** -0.5
        if state.history.side is not None:
            found = found + state.history.side.squeeze(1)
        added: Tensor = self.behaviour_bias(found[:, None], gaps)
        return added.squeeze(1)

    def search(self, state: DAREState, candidates: Candidates, asked: Tensor, bias: Tensor) -> Selected:
        """Return the behaviours that each candidate attends over."""
        index = state.index
        if self.config.search == "category":
            kinds = self._kind(candidates.item, candidates.category)
            return self.hard.select(kinds, candidates.offsets, replace(index, rows=state.kind))
        rows = torch.cat([index.rows, bias[:, None]], 1).detach()
        query = torch.cat([asked, asked.new_ones(asked.shape[0], 1)], 1)
        return self.selector.select(query, candidates.offsets, replace(index, rows=rows))

    def relevance(self, state: DAREState, candidates: Candidates, context: Context) -> Iterator[Tensor]:
        """Yield per request (C, L), the scores of its candidates with all its behaviours."""
        asked = self.of_items(state, candidates)["asked"]
        gaps = self.behaviour_bias.gaps(state.history, None, context)
        bias = self.bias(state, self.time_index(state, context), gaps)
        rows = itertools.pairwise(state.index.offsets.tolist())
        for (c, d), (a, b) in zip(itertools.pairwise(candidates.offsets.tolist()), rows, strict=True):
            yield asked[c:d] @ state.index.rows[a:b].T + bias[a:b]

    # -- representation -----------------------------------------------------------------------------------------------

    def represented(self, state: DAREState, candidates: Candidates, context: Context) -> dict[str, Tensor]:
        """Return (Nc, D + T) each, what the long history makes of candidates: `interest` h, and `product` h * v."""
        columns = self.of_items(state, candidates)
        time = self.time_index(state, context)
        bias = self.bias(state, time, self.behaviour_bias.gaps(state.history, None, context))
        chosen = self.search(state, candidates, columns["asked"], bias)
        interest, _ = self.exact(state, columns["asked"], bias, time, None, chosen)
        return {"interest": interest, "product": interest * self._targets(columns["target"])}

    def exact(
        self,
        state: DAREState,
        asked: Tensor,
        bias: Tensor,
        time: Tensor | None,
        gaps: Tensor | None,
        chosen: Selected,
    ) -> tuple[Tensor, Tensor | None]:
        """Return (Nc, D + T) interests h of the selection, and its averaged gap features."""
        positions = chosen.taken.positions
        found = distinct_values(positions, max(bias.shape[0], 1))
        first = positions[found.first]
        taken = few_rows if first.numel() else spread_rows
        values = [taken(state.history.key, first)]
        if self.time is not None and time is not None:
            values.append(self.time(time[first]))
        if gaps is not None:
            values.append(gaps[first])
        read = selected_attention(
            asked[:, None],
            taken(state.index.rows, first),
            bias[first][:, None],
            torch.cat(values, 1),
            found.place,
            chosen.taken.offsets,
        ).squeeze(1)
        whole = self.items.out_dim + self.config.time_dim
        return self._mapped(read[:, :whole]), read[:, whole:] if gaps is not None else None

    def full_interest(
        self, state: DAREState, candidates: Candidates, asked: Tensor, bias: Tensor, time: Tensor | None
    ) -> Tensor:
        """Return (Nc, D + T) interests over whole histories: what teaches attention about what was not selected."""
        values = state.history.key
        if self.time is not None and time is not None:
            values = torch.cat([values, self.time(time)], 1)
        read = biased_attention(asked, candidates.offsets, state.index.rows, state.index.offsets, values, bias)
        return self._mapped(read)

    def _mapped(self, interest: Tensor) -> Tensor:
        """Apply the map of behaviours to averages: it is linear, so an average of maps is the map of an average."""
        if "behaviour" not in self.maps:
            return interest
        dim = self.items.out_dim
        return torch.cat([self.maps["behaviour"](interest[:, :dim]), interest[:, dim:]], 1)

    def _targets(self, target: Tensor) -> Tensor:
        """Return (Nc, D + T), v of the representation."""
        v = self.maps["target"](target) if "target" in self.maps else target
        if self.time is None:
            return v
        return torch.cat([v, self.time(torch.full_like(target[:, 0], TARGET_TIME, dtype=torch.int64))], 1)

    def _read(self, v: Tensor, interest: Tensor) -> list[Tensor]:
        """Return [v; h; v * h]."""
        return [v, interest, v * interest] if self.config.target_aware else [v, interest]

    def _kind(self, item: Tensor, category: Tensor) -> Tensor:
        return searched_kind(item, category, self.num_categories)


def _time_table(rows: int, dim: int, std: float) -> Table:
    """Make a time table. The candidate's row starts at 1: then what a distance is worth is learned from the first step,
    while the product of two small rows would hold both where they are. Ours."""
    table = Table(rows, dim, std=std)
    with torch.no_grad():
        table.weight[TARGET_TIME] = 1.0
    return table


def _identity(dim: int) -> nn.Linear:
    layer = nn.Linear(dim, dim, bias=False)
    nn.init.eye_(layer.weight)
    return layer


__all__ = ["DARE", "AttentionSpace", "Columns", "DAREConfig", "DAREState"]
