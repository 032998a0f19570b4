"""Invented histories and requests of the right shapes: for asking a ranker what its states and its graph look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sostenuto.schema.features import FIRST_KNOWN, UNKNOWN

if TYPE_CHECKING:
    from torch import Tensor

    from sostenuto.schema.features import FeatureSpec, Field
    from sostenuto.schema.histories import Candidates, Context, History

START_MS = 1_600_000_000_000
DAY_MS = 86_400_000


def invented_history(features: FeatureSpec, lengths: Sequence[int]) -> History:
    """Invent behaviours of users with the given numbers of them, one a day, over all items in turn."""
    import torch

    from sostenuto.schema.histories import History

    offsets = _offsets(lengths)
    at = torch.arange(sum(lengths))
    since = at - torch.repeat_interleave(offsets[:-1], torch.tensor(lengths))
    return History(
        offsets=offsets,
        item=_items(features, at),
        category=_categories(features, at),
        time_ms=START_MS + since * DAY_MS,
        action=at % features.num_actions,
        value=torch.ones(len(at)),
        place=at % features.num_places,
        fields={f.name: _column(f, at) for f in features.item_fields + features.behaviour_fields},
    )


def invented_request(features: FeatureSpec, candidates: int) -> tuple[Candidates, Context]:
    """Invent one request, ten years after every invented behaviour, with the given number of candidates."""
    import torch

    from sostenuto.schema.histories import Candidates, Context

    at, one = torch.arange(candidates), torch.arange(1)
    return (
        Candidates(
            offsets=_offsets([candidates]),
            item=_items(features, at),
            category=_categories(features, at),
            match=torch.ones(candidates, len(features.match)),
            fields={f.name: _column(f, at) for f in features.item_fields + features.candidate_fields},
        ),
        Context(
            time_ms=START_MS + 3650 * DAY_MS + one,
            place=one,
            fields={f.name: _column(f, one) for f in features.context_fields},
        ),
    )


def _offsets(lengths: Sequence[int]) -> Tensor:
    import torch

    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(lengths).cumsum(0)])


def _items(features: FeatureSpec, at: Tensor) -> Tensor:
    first = FIRST_KNOWN if features.num_items > FIRST_KNOWN else UNKNOWN
    return first + at % max(features.num_items - first, 1)


def _categories(features: FeatureSpec, at: Tensor) -> Tensor:
    import torch

    if not features.categories:
        return torch.zeros((len(at), 0), dtype=torch.int64)
    return torch.stack([at % level.size for level in features.categories], 1)


def _column(field: Field, at: Tensor) -> Tensor:
    import torch

    if field.kind == "categorical":
        return at % field.size
    if field.kind == "multi":
        return (at % field.size)[:, None].repeat(1, field.width)
    shape = (len(at),) if field.kind == "numeric" else (len(at), field.width)
    return torch.full(shape, field.mean, dtype=torch.float32)


__all__ = ["invented_history", "invented_request"]
