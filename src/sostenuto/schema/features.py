"""What the columns mean: the feature specification that prepared data hand to every ranker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PADDING = 0
UNKNOWN = 1
FIRST_KNOWN = 2
CONTENT_KINDS = ("vectors", "tokens", "states")
MOST_VECTOR_ITEMS = 300_000  # bounds fixed item vectors: 12 versions of width 64 in half precision are 440 MiB


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One column beside the item: on a behaviour, a candidate, the context or the item table.

    A categorical column holds indices (0 padding or missing, 1 unknown, 2.. known); `size` counts all of them.
    A numeric column holds raw float32 values with NaN for missing; `mean` and `std` come from training time only,
    and a ranker standardises with them (NaN becomes 0 after standardising).
    A multi-valued column holds (rows, `width`) indices like a categorical one, 0 behind the last value.
    A vector column holds (rows, `width`) float32 values.
    """

    name: str
    kind: Literal["categorical", "numeric", "multi", "vector"]
    size: int = 1  # vocabulary size of categorical and multi
    width: int = 1  # columns of multi and vector
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentField:
    """One kind of item content that a prepared folder has: text, images, or vectors the user brought.

    Only sizes stand here. The tensors are `ItemContent`, handed to a ranker by `take_content`.
    """

    name: str  # of the folder content/<name>
    vector_dim: int  # width of the item vectors
    num_tokens: int = 0  # most tokens of one item, the encoder's marks included; 0 = no tokens
    num_token_ids: int = 0  # token ids lie in 0 .. num_token_ids - 1; 0 is padding
    token_dim: int = 0  # width of the encoder's token vectors and hidden states; 0 = it gives none
    has_states: bool = False  # hidden states below the encoder's last layer, and that layer, are there

    @property
    def kinds(self) -> frozenset[str]:
        """What is there of `CONTENT_KINDS`."""
        there = {"vectors": True, "tokens": self.num_tokens > 0, "states": self.has_states}
        return frozenset(kind for kind, is_there in there.items() if is_there)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpec:
    """Sizes and names of everything a ranker may read. Stored in the manifest and in every checkpoint."""

    num_items: int  # item vocabulary, padding and unknown included
    num_item_rows: int  # items with an index below this own an embedding row; all others share row 1
    categories: tuple[Field, ...] = ()  # the category path, coarse to fine: columns of `category` (N, K)
    num_actions: int = 2
    num_places: int = 2
    item_fields: tuple[Field, ...] = ()  # static by item; carried in `fields` of histories and candidates
    behaviour_fields: tuple[Field, ...] = ()  # further event columns; in `History.fields`
    candidate_fields: tuple[Field, ...] = ()  # known at the request: price, position, popularity ...
    context_fields: tuple[Field, ...] = ()  # per request: hour, weekday, user fields ...
    match: tuple[str, ...] = ()  # names of the match features, columns of `Candidates.match`; () = none
    has_value: bool = False  # behaviours carry a numeric value
    value_mean: float = 0.0  # of log1p(max(value, 0)) over training time
    value_std: float = 1.0
    content: tuple[ContentField, ...] = ()  # what `take_content` will be handed; () = nothing
    time_zone: str = "UTC"  # IANA zone of local hours and weekdays
    # latitude and longitude in degrees of the centre of place 2, 3, ...; () where places are only names
    place_points: tuple[tuple[float, float], ...] = ()

    @property
    def num_vector_items(self) -> int:
        """Items with an index below this own a fixed vector: indices follow frequency, and memory is bounded."""
        return min(self.num_items, MOST_VECTOR_ITEMS)


__all__ = [
    "CONTENT_KINDS",
    "FIRST_KNOWN",
    "MOST_VECTOR_ITEMS",
    "PADDING",
    "UNKNOWN",
    "ContentField",
    "FeatureSpec",
    "Field",
]
