"""Everything about a candidate and its request that is neither the item nor the history."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import DEFAULT_STD, FieldEncoder
from sostenuto.layers.quantile_bins import QuantileBins
from sostenuto.layers.running_scale import RunningScale
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context


class RequestFeatures(nn.Module):
    """Match features, candidate fields and context fields as one vector per candidate.

    Numbers (match features, numeric and vector fields, `extra` columns that the ranker computes) go through
    `RunningScale` and, with `bins`, stand there a second time as `QuantileBins`; categories go through tables.

    Attributes:
        out_dim: width of the whole vector.
        num_numbers: its leading columns that are numbers of the candidate, the input of a wide path.
    """

    def __init__(
        self, features: FeatureSpec, *, field_dim: int, std: float = DEFAULT_STD, bins: int = 0, extra: int = 0
    ) -> None:
        super().__init__()
        numbers = tuple(f for f in features.candidate_fields if f.kind in {"numeric", "vector"})
        kinds = tuple(f for f in features.candidate_fields if f.kind in {"categorical", "multi"})
        self.candidate_numbers = FieldEncoder(numbers, field_dim, std=std)
        self.candidate_kinds = FieldEncoder(kinds, field_dim, std=std)
        self.context = FieldEncoder(features.context_fields, field_dim, std=std)
        self.num_match = len(features.match)
        columns = self.num_match + self.candidate_numbers.out_dim + extra
        self.scale = RunningScale(columns)
        self.bins = QuantileBins(columns, bins) if bins and columns else None
        self.num_numbers = columns + (self.bins.out_dim if self.bins is not None else 0)
        self.out_dim = self.num_numbers + self.candidate_kinds.out_dim + self.context.out_dim

    @torch.no_grad()
    def calibrate(self, sample: Iterable[tuple[Candidates, Tensor | None]]) -> None:
        """Set the knots of the bins from (candidates, extra columns) of training; once, before the first step."""
        if self.bins is not None:
            self.bins.calibrate(torch.cat([self._columns(candidates, extra) for candidates, extra in sample]))

    def _columns(self, candidates: Candidates, extra: Tensor | None) -> Tensor:
        match = candidates.match[:, : self.num_match]
        columns = [match, self.candidate_numbers(candidates.fields, candidates.item.shape[0])]
        return torch.cat(columns if extra is None else [*columns, extra], 1)

    def forward(self, candidates: Candidates, context: Context, extra: Tensor | None = None) -> Tensor:
        """Return (N, out_dim); `extra` is (N, extra) where the layer was made with it."""
        num = candidates.item.shape[0]
        parts = []
        if self.num_numbers:
            columns = self._columns(candidates, extra)
            parts.append(self.scale(columns))
            if self.bins is not None:
                parts.append(self.bins(columns))
        if self.candidate_kinds.out_dim:
            parts.append(self.candidate_kinds(candidates.fields, num))
        if self.context.out_dim:
            per_request = self.context(context.fields, context.time_ms.shape[0])
            parts.append(per_request[candidates.row])
        return torch.cat(parts, 1) if parts else torch.zeros(num, 0, device=candidates.item.device)


__all__ = ["RequestFeatures"]
