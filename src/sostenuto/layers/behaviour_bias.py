"""What only a behaviour has, as one number per head that is added to its scores."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from sostenuto.layers.encoded_history import EncodedHistory, request_gaps
from sostenuto.layers.initialise import xavier_linear, zero_linear
from sostenuto.ops.time_gaps import NUM_GAP_FEATURES
from sostenuto.schema.histories import Context


class BehaviourBias(nn.Module):
    """b = W_s side + W_g gaps: linear in action, value and event fields, and in what the request adds.

    A candidate cannot be compared with any of these, so they move the scores of all candidates alike.

    Args:
        side_dim: width of the side terms of encoded behaviours; 0 without any.
        heads: H.
        gaps: also the gap to the request, and whether at the same place.
    """

    def __init__(self, side_dim: int, heads: int, *, gaps: bool) -> None:
        super().__init__()
        self.gap_dim = NUM_GAP_FEATURES + 1 if gaps else 0
        self.side = xavier_linear(side_dim, heads, bias=False) if side_dim else None
        self.gap = zero_linear(self.gap_dim, heads) if gaps else None

    def of_side(self, encoded: EncodedHistory) -> EncodedHistory:
        """Return the behaviours with (N, H) in place of their side terms: the part that no request changes."""
        if self.side is None or encoded.side is None:
            return replace(encoded, side=None)
        return replace(encoded, side=self.side(encoded.side))

    def gaps(self, history: EncodedHistory, positions: Tensor | None, context: Context) -> Tensor | None:
        """Return `request_gaps`, None where gaps are left out."""
        return None if self.gap is None else request_gaps(history, positions, context)

    def forward(self, side: Tensor | None, gaps: Tensor | None) -> Tensor | None:
        """Return (N, H) of behaviours with this part of `of_side` and these gaps; None where neither says anything."""
        if gaps is None or self.gap is None:
            return side
        hidden: Tensor = self.gap(gaps)
        return hidden if side is None else side + hidden


__all__ = ["BehaviourBias"]
