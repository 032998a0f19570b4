"""Deep Interest Evolution Network (Zhou et al., AAAI 2019, arXiv:1809.03672).

A GRU turns behaviours into interest states, each supervised by the next behaviour; a second recurrent cell lets the
states that matter for the target move an interest, and the others hardly. Around them stands DIN. Differs from the
paper: docs/models/dien.md lists every choice of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from sostenuto.layers.checks import check_config
from sostenuto.layers.dropout import Dropout
from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import DistinctItems, EncodedHistory, HistoryEncoder, request_gaps
from sostenuto.layers.gated_recurrence import GatedRecurrence
from sostenuto.layers.initialise import zero_linear
from sostenuto.layers.interest_evolution import (
    ATTENTIONS,
    AttendedStates,
    AttentionKind,
    InterestEvolution,
    StateAttention,
)
from sostenuto.layers.item_table import ItemTable
from sostenuto.layers.next_behaviour import SCORERS, NextBehaviourLoss, Scorer
from sostenuto.layers.request_features import RequestFeatures
from sostenuto.layers.taste import TasteState
from sostenuto.layers.tower import Activation, Tower
from sostenuto.ops.jagged import offsets_to_lengths, segment_sum
from sostenuto.ops.moment_negatives import negatives_of_moments
from sostenuto.ops.moments import moment_places
from sostenuto.ops.recurrence import Cell
from sostenuto.ops.table_rows import spread_rows
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RankerOutput, RequestBatch

Evolution = Literal["augru", "agru", "aigru", "gru_att"]
EVOLUTIONS: tuple[Evolution, ...] = ("augru", "agru", "aigru", "gru_att")


@dataclass(frozen=True, kw_only=True, slots=True)
class DIENConfig:
    """Sizes and switches of DIEN. What is not said here is as in DINConfig."""

    item_dim: int = 0  # width of an item's own trained row; 0 leaves it out
    vector_dim: int = 32  # width of fixed item vectors from early co-occurrence; 0 leaves them out
    key_vector_dim: int = 8  # their leading columns that stand in an item's vector
    category_dim: int = 8  # width per category level
    field_dim: int = 8  # width per categorical field
    units: int = 32  # H, of both recurrent layers; multiples of 16 waste nothing
    attention: AttentionKind = "din"  # of the target on interest states: din (released code), bilinear (paper)
    attention_units: tuple[int, ...] = (32,)  # hidden widths of the activation unit; one is the fast path
    attention_activation: Literal["relu", "prelu"] = "prelu"
    evolution: Evolution = "augru"  # gru_att: two plain GRU layers, then attention
    augru_variant: Literal["paper", "released"] = "paper"  # a = 1, or a = 0, is a plain GRU step; see ops/recurrence.py
    rescale_attention: bool = False  # times the history's length, at most 1. Ours
    auxiliary_weight: float = 1.0  # of the next-behaviour loss, alpha; 0 leaves it out
    auxiliary_scorer: Scorer = "network"  # network (released code) or product
    auxiliary_units: tuple[int, ...] = (100, 50)  # hidden widths of that network
    gaps: bool = True  # the time from a behaviour to the request enters attention and evolution. Ours
    products: bool = True  # tower also reads target x mean and query x interest
    tower_units: tuple[int, ...] = (128, 64)
    tower_activation: Activation = "prelu"
    dropout: float = 0.1  # after each tower layer
    embedding_dropout: float = 0.0  # on item vectors and interests that enter the tower
    id_dropout: float = 0.0  # chance that an item's own row is replaced by the unknown row
    wide: bool = True  # linear path from match features and candidate numbers to the logit
    bins: int = 12  # piecewise-linear bins per match feature and candidate number; 0 = none
    field_std: float = 0.01  # initial rows of candidate and context fields
    table_std: float = 1e-2  # initial embedding rows

    def __post_init__(self) -> None:
        check_config(self)
        choices = {
            "attention": ATTENTIONS,
            "evolution": EVOLUTIONS,
            "augru_variant": ("paper", "released"),
            "auxiliary_scorer": SCORERS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise SpecError(f"DIENConfig.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.units < 1:
            raise SpecError(f"DIENConfig.units must be at least 1, got {self.units}; 32 is the default")
        if not self.auxiliary_units or min(self.auxiliary_units) < 1:
            raise SpecError(
                f"DIENConfig.auxiliary_units must be one or more widths of at least 1, got {self.auxiliary_units}"
            )
        if not 0 <= self.auxiliary_weight < math.inf:
            raise SpecError(
                f"DIENConfig.auxiliary_weight must be 0 (off) or more, got {self.auxiliary_weight}; 1 is usual"
            )
        if self.augru_variant != "paper" and self.evolution != "augru":
            raise SpecError(
                f"DIENConfig.augru_variant must be paper where evolution is {self.evolution}, got "
                f"{self.augru_variant!r}; set evolution=augru"
            )
        if self.rescale_attention and self.evolution == "gru_att":
            raise SpecError(
                "DIENConfig.rescale_attention must be False where evolution is gru_att, whose attention weighs a sum "
                "and no gate, got True; leave it out"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DIENState:
    """A user's interest states, what the recurrent layers go on from, and the taste of all behaviours."""

    history: EncodedHistory  # its keys are the (N, H) interest states that targets attend to
    carried: Tensor  # (B, layers, H) last state of each recurrent layer
    total: Tensor  # (B, D) float64, sum of the behaviours' item vectors
    taste: TasteState | None
    auxiliary: Tensor | None  # () loss of the interest states, in training only


