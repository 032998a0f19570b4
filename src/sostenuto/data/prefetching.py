"""One step ahead: the next element of an iterator is made by a thread while the present one is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Element = TypeVar("Element")


def prefetched(elements: Iterable[Element]) -> Iterator[Element]:
    """Yield the same elements in the same order; an error comes out where its element would have come."""
    iterator = iter(elements)
    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, end)
        while (element := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield element  # type: ignore[misc]


__all__ = ["prefetched"]
