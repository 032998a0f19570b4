"""Everything about a candidate and its request that is neither the item nor the history."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import DEFAULT_STD, FieldEncoder
from sostenuto.layers.running_scale import RunningScale
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context


class RequestFeatures(nn.Module):
    """Match features, candidate fields and context fields as one vector per candidate.

    Numbers (match features, numeric and vector fields) go through `RunningScale`; categories through tables.

    Attributes:
        out_dim: width of the whole vector.
        num_numbers: its leading columns that are numbers of the candidate, the input of a wide path.
    """

    def __init__(self, features: FeatureSpec, *, field_dim: int, std: float = DEFAULT_STD) -> None:
        super().__init__()
        numbers = tuple(f for f in features.candidate_fields if f.kind in {"numeric", "vector"})
        kinds = tuple(f for f in features.candidate_fields if f.kind in {"categorical", "multi"})
        self.candidate_numbers = FieldEncoder(numbers, field_dim, std=std)
        self.candidate_kinds = FieldEncoder(kinds, field_dim, std=std)
        self.context = FieldEncoder(features.context_fields, field_dim, std=std)
        self.num_match = len(features.match)
        self.num_numbers = self.num_match + self.candidate_numbers.out_dim
        self.scale = RunningScale(self.num_numbers)
        self.out_dim = self.num_numbers + self.candidate_kinds.out_dim + self.context.out_dim

    def forward(self, candidates: Candidates, context: Context) -> Tensor:
        """Return (N, out_dim)."""
        num = candidates.item.shape[0]
        parts = []
        if self.num_numbers:
            match = candidates.match[:, : self.num_match]
            numbers = self.candidate_numbers(candidates.fields, num)
            parts.append(self.scale(torch.cat([match, numbers], 1)))
        if self.candidate_kinds.out_dim:
            parts.append(self.candidate_kinds(candidates.fields, num))
        if self.context.out_dim:
            per_request = self.context(context.fields, context.time_ms.shape[0])
            parts.append(per_request[candidates.row])
        return torch.cat(parts, 1) if parts else torch.zeros(num, 0, device=candidates.item.device)


__all__ = ["RequestFeatures"]
