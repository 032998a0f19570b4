"""One vector per item, alike as input and as what is searched for.

`layers/embedding.ItemEmbedding` lays the parts of an item side by side, for rankers that compare them with more than an
inner product; retrievers need them summed into one width, which is all that is added here.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from sostenuto.layers.embedding import ItemEmbedding
from sostenuto.layers.initialise import xavier_linear
from sostenuto.schema.features import FeatureSpec


class ItemVectors(nn.Module):
    """The item's own row, plus what a linear map makes of its categories and fields.

    Args:
        features:     sizes of everything.
        width:        D.
        category_dim: width per category level before the map; 0 leaves categories out.
        field_dim:    width per categorical item field before the map; 0 leaves fields out.
        std:          of the initial rows.
    """

    def __init__(
        self, features: FeatureSpec, width: int, *, category_dim: int = 0, field_dim: int = 0, std: float = 0.02
    ) -> None:
        super().__init__()
        self.width = width
        self.items = ItemEmbedding(features, item_dim=width, category_dim=category_dim, field_dim=field_dim, std=std)
        beside = self.items.out_dim - width
        self.from_content = xavier_linear(beside, width, bias=False) if beside else None

    def forward(self, item: Tensor, category: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """Return (N, D) of (N,) items with their categories and fields."""
        found: Tensor = self.items(item, category, fields)
        if self.from_content is None:
            return found
        mapped: Tensor = self.from_content(found[:, self.width :])
        return found[:, : self.width] + mapped


__all__ = ["ItemVectors"]
