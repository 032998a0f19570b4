"""Everything about a candidate and its request that is neither the item nor the history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import DEFAULT_STD, FieldEncoder, ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import DistinctItems
from sostenuto.layers.kept import Kept
from sostenuto.layers.quantile_bins import QuantileBins
from sostenuto.layers.running_scale import RunningScale
from sostenuto.layers.taste import Taste, TasteState
from sostenuto.layers.tower import Tower
from sostenuto.ops.backend import is_usable
from sostenuto.ops.binned_product import BinnedWeights, binned_product, binned_weights
from sostenuto.ops.table_rows import spread_rows
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, History, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folded:
    """The first layer of a tower, and its wide path as one more unit, apart for the bins and for all else."""

    rest: Tensor  # (in - K * B, H)
    bins: BinnedWeights | None  # None: of bins that cannot be folded


class RequestFeatures(nn.Module):
    """Match features, candidate fields, context fields and agreement with taste as one vector per candidate.

    Numbers (match features, numeric and vector fields, agreements) go through `RunningScale` and, with `bins`, stand
    there a second time as `QuantileBins`; categories go through tables. Agreements are there when the items have fixed
    vectors; the items are handed in, because rankers own them.

    Attributes:
        out_dim: width of the whole vector.
        num_numbers: its leading columns that are numbers of the candidate, the input of a wide path.
    """

    def __init__(
        self,
        features: FeatureSpec,
        items: ItemEmbedding,
        *,
        field_dim: int,
        std: float = DEFAULT_STD,
        bins: int = 0,
    ) -> None:
        super().__init__()
        numbers = tuple(f for f in features.candidate_fields if f.kind in {"numeric", "vector"})
        kinds = tuple(f for f in features.candidate_fields if f.kind in {"categorical", "multi"})
        self.candidate_numbers = FieldEncoder(numbers, field_dim, std=std)
        self.candidate_kinds = FieldEncoder(kinds, field_dim, std=std)
        self.context = FieldEncoder(features.context_fields, field_dim, std=std)
        self.taste = Taste(items.vector_parts) if items.vector_dim else None
        self.num_match = len(features.match)
        agreements = self.taste.out_dim if self.taste is not None else 0
        columns = self.num_match + self.candidate_numbers.out_dim + agreements
        self.scale = RunningScale(columns)
        self.bins = QuantileBins(columns, bins) if bins and columns else None
        self._folded: Kept[_Folded] = Kept()
        self.num_numbers = columns + (self.bins.out_dim if self.bins is not None else 0)
        self.out_dim = self.num_numbers + self.candidate_kinds.out_dim + self.context.out_dim

    def encode(
        self, items: ItemEmbedding, histories: History, distinct: DistinctItems | None = None
    ) -> TasteState | None:
        """Return what agreements need of a history: user side, bounded, None without fixed vectors."""
        if self.taste is None:
            return None
        if distinct is not None:
            vectors = spread_rows(distinct.fixed, distinct.place)
            return self.taste.encode(vectors, histories.offsets, histories.time_ms)
        version = items.version_of_behaviours(histories.offsets, histories.time_ms)
        return self.taste.encode(items.fixed(histories.item, version), histories.offsets, histories.time_ms)

    def encode_along(
        self, histories: History, distinct: DistinctItems, row: Tensor, prefix: Tensor
    ) -> TasteState | None:
        """Return R states: what `encode` returns of the first `prefix` behaviours of row `row`."""
        if self.taste is None:
            return None
        vectors = spread_rows(distinct.fixed, distinct.place)
        return self.taste.encode_along(vectors, histories.offsets, histories.time_ms, row, prefix)

    def version(self, items: ItemEmbedding, state: TasteState | None, candidates: Candidates) -> Tensor | None:
        """Return the (N,) version of fixed vectors that candidates are compared in, None for the last."""
        found = None if state is None else items.version_at(state.reference_ms)
        return None if found is None else found[candidates.row]

    def append(self, state: TasteState | None, later: TasteState | None) -> TasteState | None:
        """Fold later events in; equal to encoding everything anew."""
        if self.taste is None or state is None or later is None:
            return None
        return self.taste.append(state, later)

    @torch.no_grad()
    def calibrate(
        self, items: ItemEmbedding, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]
    ) -> None:
        """Set what depends on the data before the first step: fixed item vectors, then the knots of the bins.

        Args:
            items:        the ranker's.
            batches:      a few training batches.
            item_vectors: gives vectors of width vector_parts * dim for a dim.
        """
        if items.vector_dim:
            items.set_vectors(item_vectors(items.vector_dim))
        if self.bins is not None:
            sample = [self._columns(items, self.encode(items, batch.histories), batch.candidates) for batch in batches]
            self.bins.calibrate(torch.cat(sample))

    def _columns(self, items: ItemEmbedding, state: TasteState | None, candidates: Candidates) -> Tensor:
        columns = [candidates.match[:, : self.num_match]]
        columns.append(self.candidate_numbers(candidates.fields, candidates.item.shape[0]))
        if self.taste is not None and state is not None:
            version = self.version(items, state, candidates)
            columns.append(self.taste(state, items.fixed(candidates.item, version), candidates.row))
        return torch.cat(columns, 1)

    def forward(
        self, items: ItemEmbedding, state: TasteState | None, candidates: Candidates, context: Context
    ) -> Tensor:
        """Return (N, out_dim)."""
        parts = []
        if self.num_numbers:
            columns = self._columns(items, state, candidates)
            parts.append(self.scale(columns))
            if self.bins is not None:
                parts.append(self.bins(columns))
        parts += self._kinds(candidates, context)
        return torch.cat(parts, 1) if parts else torch.zeros(len(candidates.item), 0, device=candidates.item.device)

    def _kinds(self, candidates: Candidates, context: Context) -> list[Tensor]:
        """Return what stands behind the numbers."""
        parts = []
        if self.candidate_kinds.out_dim:
            parts.append(self.candidate_kinds(candidates.fields, candidates.item.shape[0]))
        if self.context.out_dim:
            per_request = self.context(context.fields, context.time_ms.shape[0])
            parts.append(per_request[candidates.row])
        return parts

    def logits(
        self,
        tower: Tower,
        wide: nn.Linear | None,
        parts: Sequence[Tensor],
        items: ItemEmbedding,
        state: TasteState | None,
        candidates: Candidates,
        context: Context,
    ) -> Tensor:
        """Return (N,) logits: a tower over `parts` and the whole vector side by side, and a wide path.

        Without gradients the bins are never made where there is a compiled twin: they go into the tower's first layer
        in one step.

        Args:
            tower: of one output.
            wide: a linear map without bias of the `num_numbers` numbers, whose output is added; None without.
            parts: (N, width) each.
            items, state, candidates, context: as in `forward`.
        """
        folded = self._fold(tower, wide)
        if folded is not None and folded.bins is not None:
            columns = self._columns(items, state, candidates)
            plain = torch.cat([*parts, self.scale(columns), *self._kinds(candidates, context)], 1)
            hidden = torch.addmm(binned_product(columns, folded.bins), plain, folded.rest)
            if wide is None:
                return tower.after_first(hidden).squeeze(1)
            return tower.after_first(hidden[:, :-1]).squeeze(1) + hidden[:, -1]
        numbers = self(items, state, candidates, context)
        logits: Tensor = tower(torch.cat([*parts, numbers], 1)).squeeze(1)
        return logits if wide is None else logits + wide(numbers[:, : self.num_numbers]).squeeze(1)

    def _fold(self, tower: Tower, wide: nn.Linear | None) -> _Folded | None:
        """Return the tower's first layer and the wide path as one matrix; None where the plain form is to be used."""
        if self.bins is None or torch.compiler.is_compiling():
            return None
        if self.training or torch.is_grad_enabled():
            self._folded.empty()  # a step may follow that the kept form would not see
            return None
        weight, bias = tower.first.weight, tower.first.bias
        if not is_usable(weight) or torch.is_autocast_enabled("cpu"):
            return None
        sources = [weight, bias, self.bins.low, self.bins.width, *([] if wide is None else [wide.weight])]
        folded = self._folded.held(sources)
        if folded is None:
            folded = self._folded_form(self.bins, weight, bias, None if wide is None else wide.weight)
            self._folded.hold(folded, sources)
        return folded

    def _folded_form(self, bins: QuantileBins, weight: Tensor, bias: Tensor, wide: Tensor | None) -> _Folded:
        before = weight.shape[1] - self.out_dim
        if wide is not None:  # one more unit, that reads the numbers alone
            row = weight.new_zeros(1, weight.shape[1])
            row[:, before : before + self.num_numbers] = wide
            weight, bias = torch.cat([weight, row]), torch.cat([bias, bias.new_zeros(1)])
        sizes = [before + bins.dim, bins.out_dim, self.out_dim - bins.dim - bins.out_dim]
        head, middle, tail = torch.split(weight, sizes, 1)
        rest = torch.cat([head, tail], 1).T.contiguous()
        return _Folded(rest=rest, bins=binned_weights(bins.low, bins.width, middle.T, bias))


__all__ = ["RequestFeatures"]
