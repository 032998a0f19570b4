"""The whole history of a two-stage ranker, and exact attention over what a search has selected of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sostenuto.layers.behaviour_bias import BehaviourBias
from sostenuto.layers.embedding import ItemEmbedding
from sostenuto.layers.encoded_history import EncodedHistory, HistoryEncoder
from sostenuto.layers.exact_attention import ExactAttention
from sostenuto.layers.search_config import SearchConfig, item_embedding
from sostenuto.ops.jagged import Taken
from sostenuto.ops.selected_attention import Fusion, selected_attention
from sostenuto.ops.table_rows import distinct_values, few_rows
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Context


@dataclass(frozen=True, kw_only=True, slots=True)
class Picked:
    """The behaviours that any candidate's selection holds, once each."""

    first: Tensor  # (U,) int64 positions in the history
    place: Tensor  # (M,) int64 which of them each pair of a selection is about
    key: Tensor  # (U, D) item vectors
    bias: Tensor | None  # (U, H) added to their scores
    gaps: Tensor | None  # (U, NUM_GAP_FEATURES + 1)

    @property
    def value(self) -> Tensor:
        """(U, V) what is averaged beside the item vectors."""
        return self.key.new_zeros(self.key.shape[0], 0) if self.gaps is None else self.gaps


class LongBranch(nn.Module):
    """Embeddings of behaviours, and multi-head attention over a selection of them.

    What only a behaviour has (action, value, event fields, gap to the request, same place) becomes one number per head,
    added to its scores. The gap features are averaged beside the item vectors.

    Attributes:
        dim: D, width of item vectors.
        out_dim: of one candidate's interests, all heads.
    """

    def __init__(self, config: SearchConfig, features: FeatureSpec) -> None:
        super().__init__()
        items = item_embedding(config, features)
        hidden = config.attention_units[0]
        self.histories = HistoryEncoder(features, items, hidden=hidden, field_dim=config.field_dim, gaps=config.gaps)
        self.bias = BehaviourBias(hidden if self.histories.side_dim else 0, config.heads, gaps=config.gaps)
        self.exact = ExactAttention(items.out_dim, config.heads, config.head_dim, gain=config.gain)
        self.dim = items.out_dim
        self.out_dim = config.heads * (self.dim + self.bias.gap_dim)

    @property
    def items(self) -> ItemEmbedding:
        """The embedding that behaviours and candidates share."""
        return self.histories.items

    def picked(self, history: EncodedHistory, context: Context, taken: Taken) -> Picked:
        """Gather the behaviours of a selection, and what the request adds to them; each of them once."""
        found = distinct_values(taken.positions, max(history.time_ms.shape[0], 1))
        first = taken.positions[found.first]
        side = None if history.side is None else history.side[first]
        gaps = self.bias.gaps(history, first, context)
        key = few_rows(history.key, first)
        return Picked(first=first, place=found.place, key=key, bias=self.bias(side, gaps), gaps=gaps)

    def forward(self, target: Tensor, picked: Picked, offsets: Tensor, fusion: Fusion | None = None) -> Tensor:
        """Return (Nc, H, D + V) interests of (Nc, D) candidates with selections between these (Nc + 1,) offsets."""
        query = self.exact.folded(target)
        return selected_attention(
            query, picked.key, picked.bias, picked.value, picked.place, offsets, with_key=True, fusion=fusion
        )


__all__ = ["LongBranch", "Picked"]
