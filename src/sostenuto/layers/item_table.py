"""What depends on the item alone, computed once for a whole catalogue and then looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sostenuto.layers.embedding import ItemEmbedding
from sostenuto.layers.kept import Kept
from sostenuto.schema.histories import Candidates, Catalogue

ITEMS_AT_ONCE = 16_384  # bounds memory while a table is filled


class ItemColumns(Protocol):
    """Makes named (n, width) columns of (n,) items; called as `ItemEmbedding` is."""

    def __call__(
        self, item: Tensor, category: Tensor, fields: Mapping[str, Tensor], version: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        """Return the columns of (n,) items, (n, K) categories and item fields."""
        ...


def target_columns(items: ItemEmbedding, more: Callable[[Tensor], Mapping[str, Tensor]] | None = None) -> ItemColumns:
    """Return what makes the column `target`, item vectors, and `more` columns of these."""

    def made(
        item: Tensor, category: Tensor, fields: Mapping[str, Tensor], version: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        target = items(item, category, fields, version)
        return {"target": target, **(more(target) if more is not None else {})}

    return made


@dataclass(frozen=True, kw_only=True, slots=True)
class _Filled:
    """A filled table, and what it was made of."""

    catalogue: Catalogue
    columns: Mapping[str, Tensor]  # (I, width) each


class ItemTable(Kept[_Filled]):
    """Named columns of one row per item, for scoring without gradients.

    It is empty until `fill`, and `rows` then answers None: the caller computes. The same holds while a gradient is
    wanted, for items beyond the catalogue, for candidates whose category or fields are not those of the catalogue, and
    once a parameter may have changed (`Kept`).
    """

    @torch.no_grad()
    def fill(
        self, catalogue: Catalogue, make: Callable[[Tensor, Catalogue], Mapping[str, Tensor]], sources: Iterable[Tensor]
    ) -> int:
        """Compute every item's row and return the bytes kept, what the catalogue says of items included.

        Args:
            catalogue: I items.
            make: gives named (n, width) columns of (n,) items and their part of the catalogue.
            sources: the parameters and buffers that `make` reads.

        Raises:
            ValueError: in training mode, in which the rows would be old after a step.
        """
        if self.training:
            raise ValueError("items are kept in evaluation mode, the ranker is in training mode; call eval() first")
        starts = range(0, catalogue.num_items, ITEMS_AT_ONCE)
        parts = [
            make(torch.arange(at, at + part.num_items, device=part.category.device), part)
            for at in starts
            if (part := catalogue.part(at, at + ITEMS_AT_ONCE))
        ]
        if not parts:
            self.empty()
            return 0
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.hold(_Filled(catalogue=catalogue, columns=columns), sources)
        return self.num_bytes

    def keep(
        self,
        items: ItemEmbedding,
        catalogue: Catalogue,
        make: ItemColumns | None = None,
        sources: Iterable[Tensor] = (),
    ) -> int:
        """Fill the table with what is made of item vectors; see `schema.ranker.ItemKeeper`.

        Args:
            items: the embedding that makes them.
            catalogue: all items, with what `items` reads of them and more.
            make: gives the columns; by default `target` alone, the vectors.
            sources: further parameters and buffers that `make` reads.
        """
        of_items = make or target_columns(items)

        def made(item: Tensor, about: Catalogue) -> Mapping[str, Tensor]:
            return of_items(item, about.category, about.fields)

        return self.fill(items.catalogue_of(catalogue), made, [*items.parameters(), *items.buffers(), *sources])

    def look_up(
        self, items: ItemEmbedding, candidates: Candidates, version: Tensor | None, make: ItemColumns | None = None
    ) -> Mapping[str, Tensor]:
        """Return the (N, width) columns of N candidates: those that `keep` has made, or made now.

        Args:
            items, make: as in `keep`.
            candidates: N of them.
            version: (N,) of the fixed vectors, in training.
        """
        if (kept := self.rows(candidates)) is not None:
            return kept
        return (make or target_columns(items))(candidates.item, candidates.category, candidates.fields, version)

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows, and of the catalogue that they are of."""
        filled = self.value
        if filled is None:
            return 0
        tensors = [*filled.columns.values(), filled.catalogue.category, *filled.catalogue.fields.values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    def columns(self) -> Mapping[str, Tensor] | None:
        """Return the (I, width) columns of all items, or None where rows must be computed.

        For columns that the item's number decides alone: what the catalogue says is not compared with anything.
        """
        filled = self.held()
        return None if filled is None else filled.columns

    def rows(self, candidates: Candidates) -> dict[str, Tensor] | None:
        """Return the (N, width) columns of N candidates, or None where they must be computed."""
        filled, item = self.held(), candidates.item
        if filled is None or not item.numel():
            return None
        about = filled.catalogue
        if int(item.max()) >= about.num_items:
            return None
        levels = about.category.shape[1]
        if levels and not torch.equal(about.category.index_select(0, item), candidates.category[:, :levels]):
            return None
        if not all(
            _equal(column.index_select(0, item), candidates.fields[name]) for name, column in about.fields.items()
        ):
            return None
        return {name: column.index_select(0, item) for name, column in filled.columns.items()}


def _equal(kept: Tensor, given: Tensor) -> bool:
    """Say whether two columns hold the same; a missing number equals a missing number."""
    if kept.dtype != given.dtype or not kept.is_floating_point():
        return torch.equal(kept, given)
    return torch.equal(kept, given) or torch.equal(kept.nan_to_num(nan=torch.inf), given.nan_to_num(nan=torch.inf))


__all__ = ["ItemColumns", "ItemTable", "target_columns"]
