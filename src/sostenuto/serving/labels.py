"""Names of items that a person can read."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Protocol

import polars as pl

from sostenuto.schema.features import FIRST_KNOWN, FeatureSpec

LONGEST = 60  # characters: a column of a table still holds it


class DescribedItems(Protocol):
    """What names are made of: prepared data have it, and so does a bundle."""

    @property
    def items(self) -> pl.DataFrame:
        """The item table: row = item index."""
        ...

    @property
    def features(self) -> FeatureSpec:
        """Names the levels of the category path."""
        ...

    def has_vocabulary(self, name: str) -> bool:
        """Say whether raw ids of that name are there."""
        ...

    def vocabulary(self, name: str) -> list[str]:
        """Raw ids by index."""
        ...


class ItemLabels:
    """One short line per item: its texts, else its category names from coarse to fine, else its raw id.

    Among the texts a name or title comes first; others follow in the order of the table while the line stays short.
    """

    def __init__(self, data: DescribedItems) -> None:
        self._data = data

    @cached_property
    def _texts(self) -> list[pl.Series]:
        items = self._data.items
        named = [
            column
            for column in items.get_columns()
            if column.dtype == pl.String
            and column.name != "item_id"
            and not column.name.startswith(("category.", "field."))
        ]
        return sorted(named, key=lambda column: not {"name", "title"} & set(re.split(r"[^a-z]+", column.name.lower())))

    @cached_property
    def _levels(self) -> list[tuple[pl.Series, list[str]]]:
        data = self._data
        return [
            (data.items[f"category.{level.name}"], data.vocabulary(level.name))
            for level in data.features.categories
            if data.has_vocabulary(level.name)
        ]

    def __call__(self, item: int) -> str:
        """Return the line of an item index."""
        return self._from_texts(item) or self._from_categories(item) or self._from_id(item)

    def _from_texts(self, item: int) -> str:
        line = ""
        for column in self._texts:
            text = _one_line(column[item])
            if not line:
                line = text
            elif text and len(line) + len(text) + 2 <= LONGEST:
                line = f"{line}, {text}"
        return _shortened(line)

    def _from_categories(self, item: int) -> str:
        names: list[str] = []
        for column, vocabulary in self._levels:
            index = column[item]
            if index is None or index < FIRST_KNOWN:
                continue
            name = _one_line(vocabulary[index])
            if names and name.startswith(names[-1]):  # a level cut from a path holds those above it
                names[-1] = name
            elif name:
                names.append(name)
        return _shortened(" / ".join(names))

    def _from_id(self, item: int) -> str:
        raw = self._data.items["item_id"][item]
        return _shortened(_one_line(raw)) if raw is not None and item >= FIRST_KNOWN else "unknown item"


def _one_line(text: str | None) -> str:
    """Drop line breaks and control characters: a table cell, perhaps on a terminal, must hold the text."""
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"


__all__ = ["DescribedItems", "ItemLabels"]
