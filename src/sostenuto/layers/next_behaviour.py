"""Auxiliary loss on the states of a sequence: tell the next behaviour from one that did not happen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.layers.initialise import xavier_linear

Scorer = Literal["network", "product"]
SCORERS: tuple[Scorer, ...] = ("network", "product")


class PairNetwork(nn.Module):
    """A small network with ReLU units on [h; e], one logit. Its first layer is taken apart: h meets it once.

    The released code has sigmoid units behind a batch normalisation; without the latter they learn far more slowly.

    Args:
        state_dim: H.
        item_dim: D.
        units: hidden widths.
    """

    def __init__(self, state_dim: int, item_dim: int, units: Sequence[int]) -> None:
        super().__init__()
        both = xavier_linear(state_dim + item_dim, units[0])
        self.of_state = nn.Parameter(both.weight.detach()[:, :state_dim].clone())
        self.of_item = nn.Parameter(both.weight.detach()[:, state_dim:].clone())
        self.bias = nn.Parameter(torch.zeros(units[0]))
        layers: list[nn.Module] = [nn.ReLU(inplace=True)]
        for before, width in itertools.pairwise(units):
            layers += [xavier_linear(before, width), nn.ReLU(inplace=True)]
        self.deeper = nn.Sequential(*layers, xavier_linear(units[-1], 1))

    def forward(self, state: Tensor, items: Sequence[Tensor]) -> list[Tensor]:
        """Return (N,) logits of (N, H) states with each of the (N, D) items."""
        shared = torch.addmm(self.bias, state, self.of_state.T)
        return [self.deeper(torch.addmm(shared, item, self.of_item.T)).squeeze(1) for item in items]


class PairProduct(nn.Module):
    """The inner product of an item with the state, brought to the item's width where they differ.

    Args:
        state_dim: H.
        item_dim: D.
    """

    def __init__(self, state_dim: int, item_dim: int) -> None:
        super().__init__()
        self.to_item = None if state_dim == item_dim else xavier_linear(state_dim, item_dim, bias=False)

    def forward(self, state: Tensor, items: Sequence[Tensor]) -> list[Tensor]:
        """Return (N,) logits of (N, H) states with each of the (N, D) items."""
        wanted = state if self.to_item is None else self.to_item(state)
        return [(wanted * item).sum(1) for item in items]


class NextBehaviourLoss(nn.Module):
    """- mean of log s(h, e) + log(1 - s(h, e')), DIEN's auxiliary loss (arXiv:1809.03672, equation 6).

    h is the state behind a moment, e a behaviour of the next distinct moment, e' one that did not happen then.
    Behaviours of one moment have no order, so none of them is another's next. The mean is over what is there, so
    nothing padded can enter it.

    Args:
        state_dim: H.
        item_dim: D.
        scorer: "network", of the released code, or "product".
        units: hidden widths of the network.
    """

    def __init__(self, state_dim: int, item_dim: int, *, scorer: Scorer, units: Sequence[int]) -> None:
        super().__init__()
        self.score: PairNetwork | PairProduct
        network = scorer == "network"
        self.score = PairNetwork(state_dim, item_dim, units) if network else PairProduct(state_dim, item_dim)

    def forward(
        self, states: Tensor, item: Tensor, negative: Tensor, is_negative: Tensor, offsets: Tensor, moment: Tensor
    ) -> Tensor:
        """Return the scalar loss; 0 where no row has two moments.

        Args:
            states: (N, H) behind every behaviour.
            item: (N, D) item vectors of the behaviours.
            negative: (N, D) those of negatives.
            is_negative: (N,) bool, False where none was found.
            offsets: (B + 1,).
            moment: (N,) position of the first behaviour of each one's moment, see `ops.moments`.
        """
        row_start = torch.repeat_interleave(offsets[:-1], offsets[1:] - offsets[:-1])
        later = (moment > row_start).nonzero().squeeze(1)
        before = states[moment[later] - 1]
        happened, not_happened = self.score(before, [item[later], negative[later]])
        counted = is_negative[later]
        missed = F.softplus(-happened).sum() / max(len(later), 1)
        return missed + (F.softplus(not_happened) * counted).sum() / counted.sum().clamp(min=1)


__all__ = ["SCORERS", "NextBehaviourLoss", "PairNetwork", "PairProduct", "Scorer"]
