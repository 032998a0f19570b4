"""All of a two-stage ranker but its search: SIM, ETA and TWIN differ in which behaviours they select, and in no more.

whole history --> item vectors ------------------------------> selected by the model
                                                                    |
candidate ----> vector ----> exact attention over the selected <----+
   |               |                  |
   |               +--> target attention over the newest (as in DIN)
   v                                  v
match, fields, context, taste ----> tower ----> logit
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.encoded_history import DistinctItems, EncodedHistory, HistoryEncoder
from sostenuto.layers.item_table import target_columns
from sostenuto.layers.long_branch import LongBranch
from sostenuto.layers.search_config import SearchConfig
from sostenuto.layers.search_head import Beside, SearchHead
from sostenuto.ops.top_k import Selected
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Catalogue, Context, History, RequestBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """What a two-stage ranker keeps of users beside the index of its search; a value."""

    history: EncodedHistory  # all behaviours; `side` is (N, H), what action, value and event fields add to the scores
    beside: Beside


class TwoStage(nn.Module):
    """The long branch, and a head that reads its interests."""

    def __init__(self, config: SearchConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.num_categories = features.categories[-1].size if features.categories else 0
        self.long = LongBranch(config, features)
        self.dim = dim = self.long.dim
        self.head = SearchHead(
            config,
            features,
            self.long.items,
            dim  # target
            + self.long.out_dim
            + (dim + config.heads * dim if config.products else 0)  # target x interests
            + 1,  # behaviours found
            totals=config.products,
        )

    @property
    def histories(self) -> HistoryEncoder:
        """What encodes behaviours."""
        return self.long.histories

    @property
    def items(self) -> ItemEmbedding:
        """The embedding that behaviours and candidates share."""
        return self.long.items

    def calibrate(self, batches: Iterable[RequestBatch], item_vectors: Callable[[int], TimedVectors]) -> None:
        """Set what depends on the data before the first step; see `RequestFeatures.calibrate`."""
        self.head.calibrate(self.items, batches, item_vectors)

    def keep_items(
        self,
        catalogue: Catalogue,
        more: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
        sources: Iterable[Tensor] = (),
    ) -> int:
        """Keep every item's vector for scoring, and what the search makes of it; see `schema.ranker.ItemKeeper`.

        Args:
            catalogue: all items.
            more: gives further columns of (n, D) vectors.
            sources: the parameters and buffers that `more` reads.
        """
        return self.head.keep_items(self.items, catalogue, target_columns(self.items, more), sources)

    def of_items(
        self, past: Past, candidates: Candidates, more: Callable[[Tensor], Mapping[str, Tensor]] | None = None
    ) -> Mapping[str, Tensor]:
        """Return the columns of the candidates' items that `keep_items` keeps, looked up or made."""
        return self.head.of_items(self.items, past.beside, candidates, target_columns(self.items, more))

    def encode(self, histories: History, distinct: DistinctItems) -> Past:
        """Embed the behaviours; nothing here knows the candidate or the request."""
        encoded: EncodedHistory = self.histories(histories, distinct)
        return Past(
            history=self.long.bias.of_side(encoded),
            beside=self.head.encode(self.items, encoded, histories, distinct),
        )

    def append(self, past: Past, later: Past) -> Past:
        """Fold later events in; equal to encoding everything anew."""
        return Past(history=past.history.joined(later.history), beside=self.head.append(past.beside, later.beside))

    def attend(self, past: Past, context: Context, target: Tensor, chosen: Selected) -> tuple[Tensor, Tensor]:
        """Return (Nc, H, D + V) interests of candidates with a selection each, and the (Nc,) sizes of these."""
        picked = self.long.picked(past.history, context, chosen.taken)
        return self.long(target, picked, chosen.taken.offsets), chosen.taken.offsets.diff()

    def predict(
        self,
        past: Past,
        candidates: Candidates,
        context: Context,
        target: Tensor,
        interest: Tensor,
        count: Tensor,
    ) -> Tensor:
        """Weigh the newest behaviours for each candidate and read the tower.

        Args:
            past: of the users.
            candidates: of one request per user.
            context: of the requests.
            target: (Nc, D).
            interest: (Nc, H, D + V) of the exact attention.
            count: (Nc,) behaviours that it has read.

        Returns:
            (Nc,) logits.
        """
        head, dim = self.head, self.dim
        short = head.read_recent(self.histories, past.beside, candidates, context, target)
        vectors = [target, interest.flatten(1)]
        if self.config.products:
            products = (target[:, None] * interest[:, :, :dim]).flatten(1)
            vectors = [target, target * short[:, :dim], interest.flatten(1), products]
        pooled = head.embedding_dropout(torch.cat(vectors, 1))
        found = torch.log1p(count.float())[:, None]
        logits: Tensor = head(self.items, past.beside, candidates, context, [pooled, found, short])
        return logits


__all__ = ["Past", "TwoStage"]
