"""STIM: dynamic forgetting and spatio-temporal periodic interests (arXiv:2508.02451). Our realisation of the abstract.

A forgetting curve that repetition slows down says which of a long history is alive; masks of the newest, of the same
hour, weekday and place each feed an expert; a gate that asks the query mixes the experts; several interests are read
from the newest behaviours. The paper's equations were not to be had: docs/models/stim.md says what is known of it
(four sentences) and what is ours (everything else).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.layers.checks import check_config
from sostenuto.layers.dropout import Dropout
from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import DistinctItems, EncodedHistory, HistoryEncoder
from sostenuto.layers.expert_gate import Mixed, QueryGate, UniformGate
from sostenuto.layers.initialise import xavier_linear, zero_linear
from sostenuto.layers.layered_interests import LEVELS, LayeredInterests, interest_for, interest_overlap
from sostenuto.layers.request_features import RequestFeatures
from sostenuto.layers.selector import MaskSelector, SearchIndex, finest_kind
from sostenuto.layers.target_attention import TargetAttention
from sostenuto.layers.taste import TasteState
from sostenuto.layers.time_place import (
    DistanceEncoder,
    LocalClock,
    LocalTime,
    PlaceCells,
    PlaceEncoder,
    TimeEncoder,
    read_clock,
)
from sostenuto.layers.tower import Activation, Tower
from sostenuto.ops.biased_attention import biased_attention
from sostenuto.ops.jagged import Taken, interleave_rows, newest_moments, offsets_to_lengths, row_index, to_padded
from sostenuto.ops.local_time import HOURS, WEEKDAYS
from sostenuto.ops.request_masks import before, same_cell, same_hour, same_part_of_week, same_weekday
from sostenuto.ops.retention import age_in_days, log_retention, repetitions, strength_days
from sostenuto.ops.table_rows import distinct_values, spread_rows
from sostenuto.ops.target_attention import Normalise
from sostenuto.ops.time_gaps import NUM_GAP_FEATURES
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FIRST_KNOWN, FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, RequestBatch

Expert = Literal["recent", "hour", "week", "place", "global"]
EXPERTS: tuple[Expert, ...] = ("recent", "hour", "week", "place", "global")
FORGETTING = ("soft", "hard", "none")
FORGOTTEN = math.log(1e-4)  # ln R below which the soft curve leaves a behaviour out: it could weigh next to nothing
PERIOD_DAYS = {"hour": 1, "week": 7}  # whose ages go by whole periods
OUT = -1e9  # added to the score of what a mask leaves out: its weight is below 1e-37 beside the null behaviour
GAIN, NULL = 5.0, 4.0  # at the start: one behaviour of the same kind weighs what the null behaviour does
NUM_STATS = 3  # per expert, for the gate
ALL_OF_MASK = MaskSelector(None)


@dataclass(frozen=True, kw_only=True, slots=True)
class STIMConfig:
    """Sizes and switches of STIM. All of them are ours: the abstract names parts and no numbers."""

    item_dim: int = 0  # width of an item's own trained row; 0 leaves it out: rows over-fit within an epoch
    vector_dim: int = 32  # width of fixed item vectors from early co-occurrence; 0 leaves them out
    key_vector_dim: int = 8  # their leading columns that behaviours and candidates are compared by
    category_dim: int = 8  # width per category level
    field_dim: int = 8  # width per categorical field
    width: int = 32  # d of behaviours, experts and interests
    experts: tuple[Expert, ...] = ("recent", "hour", "week", "place")  # place falls away where the data have none
    forgetting: Literal["soft", "hard", "none"] = "soft"  # ln R joins the scores; thresholds only; R = 1
    reinforcement: bool = True  # repetition slows forgetting; False: alpha = 0
    recent_days: float = 7.0  # S_0 of the recent mask, at the start where it is learned
    periodic_days: float = 60.0  # S_0 of hour, week and place
    reinforcement_start: float = 1.0  # alpha, at the start where it is learned
    recent_threshold: float = 0.05  # R from which a behaviour is in the recent mask; hard only
    periodic_threshold: float = 0.02  # R from which it is in the others; hard only
    recent_at_least: int = 10  # newest behaviours that the recent mask always holds, so that no user is without
    hour_window: int = 1  # hours around the request's that count as the same
    week_match: Literal["weekday", "weekend"] = "weekday"  # what "the same day" is
    place_precisions: tuple[int, ...] = (5, 6)  # geohash characters, coarse to fine, where places have coordinates
    mask_precision: int = 5  # of the place mask; one of them
    kept: int | None = 100  # M, newest behaviours per mask that experts attend over, whole moments; None = all
    gathered: bool = True  # attend over what a mask holds; False attends over everything with masked scores
    gate: Literal["query", "uniform"] = "query"
    gate_top_k: int | None = None  # experts let in at most; None = all, which ranked better than 2 of 4
    interests: int = 4  # K, learned interests of the newest behaviours; 0 leaves the unit out
    interest_depth: int = 2  # D_l, blocks that deepen the behaviours' semantics
    interest_levels: Literal["both", "shallow", "deep"] = "both"
    interest_recent: int = 50  # T, newest behaviours of the unit, whole moments
    short_recent: int = 50  # newest behaviours under target attention as in DIN, whole moments
    attention_units: tuple[int, ...] = (32,)  # of the short branch
    attention_activation: Literal["relu", "prelu"] = "prelu"
    normalise: Normalise = "softmax"  # of the short branch's weighted sum
    gaps: bool = True  # the time from a behaviour to the request enters the short branch, and is summed there
    distances: bool = True  # from a candidate to the request's place, where items have coordinates
    coordinates: tuple[str, str] = ("lat", "lon")  # item fields, in degrees
    balance_weight: float = 1e-2  # of the gate's load balance
    diversity_weight: float = 1e-3  # of the overlap of interests
    tower_units: tuple[int, ...] = (128, 64)
    tower_activation: Activation = "prelu"
    dropout: float = 0.1  # after each tower layer
    embedding_dropout: float = 0.0  # on item vectors and interests that enter the tower
    id_dropout: float = 0.0  # chance that an item's own row is replaced by the unknown row
    wide: bool = True  # linear path from match features and candidate numbers to the logit
    bins: int = 12  # piecewise-linear bins per match feature and candidate number; 0 = none
    field_std: float = 0.01  # initial rows of candidate and context fields, hours, weekdays and places
    table_std: float = 0.05  # initial item and category rows: bringing keys to one length multiplies gradients

    def __post_init__(self) -> None:
        check_config(self)

        def refuse(name: str, wanted: str) -> None:
            raise SpecError(f"STIMConfig.{name} must be {wanted}, got {getattr(self, name)!r}; set it so")

        if not self.experts or len(set(self.experts)) < len(self.experts) or set(self.experts) - set(EXPERTS):
            refuse("experts", f"one or more of {', '.join(EXPERTS)}, each once")
        if self.forgetting not in FORGETTING:
            refuse("forgetting", f"one of {', '.join(FORGETTING)}")
        if self.gate not in ("query", "uniform"):
            refuse("gate", "query or uniform")
        if self.week_match not in ("weekday", "weekend"):
            refuse("week_match", "weekday or weekend")
        if self.interest_levels not in LEVELS:
            refuse("interest_levels", f"one of {', '.join(LEVELS)}")
        if self.mask_precision not in self.place_precisions:
            refuse("mask_precision", f"one of place_precisions {self.place_precisions}")
        for name in ("recent_days", "periodic_days", "reinforcement_start"):
            if not getattr(self, name) > 0:
                refuse(name, "above 0")
        for name in ("recent_threshold", "periodic_threshold"):
            if not 0 < getattr(self, name) < 1:
                refuse(name, "between 0 and 1")
        for name in ("width", "recent_at_least", "kept", "gate_top_k", "interest_recent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                refuse(name, "at least 1")
        for name in ("interests", "interest_depth", "balance_weight", "diversity_weight", "hour_window"):
            if getattr(self, name) < 0:
                refuse(name, "0 or more")
        if self.width % 2:
            refuse("width", "even")
        if not self.gathered and self.kept is not None:
            refuse("kept", "none where gathered is false, because everything is attended over")


class Retention(nn.Module):
    """ln R = -age / (S_0 (1 + alpha ln(1 + n))), S_0 and alpha per expert.

    Learned ones are softplus functions in units of their starting values, so that one step moves 60 days as far as it
    moves 7. With hard masks the curve only cuts, and nothing in it is learned.
    """

    def __init__(self, config: STIMConfig, experts: tuple[Expert, ...]) -> None:
        super().__init__()
        days = [config.recent_days if e in ("recent", "global") else config.periodic_days for e in experts]
        self.register_buffer("base", torch.tensor(days, dtype=torch.float32), persistent=False)
        self.base: Tensor
        self.start = config.reinforcement_start
        learned = config.forgetting == "soft" and any(e != "global" for e in experts)
        forgetful = sum(e != "global" for e in experts)
        self.columns: dict[Expert, int] = {e: i for i, e in enumerate(e for e in experts if e != "global")}
        self.places = {e: i for i, e in enumerate(experts)}
        self.raw_days = nn.Parameter(torch.zeros(forgetful)) if learned else None
        grows = learned and config.reinforcement
        self.raw_reinforcement = nn.Parameter(torch.zeros(forgetful)) if grows else None
        self.reinforced = config.reinforcement

    def days(self, expert: Expert) -> Tensor:
        """Return S_0 of an expert in days."""
        base = self.base[self.places[expert]]
        return base if self.raw_days is None else base * _times(self.raw_days[self.columns[expert]])

    def reinforcement(self, expert: Expert) -> Tensor:
        """Return alpha of an expert."""
        start = self.base.new_tensor(self.start if self.reinforced else 0.0)
        if self.raw_reinforcement is None:
            return start
        return start * _times(self.raw_reinforcement[self.columns[expert]])

    def forward(self, expert: Expert, age_days: Tensor, repeated: Tensor) -> Tensor:
        """Return (N,) ln R."""
        return log_retention(age_days, strength_days(repeated, self.days(expert), self.reinforcement(expert)))


def _times(raw: Tensor) -> Tensor:
    """Return a positive factor: 1 at 0."""
    return F.softplus(raw) / math.log(2.0)


class Moments(NamedTuple):
    """When and where behaviours were: all that masks ask about."""

    offsets: Tensor  # (B + 1,) int64
    time_ms: Tensor  # (N,) int64
    local: LocalTime  # (N,)
    cell: Tensor  # (N,) int64 in the precision of the mask
    repeated: Tensor  # (N, E) int64, the others with the key of each expert

    @property
    def searched(self) -> SearchIndex:
        """What masks select from."""
        return SearchIndex(offsets=self.offsets, time_ms=self.time_ms, rows=self.repeated)


class Asked(NamedTuple):
    """When and where requests are."""

    time_ms: Tensor  # (B,) int64
    local: LocalTime  # (B,)
    cell: Tensor  # (B,) int64 in the precision of the mask


class Alive(NamedTuple):
    """What a mask holds, and how much of it is left."""

    held: Taken  # positions, oldest first in every row, and where rows start
    retained: Tensor  # (M,) ln R of the held


class DynamicMasks(nn.Module):
    """One mask per expert: a hard part that time and place of the request make, and the forgetting curve.

        recent   R >= threshold, and the newest few in any case      key of repetition: kind
        hour     at most `hour_window` hours apart on the clock      kind and hour; ages go by whole days
        week     the same weekday (or both weekend, or neither)      kind and weekday; ages go by whole weeks
        place    the same cell                                       kind and cell
        global   everything, nothing forgotten

    A kind is the finest category, or the item where it has none. Ages by periods are taken in local time.
    """

    def __init__(self, config: STIMConfig, experts: tuple[Expert, ...]) -> None:
        super().__init__()
        self.config = config
        self.experts = experts
        self.retention = Retention(config, experts)

    def repeated(self, kind: Tensor, local: LocalTime, cell: Tensor, offsets: Tensor) -> Tensor:
        """Return (N, E) repetitions; they need no request."""
        day = local.weekday if self.config.week_match == "weekday" else (local.weekday >= 5).long()
        keys = {
            "recent": lambda: kind,
            "hour": lambda: kind * HOURS + local.hour,
            "week": lambda: kind * WEEKDAYS + day,
            "place": lambda: kind * (int(cell.max()) + 1 if cell.numel() else 1) + cell,
        }
        none = torch.zeros_like(kind)
        counts = [repetitions(keys[e](), offsets) if e in keys else none for e in self.experts]
        return torch.stack(counts, 1)

    def forward(self, past: Moments, asked: Asked) -> list[Alive]:
        """Return what each expert may see, in their order."""
        row = row_index(past.offsets)
        real = before(past.time_ms, asked.time_ms[row])
        return [self._alive(expert, at, past, asked, row, real) for at, expert in enumerate(self.experts)]

    def _alive(self, expert: Expert, at: int, past: Moments, asked: Asked, row: Tensor, real: Tensor) -> Alive:
        config = self.config
        held = ALL_OF_MASK.take(self._structure(expert, past, asked, row, real), past.searched)
        some, of = held.positions, row[held.positions]
        if expert == "global" or config.forgetting == "none":
            return Alive(held, torch.zeros(some.shape, device=some.device))
        if expert in PERIOD_DAYS:
            age = age_in_days(past.local.local_ms[some], asked.local.local_ms[of], PERIOD_DAYS[expert])
        else:
            age = age_in_days(past.time_ms[some], asked.time_ms[of])
        retained = self.retention(expert, age, past.repeated[some, at])
        least = FORGOTTEN
        if config.forgetting == "hard":
            least = math.log(config.recent_threshold if expert == "recent" else config.periodic_threshold)
        left = retained.detach() >= least
        if expert == "recent":
            left[newest_moments(held.offsets, past.time_ms[some], config.recent_at_least).positions] = True
        kept = ALL_OF_MASK.take(left, SearchIndex(offsets=held.offsets, time_ms=past.time_ms[some], rows=some))
        held = Taken(some[kept.positions], kept.offsets)
        if config.forgetting == "hard":
            return Alive(held, torch.zeros(held.positions.shape, device=some.device))
        return Alive(held, retained.index_select(0, kept.positions))

    def _structure(self, expert: Expert, past: Moments, asked: Asked, row: Tensor, real: Tensor) -> Tensor:
        """Return the (N,) hard part of a mask."""
        if expert == "hour":
            return real & same_hour(past.local.hour, asked.local.hour[row], self.config.hour_window)
        if expert == "week":
            same = same_weekday if self.config.week_match == "weekday" else same_part_of_week
            return real & same(past.local.weekday, asked.local.weekday[row])
        if expert == "place":
            return real & same_cell(past.cell, asked.cell[row])
        return real


class MaskedExpert(nn.Module):
    """Target attention over what one mask holds, and two layers on what it found.

        s_i = gain cos(W_q q, W_k e_i) + ln R_i,   o = sum_i exp(s_i) W_v e_i / (exp(null) + sum_i exp(s_i))

    A null behaviour with a learned score and no value stands in every softmax: without it ln R would cancel where all
    is equally old, and one faint match would count like twenty. W_q starts equal to W_k, because the query is the
    candidate in the place of a behaviour. Cosine, gain and null are ours.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = xavier_linear(width, width, bias=False)
        self.query = xavier_linear(width, width, bias=False)
        with torch.no_grad():
            self.query.weight.copy_(self.key.weight)
        self.value = xavier_linear(width, width, bias=False)
        with torch.no_grad():
            self.value.weight.copy_(torch.eye(width))  # what is read can be compared with the candidate from the start
        self.gain = nn.Parameter(torch.tensor(math.log(GAIN)))
        self.null = nn.Parameter(torch.tensor(NULL))
        self.units = nn.Sequential(
            xavier_linear(3 * width + 1, width), nn.PReLU(width, init=0.1), xavier_linear(width, width)
        )

    def forward(
        self, query: Tensor, query_offsets: Tensor, vectors: Tensor, taken: Taken, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return (Nc, width) what it makes of the behaviours, and (Nc,) how far they speak for the candidate.

        Args:
            query: (Nc, width) candidates as behaviours of now and here.
            query_offsets: (B + 1,) int64.
            vectors: (N + 1, width) all behaviours, and zeros for the null behaviour.
            taken: those to attend over; rows are requests.
            bias: (M,) added to their scores.
        """
        rows, null = taken.offsets.shape[0] - 1, vectors.shape[0] - 1
        place, offsets = interleave_rows(taken.offsets, torch.arange(rows + 1, device=taken.offsets.device))
        position = torch.cat([taken.positions, taken.positions.new_full((rows,), null)])[place]
        found = spread_rows(vectors, position)
        read = biased_attention(
            F.normalize(self.query(query), dim=1) * self.gain.exp(),
            query_offsets,
            F.normalize(self.key(found), dim=1),
            offsets,
            torch.cat([self.value(found), (position < null).float()[:, None]], 1),
            torch.cat([bias, self.null.expand(rows)]).index_select(0, place),
        )
        agreement = read[:, :-1] * query
        return self.units(torch.cat([read, query, agreement], 1)), agreement.sum(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class STIMState:
    """Everything of a user that needs neither candidate nor request; a value, growing with the history."""

    offsets: Tensor  # (B + 1,) int64
    time_ms: Tensor  # (N,) int64
    local_ms: Tensor  # (N,) int64
    place: Tensor  # (N,) int64
    kind: Tensor  # (N,) int64 what counts as the same again
    repeated: Tensor  # (N, E) int64
    vectors: Tensor  # (N, width) embedded behaviours
    recent: EncodedHistory  # the newest, as DIN keeps them
    interests: Tensor | None  # (B, K, width)
    taste: TasteState | None


class STIM(nn.Module):
    """Experts over dynamic masks, a query gate, layered interests, short target attention, and a tower."""

    def __init__(self, config: STIMConfig, features: FeatureSpec) -> None:
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
        dim, width = items.out_dim, config.width
        self.num_categories = features.categories[-1].size if features.categories else 0
        self.histories = HistoryEncoder(
            features,
            items,
            hidden=config.attention_units[0],
            field_dim=config.field_dim,
            std=config.field_std,
            gaps=config.gaps,
        )
        self.clock = LocalClock(features.time_zone)
        self.cells = PlaceCells(features, config.place_precisions)
        self.mask_level = config.place_precisions.index(config.mask_precision) if self.cells.has_points else 0
        has_places = features.num_places > FIRST_KNOWN
        self.experts: tuple[Expert, ...] = tuple(e for e in config.experts if e != "place" or has_places)
        if not self.experts:
            raise SpecError(
                "STIMConfig.experts must hold one beside place, because the data have no places; add recent"
            )

        # a behaviour is item + moment + place + what was done, in one space
        self.item_part = xavier_linear(dim, width)
        self.time_part = TimeEncoder(width, std=config.field_std)
        self.place_part = PlaceEncoder(self.cells, width, std=config.field_std) if has_places else None
        side_dim = self.histories.side_dim
        self.side_part = xavier_linear(side_dim, width, bias=False) if side_dim else None

        self.masks = DynamicMasks(config, self.experts)
        self.selector = MaskSelector(config.kept)
        self.attend = nn.ModuleList(MaskedExpert(width) for _ in self.experts)
        asked_dim = width * (2 + has_places)
        self.gate: nn.Module = UniformGate()
        if config.gate == "query":
            gate_dim = asked_dim + NUM_STATS * len(self.experts)
            self.gate = QueryGate(gate_dim, len(self.experts), top_k=config.gate_top_k)
        self.interests = None
        if config.interests:
            self.interests = LayeredInterests(
                width, interests=config.interests, depth=config.interest_depth, levels=config.interest_levels
            )
        self.short = TargetAttention(
            dim, config.attention_units, activation=config.attention_activation, normalise=config.normalise
        )
        self.requests = RequestFeatures(
            features, items, field_dim=config.field_dim, std=config.field_std, bins=config.bins
        )
        numeric = {f.name for f in features.item_fields if f.kind == "numeric"}
        located = config.distances and self.cells.has_points and numeric >= set(config.coordinates)
        self.distance = DistanceEncoder(config.field_dim or 8) if located else None

        self.embedding_dropout = Dropout(config.embedding_dropout)
        short_dim = dim + 1 + (NUM_GAP_FEATURES + 1 if config.gaps else 0)
        parts = 2 * (1 + (self.interests is not None)) * width  # mixed experts and interest, and their products
        self.tower = Tower(
            2 * dim
            + short_dim
            + asked_dim
            + parts
            + len(self.experts)
            + (self.distance.linear.out_features if self.distance is not None else 0)
            + self.requests.out_dim,
            config.tower_units,
            activation=config.tower_activation,
            dropout=config.dropout,
        )
        numbers = self.requests.num_numbers
        self.wide = zero_linear(numbers, 1) if config.wide and numbers else None

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.requests.calibrate(self.histories.items, batches, item_vectors)

    def encode(self, histories: History) -> STIMState:
        """Embed the behaviours, count repetitions, read the interests; no candidate and no request is known."""
        distinct = self.histories.distinct(histories)
        local = self.clock(histories.time_ms)
        kind = self._kind(histories)
        cell = self._mask_cell(histories.place)
        vectors = self._vectors(histories, distinct, local)
        return STIMState(
            offsets=histories.offsets,
            time_ms=histories.time_ms,
            local_ms=local.local_ms,
            place=histories.place,
            kind=kind,
            repeated=self.masks.repeated(kind, local, cell, histories.offsets),
            vectors=vectors,
            recent=self._recent(histories, distinct),
            interests=self._interests(vectors, histories.offsets, histories.time_ms),
            taste=self.requests.encode(self.histories.items, histories, distinct),
        )

    def append(self, state: STIMState, events: History) -> STIMState:
        """Fold later events in; equal to encoding everything anew. Repetitions are counted again."""
        later = self.encode(events)
        positions, offsets = interleave_rows(state.offsets, later.offsets)

        def join(a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([a, b])[positions]

        time_ms, local_ms = join(state.time_ms, later.time_ms), join(state.local_ms, later.local_ms)
        place, kind = join(state.place, later.place), join(state.kind, later.kind)
        vectors = join(state.vectors, later.vectors)
        return STIMState(
            offsets=offsets,
            time_ms=time_ms,
            local_ms=local_ms,
            place=place,
            kind=kind,
            repeated=self.masks.repeated(kind, read_clock(local_ms), self._mask_cell(place), offsets),
            vectors=vectors,
            recent=state.recent.joined(later.recent).newest(self.config.short_recent),
            interests=self._interests(vectors, offsets, time_ms),
            taste=self.requests.append(state.taste, later.taste),
        )

    def _kind(self, histories: History) -> Tensor:
        """Return what repetition counts."""
        return finest_kind(histories.item, histories.category, self.num_categories)

    def _mask_cell(self, place: Tensor) -> Tensor:
        cells: Tensor = self.cells(place)
        return cells[:, self.mask_level]

    def _vectors(self, histories: History, distinct: DistinctItems, local: LocalTime) -> Tensor:
        vectors: Tensor = spread_rows(self.item_part(distinct.key), distinct.place) + self.time_part(local)
        if self.place_part is not None:
            places = distinct_values(histories.place, self.cells.num_places)
            rows = self.place_part(self.cells(histories.place[places.first]))
            vectors = vectors + spread_rows(rows, places.place)
        if self.side_part is not None:
            vectors = vectors + self.side_part(self.histories.side_features(histories))
        return vectors

    def _recent(self, histories: History, distinct: DistinctItems) -> EncodedHistory:
        """Encode the newest behaviours for the short branch, and no others."""
        taken = newest_moments(histories.offsets, histories.time_ms, self.config.short_recent)
        some = taken.positions
        fewer = replace(
            histories,
            offsets=taken.offsets,
            **{
                name: getattr(histories, name)[some]
                for name in ("item", "category", "time_ms", "action", "value", "place")
            },
            fields={name: column[some] for name, column in histories.fields.items()},
        )
        found: EncodedHistory = self.histories(fewer, replace(distinct, place=distinct.place[some]))
        return found

    def _interests(self, vectors: Tensor, offsets: Tensor, time_ms: Tensor) -> Tensor | None:
        if self.interests is None:
            return None
        taken = newest_moments(offsets, time_ms, self.config.interest_recent)
        found: Tensor = self.interests(*to_padded(vectors[taken.positions], taken.offsets))
        return found

    def alive(self, state: STIMState, context: Context) -> list[Alive]:
        """Return the mask and the retention of every expert for one request per row."""
        local = self.clock(context.time_ms)
        past = Moments(
            offsets=state.offsets,
            time_ms=state.time_ms,
            local=read_clock(state.local_ms),
            cell=self._mask_cell(state.place),
            repeated=state.repeated,
        )
        found: list[Alive] = self.masks(past, Asked(context.time_ms, local, self._mask_cell(context.place)))
        return found

    def score(self, state: STIMState, candidates: Candidates, context: Context) -> RankerOutput:
        """Make the masks of each request, let its experts and interests read for each candidate, and read the tower."""
        items, row = self.histories.items, candidates.row
        version = self.requests.version(items, state.taste, candidates)
        target = items(candidates.item, candidates.category, candidates.fields, version)
        as_item: Tensor = self.item_part(target)
        moment = self.time_part(self.clock(context.time_ms))
        here = [] if self.place_part is None else [self.place_part(self.cells(context.place))]
        asked = torch.cat([as_item, torch.cat([moment, *here], 1)[row]], 1)
        query = as_item + (moment + here[0] if here else moment)[row]

        mixed, agreements = self.mixed(state, candidates, context, query, asked)
        losses = {}
        if self.training and self.config.gate == "query" and self.config.balance_weight:
            losses["balance"] = self.config.balance_weight * mixed.balance
        read = [mixed.values]
        if state.interests is not None:
            read.append(interest_for(state.interests, as_item, row))
            if self.training and self.config.diversity_weight:
                losses["overlap"] = self.config.diversity_weight * interest_overlap(state.interests)

        hidden, gaps = self.histories.at_request(state.recent, context)
        beside = [state.recent.key.new_ones(state.recent.key.shape[0], 1), *([] if gaps is None else [gaps])]
        short = self.short(
            target, candidates.offsets, state.recent.key, state.recent.offsets, torch.cat(beside, 1), hidden
        )
        pooled = self.embedding_dropout(
            torch.cat([target, target * short[:, : target.shape[1]], *read, *(part * as_item for part in read)], 1)
        )
        parts = [pooled, short, asked, agreements, *self._distances(candidates, context)]
        logits = self.requests.logits(self.tower, self.wide, parts, items, state.taste, candidates, context)
        return RankerOutput(logits=logits, aux_losses=losses)

    def attended(self, alive: Alive, state: STIMState) -> Alive:
        """Return which behaviours an expert attends over, and what is added to their scores.

        Masks follow from time and place of the request alone, so this is done once for all its candidates, whose cost
        then follows what is kept and not the length of the history.
        """
        held, retained = alive
        if not self.config.gathered:
            every = torch.arange(state.time_ms.shape[0], device=state.time_ms.device)
            scores = torch.full(every.shape, OUT, device=every.device).index_put((held.positions,), retained)
            return Alive(Taken(every, state.offsets), scores)
        index = SearchIndex(offsets=held.offsets, time_ms=state.time_ms[held.positions], rows=held.positions)
        kept = self.selector.take(torch.ones_like(held.positions, dtype=torch.bool), index)
        return Alive(Taken(held.positions[kept.positions], kept.offsets), retained.index_select(0, kept.positions))

    def mixed(
        self, state: STIMState, candidates: Candidates, context: Context, query: Tensor, asked: Tensor
    ) -> tuple[Mixed, Tensor]:
        """Let the experts read, mix them by the gate, and say (Nc, E) by how much each of them agrees.

        A sum of experts cannot tell which of them spoke; weighted agreements can, one number each. 0 for those that are
        empty or not let in.
        """
        rows = state.offsets.shape[0] - 1
        vectors = F.pad(state.vectors, (0, 0, 0, 1))
        outputs, agreements, counts, freshest = [], [], [], []
        for alive, expert in zip(self.alive(state, context), self.attend, strict=True):
            taken, bias = self.attended(alive, state)
            output, agreement = expert(query, candidates.offsets, vectors, taken, bias)
            outputs.append(output)
            agreements.append(agreement)
            counts.append(offsets_to_lengths(alive.held.offsets))
            left, row = alive.retained.detach().exp(), row_index(alive.held.offsets)
            freshest.append(left.new_zeros(rows).scatter_reduce(0, row, left, "amax"))
        count = torch.stack(counts, 1)
        stats = torch.cat([torch.log1p(count.float()), torch.stack(freshest, 1), (count == 0).float()], 1)
        request = candidates.row
        mixed: Mixed = self.gate(torch.cat([asked, stats[request]], 1), torch.stack(outputs, 1), (count > 0)[request])
        return mixed, len(outputs) * mixed.weights * torch.stack(agreements, 1)

    def _distances(self, candidates: Candidates, context: Context) -> list[Tensor]:
        if self.distance is None:
            return []
        there = torch.stack([candidates.fields[name].float() for name in self.config.coordinates], 1)
        return [self.distance(there, self.cells.where(context.place)[candidates.row])]

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)


__all__ = ["EXPERTS", "STIM", "DynamicMasks", "Expert", "MaskedExpert", "Retention", "STIMConfig", "STIMState"]