class DIEN(nn.Module):
    """Interest extraction, interest evolution, and a tower."""

    def __init__(self, config: DIENConfig, features: FeatureSpec) -> None:
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
        dim, units = items.out_dim, config.units
        # action, value and event fields of a behaviour go straight to the gates
        self.histories = HistoryEncoder(
            features, items, hidden=3 * units, field_dim=config.field_dim, std=config.table_std, gaps=False
        )
        self.extract = GatedRecurrence(dim, units)
        self.second = GatedRecurrence(units, units) if config.evolution == "gru_att" else None
        self.readout = _readout(config, dim)
        self.next_behaviour = None
        if config.auxiliary_weight:
            self.next_behaviour = NextBehaviourLoss(
                units, dim, scorer=config.auxiliary_scorer, units=config.auxiliary_units
            )
        self.requests = RequestFeatures(
            features, items, field_dim=config.field_dim, std=config.field_std, bins=config.bins
        )
        self.kept = ItemTable()
        self.embedding_dropout = Dropout(config.embedding_dropout)
        products_dim = dim + units if config.products else 0
        self.tower = Tower(
            dim + products_dim + self.readout.out_dim + self.requests.out_dim,
            config.tower_units,
            activation=config.tower_activation,
            dropout=config.dropout,
        )
        numbers = self.requests.num_numbers
        self.wide = zero_linear(numbers, 1) if config.wide and numbers else None

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.requests.calibrate(self.histories.items, batches, item_vectors)

    def keep_items(self, catalogue: Catalogue) -> int:
        """Keep every item's vector for scoring; see `schema.ranker.ItemKeeper`."""
        return self.kept.keep(self.histories.items, catalogue)

    # -- the user side (sections 4.1 and 4.2) -------------------------------------------------------------------------

    def encode(self, histories: History) -> DIENState:
        """Let the recurrent layers read the behaviours; nothing here knows the candidate or the request."""
        layers = 1 if self.second is None else 2
        return self._read(histories, self.extract.weight.new_zeros(histories.num_rows, layers, self.config.units))

    def append(self, state: DIENState, events: History) -> DIENState:
        """Fold later events in, one step of each recurrent layer per event; equal to encoding everything anew."""
        later = self._read(events, state.carried)
        return DIENState(
            history=state.history.joined(later.history),
            carried=later.carried,
            total=state.total + later.total,
            taste=self.requests.append(state.taste, later.taste),
            auxiliary=None,
        )

    def _read(self, histories: History, carried: Tensor) -> DIENState:
        """Read behaviours from (B, layers, H) states on."""
        distinct = self.histories.distinct(histories)
        encoded: EncodedHistory = self.histories(histories, distinct)
        offsets = histories.offsets
        parts = spread_rows(self.extract.parts(distinct.key), distinct.place)
        parts = parts if encoded.side is None else parts + encoded.side
        states = self.extract(parts, offsets, carried[:, 0])
        last = [_last_states(states, offsets, carried[:, 0])]
        auxiliary = self._auxiliary(histories, encoded.key, states) if self.training else None
        if self.second is not None:
            states = self.second(self.second.parts(states), offsets, carried[:, 1])
            last.append(_last_states(states, offsets, carried[:, 1]))
        return DIENState(
            history=replace(encoded, key=states, side=None),
            carried=torch.stack(last, 1),
            total=segment_sum(encoded.key.double(), offsets),
            taste=self.requests.encode(self.histories.items, histories, distinct),
            auxiliary=auxiliary,
        )

    def _auxiliary(self, histories: History, item: Tensor, states: Tensor) -> Tensor | None:
        """Return the next-behaviour loss against negatives drawn from the batch, None where it is left out."""
        if self.next_behaviour is None:
            return None
        moment = moment_places(histories.offsets, histories.time_ms).first
        drawn, is_negative = negatives_of_moments(histories.item, moment)
        fields = {field.name: histories.fields[field.name][drawn] for field in self.histories.items.fields.fields}
        # as items of the row they are held against: with the fixed vectors that this row may see
        negatives = replace(histories, item=histories.item[drawn], category=histories.category[drawn], fields=fields)
        found: DistinctItems = self.histories.distinct(negatives)
        loss: Tensor = self.next_behaviour(
            states, item, spread_rows(found.key, found.place), is_negative, histories.offsets, moment
        )
        return loss

    # -- the candidate side (sections 4.3 to 4.5) ---------------------------------------------------------------------

    def score(self, state: DIENState, candidates: Candidates, context: Context) -> RankerOutput:
        """Let the interest of each candidate evolve along the states, and read the tower."""
        past = state.history
        version = self.requests.version(self.histories.items, state.taste, candidates)
        target = self.kept.look_up(self.histories.items, candidates, version)["target"]
        gaps = request_gaps(past, None, context) if self.config.gaps else None
        query = self.readout.attention(target)
        interest = self.readout(query, candidates.offsets, past.key, past.offsets, gaps)
        pooled = target
        if self.config.products:
            mean = (state.total / past.lengths.clamp(min=1)[:, None]).to(target.dtype)[candidates.row]
            pooled = torch.cat([target, target * mean, query * interest[:, : query.shape[1]]], 1)
        pooled = self.embedding_dropout(pooled)
        logits = self.requests.logits(
            self.tower, self.wide, [pooled, interest], self.histories.items, state.taste, candidates, context
        )
        losses = {}
        if state.auxiliary is not None:
            losses["next_behaviour"] = self.config.auxiliary_weight * state.auxiliary
        return RankerOutput(logits=logits, aux_losses=losses)

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)


def _readout(config: DIENConfig, dim: int) -> InterestEvolution | AttendedStates:
    attention = StateAttention(
        dim,
        config.units,
        kind=config.attention,
        hidden=config.attention_units,
        activation=config.attention_activation,
        gaps=config.gaps,
    )
    if config.evolution == "gru_att":
        return AttendedStates(attention, config.units, gaps=config.gaps)
    cell: Cell = "released" if config.augru_variant == "released" else config.evolution
    return InterestEvolution(attention, config.units, cell=cell, rescale=config.rescale_attention, gaps=config.gaps)


def _last_states(states: Tensor, offsets: Tensor, initial: Tensor) -> Tensor:
    """Return (B, H) the state behind each row's last step, the initial one where there is none."""
    ends = (offsets[1:] - 1).clamp(min=0)
    if not len(states):
        return initial
    return torch.where((offsets_to_lengths(offsets) > 0)[:, None], states[ends], initial)


__all__ = ["DIEN", "DIENConfig", "DIENState"]
