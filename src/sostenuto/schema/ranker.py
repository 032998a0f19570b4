"""The contract: a ranker is two functions. Training, evaluation and serving call the same two.

Sequence models have a third, which trains on all requests along a timeline in one pass; a law binds it to the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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


from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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


from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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
