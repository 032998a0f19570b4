"""SIM with soft search: search-based user interest modelling (Pi et al., CIKM 2020, arXiv:2006.05639).

The general search unit keeps the behaviours with the largest learned inner product with the candidate; an auxiliary
click model, whose input is the history summed with those products, teaches it. The exact search unit attends over what
was kept. Differs from the paper: docs/models/sim_soft.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import TimedVectors
from sostenuto.layers.initialise import xavier_linear
from sostenuto.layers.running_scale import RunningScale
from sostenuto.layers.search_config import SearchConfig
from sostenuto.layers.selector import ProductSelector, SearchIndex
from sostenuto.layers.tower import Tower
from sostenuto.layers.two_stage import Past, TwoStage
from sostenuto.ops.product_pooling import product_pooling
from sostenuto.ops.steady_product import steady_product
from sostenuto.ops.table_rows import spread_rows
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import AuxHead, Candidates, Catalogue, Context, History, RankerOutput, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class SIMSoftConfig(SearchConfig):
    """Sizes and switches of SIM with soft search."""

    search_dim: int = 16  # width of the vectors that the search compares
    search_units: tuple[int, ...] = (64,)  # of the auxiliary click model
    search_weight: float = 1.0  # alpha / beta, of its loss beside the main one

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        self._check_from_one("search_dim")
        if not self.search_units or min(self.search_units) < 1:
            raise SpecError(
                "SIMSoftConfig.search_units must be one or more widths of at least 1, "
                f"got {self.search_units}; set it so"
            )
        if not self.search_weight > 0:
            raise SpecError(
                f"SIMSoftConfig.search_weight must be above 0, got {self.search_weight}; "
                "nothing else teaches the search"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SIMSoftState:
    """All behaviours, and the vectors that the search compares."""

    past: Past
    index: SearchIndex


class SIMSoft(nn.Module):
    """The behaviours of the largest learned product, exact attention over them, and a tower."""

    def __init__(self, config: SIMSoftConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.two_stage = TwoStage(config, features)
        dim = self.two_stage.dim
        self.of_behaviour = xavier_linear(dim, config.search_dim, bias=False)  # W_b
        self.of_candidate = xavier_linear(dim, config.search_dim, bias=False)  # W_a
        with torch.no_grad():
            self.of_candidate.weight.copy_(self.of_behaviour.weight)  # at first, what is like the candidate is near
        self.selector = ProductSelector(config.kept)
        self.scale = RunningScale(dim)
        self.search_head = Tower(2 * dim, config.search_units, activation="prelu")

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.two_stage.calibrate(batches, item_vectors)

    def keep_items(self, catalogue: Catalogue) -> int:
        """Keep every item's vector and what the search asks for it; see `schema.ranker.ItemKeeper`."""
        return self.two_stage.keep_items(catalogue, self._asked, self.of_candidate.parameters())

    def encode(self, histories: History) -> SIMSoftState:
        """Embed the behaviours and project them for the search."""
        distinct = self.two_stage.histories.distinct(histories)
        with torch.no_grad():  # no gradient flows through a selection
            rows = spread_rows(steady_product(distinct.key, self.of_behaviour.weight), distinct.place)
        return SIMSoftState(
            past=self.two_stage.encode(histories, distinct),
            index=SearchIndex(offsets=histories.offsets, time_ms=histories.time_ms, rows=rows),
        )

    def append(self, state: SIMSoftState, events: History) -> SIMSoftState:
        """Fold later events in; equal to encoding everything anew."""
        later = self.encode(events)
        return SIMSoftState(past=self.two_stage.append(state.past, later.past), index=state.index.joined(later.index))

    def score(self, state: SIMSoftState, candidates: Candidates, context: Context) -> RankerOutput:
        """Search for each candidate, attend over what was found, and read the tower."""
        columns = self.two_stage.of_items(state.past, candidates, self._asked)
        target, asked = columns["target"], columns["asked"]
        chosen = self.selector.select(asked, candidates.offsets, state.index)
        interest, count = self.two_stage.attend(state.past, context, target, chosen)
        logits = self.two_stage.predict(state.past, candidates, context, target, interest, count)
        if not self.training:
            return RankerOutput(logits=logits)
        head = AuxHead(self.search_logits(state, candidates, target, asked), self.config.search_weight)
        return RankerOutput(logits=logits, aux_heads={"search": head})

    def search_logits(self, state: SIMSoftState, candidates: Candidates, target: Tensor, asked: Tensor) -> Tensor:
        """Return the (Nc,) logits of the auxiliary click model on [U_r, e_a].

        U_r = 1 / L sum_i r_i e_i with r_i = (W_b e_i) . (W_a e_a) = e_i . (W_b^T W_a e_a): the candidate is turned, not
        the behaviours.
        """
        history = state.past.history
        pooled = product_pooling(asked @ self.of_behaviour.weight, candidates.offsets, history.key, state.index.offsets)
        pooled = pooled / history.lengths.clamp(min=1)[candidates.row, None]
        logits: Tensor = self.search_head(torch.cat([self.scale(pooled), target], 1)).squeeze(1)
        return logits

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    def _asked(self, target: Tensor) -> dict[str, Tensor]:
        return {"asked": steady_product(target, self.of_candidate.weight)}


__all__ = ["SIMSoft", "SIMSoftConfig", "SIMSoftState"]
