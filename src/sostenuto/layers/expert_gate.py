"""Mixing experts: a gate that asks the query, the few experts it lets in, and a gate that treats all alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sostenuto.layers.initialise import xavier_linear


class Mixed(NamedTuple):
    """What a gate made of E experts."""

    values: Tensor  # (N, D) the weighted sum
    weights: Tensor  # (N, E) sum to 1 over the experts let in; all 0 where every expert is empty
    balance: Tensor  # () E sum_e f_e P_e, 1 when all experts are used alike; 0 for a gate without parameters


def _mixed(weights: Tensor, outputs: Tensor, balance: Tensor) -> Mixed:
    return Mixed((weights[:, None] @ outputs)[:, 0], weights, balance)


class QueryGate(nn.Module):
    """Weights by softmax of a linear function of the query, over the experts that have something to say.

    Args:
        in_dim: width of the query.
        experts: E.
        top_k: experts let in at most, those of the largest logits; None lets all in.
    """

    def __init__(self, in_dim: int, experts: int, *, top_k: int | None = None) -> None:
        super().__init__()
        self.logits = xavier_linear(in_dim, experts)
        self.top_k = experts if top_k is None else min(top_k, experts)

    def forward(self, query: Tensor, outputs: Tensor, present: Tensor) -> Mixed:
        """Mix.

        Args:
            query: (N, in_dim).
            outputs: (N, E, D).
            present: (N, E) bool, False = the expert is empty and gets no weight.
        """
        logits = self.logits(query)
        lowest = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(~present, lowest)
        allowed = present
        if self.top_k < logits.shape[1]:
            best = logits.topk(self.top_k, dim=1).indices
            allowed = present & torch.zeros_like(present).scatter(1, best, True)
            logits = logits.masked_fill(~allowed, lowest)
        weights = logits.softmax(1) * allowed
        used = allowed.to(weights.dtype).mean(0) / self.top_k
        return _mixed(weights, outputs, weights.shape[1] * (used * weights.mean(0)).sum())


class UniformGate(nn.Module):
    """The mean over the experts that have something to say."""

    def forward(self, query: Tensor, outputs: Tensor, present: Tensor) -> Mixed:
        """Mix as `QueryGate` does; the query is not looked at."""
        weights = present.to(outputs.dtype) / present.sum(1, keepdim=True).clamp(min=1)
        return _mixed(weights, outputs, query.new_zeros(()))


__all__ = ["Mixed", "QueryGate", "UniformGate"]
