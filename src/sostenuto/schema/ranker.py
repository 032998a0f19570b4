"""The contract: a ranker is two functions. Training, evaluation and serving call the same two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from sostenuto.schema.content import ItemContent
from sostenuto.schema.histories import Candidates, Context, History, RankerOutput, RequestBatch


class Ranker(Protocol):
    """`encode` knows no candidate and no request time; `score` does the rest. `forward` is their composition.

    The state is opaque to callers. It is a value: never changed in place, row b belongs to history row b.
    """

    def encode(self, histories: History) -> Any:
        """Return the user side, computed off the request and cacheable."""
        ...

    def score(self, state: Any, candidates: Candidates, context: Context) -> RankerOutput:
        """Return logits for the candidates of each row of `state`."""
        ...


class ContentRanker(Ranker, Protocol):
    """A ranker that reads the content of items: texts, images, vectors the user brought.

    Its entry in the table of models names the kinds it reads (`ModelEntry.content`), and it is built with
    `FeatureSpec.content`, the sizes. The tensors come once, after building or loading and before the first `encode`.
    """

    def take_content(self, content: Mapping[str, ItemContent]) -> None:
        """Keep the content of all items, by the names of `FeatureSpec.content`; on the ranker's device already.

        What is kept is constant and not part of the ranker's saved state.
        """
        ...


class FittedRanker(Ranker, Protocol):
    """A ranker that is fitted as a whole (trees, logistic regression) instead of by gradient steps."""

    def fit(self, train: Iterable[RequestBatch], valid: Iterable[RequestBatch]) -> dict[str, float]:
        """Fit on requests; `valid` may stop early. Returns a few numbers worth logging."""
        ...

    def save(self, folder: Path) -> None:
        """Write the fitted state into `folder` in formats that cannot run code."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...


__all__ = ["ContentRanker", "FittedRanker", "Ranker"]
