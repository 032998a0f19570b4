"""ETA: end-to-end user behaviour retrieval (Chen et al. 2021, arXiv:2108.04468).

Item vectors of candidates and behaviours are hashed by fixed random hyperplanes; the behaviours whose signatures differ
in the fewest bits are attended over. The hash follows the embeddings, so there is no second model to keep up to date.
Differs from the paper: docs/models/eta.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from sostenuto.layers.embedding import TimedVectors
from sostenuto.layers.search_config import SearchConfig
from sostenuto.layers.selector import HammingSelector, SearchIndex
from sostenuto.layers.two_stage import Past, TwoStage
from sostenuto.ops.simhash import PACKED_BITS, packed_signatures, random_hyperplanes
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RankerOutput, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class ETAConfig(SearchConfig):
    """Sizes and switches of ETA."""

    hash_bits: int = 64  # m, bits of a signature; 64 fill a word, and fewer cost as much

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        if self.hash_bits < PACKED_BITS or self.hash_bits % PACKED_BITS:
            raise SpecError(
                f"ETAConfig.hash_bits must be a multiple of {PACKED_BITS}, got {self.hash_bits}; "
                f"set it to {max(1, self.hash_bits // PACKED_BITS) * PACKED_BITS}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ETAState:
    """All behaviours, and their signatures."""

    past: Past
    index: SearchIndex


class ETA(nn.Module):
    """The behaviours of the nearest signatures, exact attention over them, and a tower."""

    planes: Tensor

    def __init__(self, config: ETAConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.two_stage = TwoStage(config, features)
        dim = self.two_stage.items.identity_dim
        if not dim:
            raise SpecError("ETA hashes item and category rows, but item_dim is 0 and the data have no category")
        self.register_buffer("planes", random_hyperplanes(dim, config.hash_bits // PACKED_BITS, PACKED_BITS))
        self.selector = HammingSelector(config.kept)

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.two_stage.calibrate(batches, item_vectors)

    def keep_items(self, catalogue: Catalogue) -> int:
        """Keep every item's vector and signature for scoring; see `schema.ranker.ItemKeeper`."""
        return self.two_stage.keep_items(catalogue, self._hashed, [self.planes])

    def encode(self, histories: History) -> ETAState:
        """Embed the behaviours and hash each distinct item once."""
        distinct = self.two_stage.histories.distinct(histories)
        codes = self._hashed(distinct.key)["code"].index_select(0, distinct.place)
        return ETAState(
            past=self.two_stage.encode(histories, distinct),
            index=SearchIndex(offsets=histories.offsets, time_ms=histories.time_ms, rows=codes),
        )

    def append(self, state: ETAState, events: History) -> ETAState:
        """Fold later events in; equal to encoding everything anew."""
        later = self.encode(events)
        return ETAState(past=self.two_stage.append(state.past, later.past), index=state.index.joined(later.index))

    def score(self, state: ETAState, candidates: Candidates, context: Context) -> RankerOutput:
        """Search for each candidate, attend over what was found, and read the tower."""
        columns = self.two_stage.of_items(state.past, candidates, self._hashed)
        target = columns["target"]
        chosen = self.selector.select(columns["code"], candidates.offsets, state.index)
        interest, count = self.two_stage.attend(state.past, context, target, chosen)
        return RankerOutput(logits=self.two_stage.predict(state.past, candidates, context, target, interest, count))

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    def _hashed(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return the signatures of (N, D) item vectors: of their item and category rows, as in SDIM."""
        return {"code": packed_signatures(vectors[:, : self.two_stage.items.identity_dim], self.planes)}


__all__ = ["ETA", "ETAConfig", "ETAState"]
