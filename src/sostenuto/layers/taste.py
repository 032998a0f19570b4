"""How well a candidate agrees with what the user has bought so far, by fixed item vectors, over several horizons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.ops.bucket_sum import weighted_bucket_sum
from sostenuto.ops.jagged import lengths_to_offsets, newest_time, position_in_row, row_index, segment_sum

DAY_MS = 86_400_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TasteState:
    """Decayed sums of item vectors of B users; a value. Its size does not depend on the history's length."""

    sums: Tensor  # (B, P, V) float64
    weights: Tensor  # (B, P) float64, the sums of the weights
    reference_ms: Tensor  # (B,) int64 time of the newest behaviour, where ages count from


class Taste(nn.Module):
    """Mean item vector of a history with weights 2 ** (-age / half-life), and its inner product with a candidate.

    The first horizon weighs all behaviours alike. Ages count from the newest behaviour: counting from the request
    would multiply a sum and its weight by one factor. So scoring needs no request time, and a later event is an exact
    rescale and add. Ours.

    Args:
        parts:          vectors are this many of equal width side by side; each gives inner products of its own.
        half_life_days: of the further horizons.
    """

    rates: Tensor

    def __init__(self, parts: int = 1, half_life_days: Sequence[float] = (7.0, 28.0)) -> None:
        super().__init__()
        self.parts = parts
        rates = [0.0, *(math.log(2.0) / (days * DAY_MS) for days in half_life_days)]
        self.register_buffer("rates", torch.tensor(rates, dtype=torch.float64), persistent=False)
        self.horizons = len(rates)
        self.out_dim = self.horizons * parts

    def encode(self, vectors: Tensor, offsets: Tensor, time_ms: Tensor) -> TasteState:
        """Sum (N, V) vectors of jagged behaviours, times rising inside a row."""
        reference = newest_time(offsets, time_ms)
        age = (reference[row_index(offsets)] - time_ms).double()
        weights = torch.exp(-age[:, None] * self.rates)
        one = torch.zeros(1, 1, dtype=torch.int32, device=vectors.device)  # a single bucket for everything
        place = torch.zeros(vectors.shape[0], dtype=torch.int64, device=vectors.device)
        return TasteState(
            sums=weighted_bucket_sum(vectors, weights, one, place, offsets, 1)[:, 0, 0],
            weights=segment_sum(weights, offsets),
            reference_ms=reference,
        )

    def encode_along(
        self, vectors: Tensor, offsets: Tensor, time_ms: Tensor, row: Tensor, prefix: Tensor
    ) -> TasteState:
        """Return the states of R requests along timelines: each of the first `prefix` behaviours of its row.

        Every behaviour is summed once, for the first request that reads it. Then request r takes over what request
        r - 1 has, faded to its own newest behaviour; done for steps of 1, 2, 4 ... that is a running sum.

        Args:
            vectors, offsets, time_ms: of the whole timelines, as in `encode`.
            row: (R,) int64, never decreasing.
            prefix: (R,) int64, rising inside a row.
        """
        ends = offsets[row] + prefix
        begins = offsets[row]
        same = row[1:] == row[:-1]
        begins[1:] = torch.where(same, ends[:-1], begins[1:])
        pieces = lengths_to_offsets(ends - begins)
        index = torch.repeat_interleave(begins, ends - begins) + position_in_row(pieces)
        piece = self.encode(vectors[index], pieces, time_ms[index])
        reference = torch.zeros_like(ends)
        reference[prefix > 0] = time_ms[ends[prefix > 0] - 1]
        sums, weights = piece.sums, piece.weights
        most = int(torch.bincount(row).max()) if len(row) else 0
        step = 1
        while step < most:
            since = (reference[step:] - reference[:-step]).double()[:, None]
            fade = torch.exp(-since.clamp(min=0) * self.rates) * (row[step:] == row[:-step])[:, None]
            sums = torch.cat([sums[:step], sums[step:] + sums[:-step] * fade[:, :, None]])
            weights = torch.cat([weights[:step], weights[step:] + weights[:-step] * fade])
            step *= 2
        return TasteState(sums=sums, weights=weights, reference_ms=reference)

    def append(self, state: TasteState, later: TasteState) -> TasteState:
        """Add the sums of later events; equal to encoding everything anew."""
        reference = torch.maximum(state.reference_ms, later.reference_ms)
        fade = torch.exp(-(reference - state.reference_ms).double()[:, None] * self.rates)
        again = torch.exp(-(reference - later.reference_ms).double()[:, None] * self.rates)
        return TasteState(
            sums=state.sums * fade[:, :, None] + later.sums * again[:, :, None],
            weights=state.weights * fade + later.weights * again,
            reference_ms=reference,
        )

    def forward(self, state: TasteState, vectors: Tensor, row: Tensor) -> Tensor:
        """Return (Nc, out_dim) float32 agreements of (Nc, V) candidates; 0 for an empty history."""
        mean = (state.sums / state.weights.clamp(min=1e-12)[:, :, None]).float()
        split = (self.parts, vectors.shape[1] // self.parts)
        by_part, each = mean.view(*mean.shape[:2], *split), vectors.view(-1, *split)
        if len(mean) == 1:  # one request: one product
            return torch.einsum("pkv,ckv->cpk", by_part[0], each).flatten(1)
        return torch.einsum("cpkv,ckv->cpk", by_part[row], each).flatten(1)


__all__ = ["Taste", "TasteState"]
