"""Embedding tables, and the vectors they make of items, behaviours and fields.

`Table` is the only class that owns embedding rows. The optimiser finds tables by it and updates touched rows only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sostenuto.ops.drawing import MAX_SEED, drawn_per_number
from sostenuto.ops.jagged import newest_time, row_index
from sostenuto.ops.large_pages import on_large_pages
from sostenuto.ops.table_rows import lookup_rows
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import PADDING, UNKNOWN, FeatureSpec, Field
from sostenuto.schema.histories import Catalogue

# Rankers set their own (docs/models/din.md); rows this small leave the first steps to the other inputs.
DEFAULT_STD = 1e-4


class Table(nn.Module):
    """One embedding table: rows are looked up once per distinct index, and only touched rows get a gradient.

    Row 0 is padding: always zero, never trained. `weight.grad` is a sparse tensor over the touched rows.
    """

    def __init__(self, num_rows: int, dim: int, *, std: float = DEFAULT_STD) -> None:
        super().__init__()
        if num_rows < 1 or dim < 1:
            raise SpecError(
                f"a table must have at least one row and one column, got {num_rows} rows of width {dim}; "
                "raise the width, or set it to 0 where 0 leaves the table out"
            )
        weight = on_large_pages(torch.empty(num_rows, dim)).normal_(0.0, std)
        weight[PADDING] = 0.0
        self.weight = nn.Parameter(weight)
        self.rate = 1.0  # of its learning rate to that of all tables

    @property
    def dim(self) -> int:
        """Width of a row."""
        return int(self.weight.shape[1])

    def forward(self, index: Tensor) -> Tensor:
        """Return (..., dim) rows for (...) int64 indices."""
        return lookup_rows(self.weight, index, PADDING)


class FieldEncoder(nn.Module):
    """Make one flat vector of a set of fields: categories by table, numbers standardised, vectors as they are.

    A missing category is the zero row; a missing number becomes 0 after standardising; a multi-valued field is the
    mean of its values' rows.
    """

    def __init__(self, fields: Sequence[Field], dim: int, *, std: float = DEFAULT_STD) -> None:
        super().__init__()
        self.fields = tuple(fields)
        self.tables = nn.ModuleDict(
            {
                f.name.replace(".", "/"): Table(f.size, dim, std=std)
                for f in fields
                if f.kind in {"categorical", "multi"}
            }
        )
        widths = {"categorical": dim, "multi": dim, "numeric": 1}
        self.out_dim = sum(f.width if f.kind == "vector" else widths[f.kind] for f in self.fields)

    def forward(self, columns: Mapping[str, Tensor], num_rows: int) -> Tensor:
        """Return (num_rows, out_dim) float32 of the columns named by the fields."""
        parts = [self._part(field, columns[field.name]) for field in self.fields]
        if not parts:
            device = next(iter(columns.values())).device if columns else None
            return torch.zeros(num_rows, 0, device=device)
        return torch.cat(parts, 1)

    def _part(self, field: Field, column: Tensor) -> Tensor:
        if field.kind == "numeric":
            return standardise(column, field.mean, field.std)[:, None]
        if field.kind == "vector":
            return torch.nan_to_num(column.float(), nan=0.0)
        rows: Tensor = self.tables[field.name.replace(".", "/")](column.long())
        if field.kind == "categorical":
            return rows
        count = (column != PADDING).sum(1, keepdim=True).clamp(min=1)
        return rows.sum(1) / count


def standardise(column: Tensor, mean: float, std: float) -> Tensor:
    """Return (x - mean) / std as float32, 0 where missing; a constant column (std 0) only loses its mean."""
    return torch.nan_to_num((column.float() - mean) / (std if std > 0 else 1.0), nan=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedVectors:
    """Fixed item vectors as they stood at P times of the training period, and at its end."""

    last: Tensor  # (num_vector_items, V) float32, of every event that training may use
    past: Tensor  # (P, num_vector_items, V); version p is of events strictly before starts_ms[p]
    starts_ms: Tensor  # (P,) int64, rising


class ItemEmbedding(nn.Module):
    """The vector of an item: fixed vector, own row, category path and static fields, side by side.

    Behaviours and candidates go through the same tables, so they live in one space. Items without a row of their own
    share the unknown row and live by category and fields.

    Fixed vectors come in versions: those of the whole training period remember what a training request asks about. In
    training mode callers pass the `version_at` of a history's newest behaviour, made from nothing later than that; in
    evaluation mode there is one version, the last.

    Args:
        features: sizes of everything.
        item_dim: width of the item's own row; 0 leaves identity out.
        category_dim: width per category level.
        field_dim: width per categorical item field.
        vector_dim: width of fixed item vectors, zero until `set_vectors`; never trained. Ours.
        key_vector_dim: leading columns of them that stand in the item's vector: a key pays for every column at every
            pair of behaviour and candidate. Only the first version has its columns in falling order of weight, later
            ones are turned onto it.
        std: standard deviation of the initial rows.
        id_dropout: chance, per item and call in training, that an item's own row is replaced by the unknown row.
            It trains the unknown row and keeps rare rows from being learnt by heart. Ours.
    """

    vectors: Tensor
    past_vectors: Tensor
    past_starts_ms: Tensor

    def __init__(
        self,
        features: FeatureSpec,
        *,
        item_dim: int,
        category_dim: int,
        field_dim: int,
        vector_dim: int = 0,
        key_vector_dim: int = 0,
        std: float = DEFAULT_STD,
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.vector_dim = vector_dim
        self.key_vector_dim = min(key_vector_dim, vector_dim)
        self.vector_parts = 2 if features.categories else 1  # the item's, then its finest category's
        rows = features.num_vector_items if vector_dim else 0
        self.all_own_vectors = features.num_vector_items == features.num_items
        width = vector_dim * self.vector_parts
        self.register_buffer("vectors", torch.zeros(rows, width))
        self.register_buffer("past_vectors", torch.zeros(0, rows, width), persistent=False)  # training only
        self.register_buffer("past_starts_ms", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.num_items = features.num_items
        self.num_item_rows = max(features.num_item_rows, UNKNOWN + 1)
        self.all_own_rows = features.num_item_rows == features.num_items
        self.id_dropout = id_dropout
        self.item = Table(self.num_item_rows, item_dim, std=std) if item_dim else None
        levels = features.categories if category_dim else ()
        self.levels = nn.ModuleList(Table(level.size, category_dim, std=std) for level in levels)
        self.fields = FieldEncoder(features.item_fields if field_dim else (), field_dim, std=std)
        # leading columns: what says which item it is
        self.identity_dim = self.key_vector_dim + item_dim + category_dim * len(self.levels)
        self.out_dim = self.identity_dim + self.fields.out_dim
        if self.out_dim == 0:
            raise SpecError(
                "an item vector must have at least one column: item_dim is 0 and the data have no category or item "
                "field; set item_dim to 8 or more"
            )

    @torch.no_grad()
    def set_vectors(self, vectors: TimedVectors) -> None:
        """Take fixed vectors over, V = vector_parts * vector_dim."""
        self.vectors.copy_(vectors.last)
        self.past_vectors = vectors.past.to(self.vectors.device)
        self.past_starts_ms = vectors.starts_ms.to(self.vectors.device)

    @property
    def num_versions(self) -> int:
        """Versions of the fixed vectors that `version_at` may name."""
        return len(self.past_starts_ms)

    def version_at(self, newest_ms: Tensor) -> Tensor | None:
        """Return the (B,) version that histories with these newest behaviours may see; None stands for the last.

        Every version is of events before its start, so one that starts no later than a behaviour before the request
        knows nothing at or after the request. Earlier histories get the first version, made before any request.
        """
        if not self.training or not len(self.past_starts_ms):
            return None
        return (torch.bucketize(newest_ms, self.past_starts_ms, right=True) - 1).clamp(min=0)

    def version_of_behaviours(self, offsets: Tensor, time_ms: Tensor) -> Tensor | None:
        """Return the (N,) `version_at` of jagged behaviours: one version a row, by its newest behaviour."""
        found = self.version_at(newest_time(offsets, time_ms))
        return None if found is None else found[row_index(offsets)]

    def fixed(self, item: Tensor, version: Tensor | None = None) -> Tensor:
        """Return (N, vector_parts * vector_dim) fixed vectors of (N,) items: the item's, then its category's."""
        if not self.vector_dim:
            return item.new_zeros(item.shape[0], 0, dtype=self.vectors.dtype)
        if not self.all_own_vectors:
            item = torch.where(item < self.vectors.shape[0], item, PADDING)  # its vector is zero
        if version is None:
            return self.vectors.index_select(0, item)
        return self.past_vectors[version, item].to(self.vectors.dtype)

    def forward(
        self,
        item: Tensor,
        category: Tensor,
        fields: Mapping[str, Tensor],
        version: Tensor | None = None,
        fixed: Tensor | None = None,
    ) -> Tensor:
        """Return (N, out_dim) of items.

        Args:
            item: (N,).
            category: (N, K).
            fields: item fields, (N,) or (N, V).
            version: (N,) of the fixed vectors, in training.
            fixed: their fixed vectors where these are at hand already; else they are looked up.
        """
        parts = []
        if self.key_vector_dim:
            parts.append((self.fixed(item, version) if fixed is None else fixed)[:, : self.key_vector_dim])
        if self.item is not None:
            row = item if self.all_own_rows else torch.where(item < self.num_item_rows, item, UNKNOWN)
            if self.training and self.id_dropout > 0:
                seed = torch.randint(MAX_SEED, (1,), device=item.device)
                dropped = drawn_per_number(row, self.id_dropout, seed)
                row = torch.where(dropped & (row != PADDING), UNKNOWN, row)
            parts.append(self.item(row))
        parts += [table(category[:, level]) for level, table in enumerate(self.levels)]
        if self.fields.out_dim:
            parts.append(self.fields(fields, item.shape[0]))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def catalogue_of(self, catalogue: Catalogue) -> Catalogue:
        """Return the part of a catalogue that item vectors are made of."""
        levels = catalogue.category[:, : len(self.levels)]
        return Catalogue(category=levels, fields={f.name: catalogue.fields[f.name] for f in self.fields.fields})


__all__ = ["DEFAULT_STD", "FieldEncoder", "ItemEmbedding", "Table", "TimedVectors", "standardise"]
