"""The contract: a ranker is two functions. Training, evaluation and serving call the same two.

Sequence models have a third, which trains on all requests along a timeline in one pass; a law binds it to the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sostenuto.schema.content import ItemContent
from sostenuto.schema.histories import (
    Candidates,
    Catalogue,
    Context,
    History,
    RankerOutput,
    RequestBatch,
    SequenceBatch,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sostenuto.schema.priors import Priors


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


class AlongRanker(Ranker, Protocol):
    """A ranker that scores all requests along a timeline in one pass (objective `ranking_along`).

    The law: the logits of request r equal score(encode(the first prefix[r] behaviours), its candidates, its context).
    """

    def logits_along(self, batch: SequenceBatch) -> RankerOutput:
        """Return logits (N,) for `batch.candidates`."""
        ...


class Retriever(Ranker, Protocol):
    """A ranker whose logits are inner products, so that it can search a whole catalogue (objective `next_item`).

    The law: the query of request r along a timeline equals query(encode(the first prefix[r] behaviours), its context).
    """

    def query(self, state: Any, context: Context) -> Tensor:
        """Return (B, D); a temperature is part of it."""
        ...

    def item_vectors(self, candidates: Candidates) -> Tensor:
        """Return (N, D): a function of the item alone."""
        ...

    def queries_along(self, batch: SequenceBatch) -> Tensor:
        """Return (R, D) of all requests in one pass."""
        ...


class CatalogueRanker(Ranker, Protocol):
    """A ranker that searches by more than one inner product, and so scores a whole catalogue by itself."""

    def catalogue_scores(self, state: Any, catalogue: Candidates, context: Context) -> Tensor:
        """Return (B, I): the logits that `score` gives every item of a catalogue, which is one row of I items."""
        ...


class LossAlongRanker(Ranker, Protocol):
    """A ranker whose targets are not single positions, such as a window of future items (objective `loss_along`).

    Its configuration has `targets`, a `schema.priors.FutureTargets`.
    """

    def take_priors(self, priors: Priors, anchors: Candidates) -> None:
        """Take over what is known of items, actions and users; `anchors` are the items of `priors.anchors`, flat.

        It comes once, before training, and is part of the saved state.
        """
        ...

    def loss_along(self, batch: SequenceBatch) -> RankerOutput:
        """Return auxiliary losses, which are the whole loss; logits are empty."""
        ...


@runtime_checkable
class ItemKeeper(Protocol):
    """What a ranker offers whose scoring has parts that depend on the item alone."""

    def keep_items(self, catalogue: Catalogue) -> int:
        """Compute those parts once for every item of a catalogue, and return the bytes kept.

        In evaluation mode `score` then looks them up, with the same scores; what the catalogue does not cover is
        computed as before. Whatever may change a parameter makes the ranker forget them.

        Raises:
            ValueError: in training mode.
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


__all__ = [
    "AlongRanker",
    "CatalogueRanker",
    "ContentRanker",
    "FittedRanker",
    "ItemKeeper",
    "LossAlongRanker",
    "Ranker",
    "Retriever",
]
