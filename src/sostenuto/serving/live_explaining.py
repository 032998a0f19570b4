"""Explanations of a running service: `/v1/explain` for what a store holds of a user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from sostenuto.features.assembly import Asked, offsets_of
from sostenuto.schema.features import FIRST_KNOWN, UNKNOWN
from sostenuto.serving.explaining import Reasons, explain_by_deletion
from sostenuto.serving.scoring import Question, Stopwatch
from sostenuto.serving.service import CarriedBy, ExplainAnswer, Explained, Served

if TYPE_CHECKING:
    from sostenuto.serving.live_model import LiveModel
    from sostenuto.serving.scoring import Scorer
    from sostenuto.serving.service import ExplainRequest

Array = npt.NDArray[Any]


class LiveExplainer:
    """Explains the scores of a scorer. It reads the whole history for every request: nothing of it is kept."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def explain(self, request: ExplainRequest, *, arm: Literal["main", "canary", "forced"] = "main") -> ExplainAnswer:
        """Name the behaviours that carry the scores of a few items.

        Raises:
            RequestError: a field that the model does not have, or a value that does not fit its kind.
        """
        watch = Stopwatch()
        model = self.scorer.model
        bundle = model.bundle
        asked = self.scorer.request(
            Question(
                user_id=request.user_id,
                time_ms=request.time_ms,
                items=request.items,
                place=request.place,
                candidate_fields=request.candidate_fields,
                context=request.context,
            )
        )
        watch.lap("features")
        stored = model.store.history(request.user_id, before_ms=request.time_ms)
        seen = _Seen(model, *model.past_columns(stored), asked)
        watch.lap("store")
        logits = seen.logits([np.arange(len(seen.item))], np.arange(len(asked.item)))[0]
        reasons = explain_by_deletion(seen.logits, seen.item, seen.time_ms, asked.item, logits, bundle.item_category)
        watch.lap("score")
        items = [
            self._explained(item_id, index, score, why)
            for item_id, index, score, why in zip(
                request.items, asked.item.tolist(), logits.tolist(), reasons, strict=True
            )
        ]
        return ExplainAnswer(
            items=items,
            served=Served(
                model=bundle.name,
                version=bundle.version,
                arm=arm,
                history_length=len(seen.item),
                newest_ms=int(seen.time_ms[-1]) if len(seen.time_ms) else None,
                revision=0 if stored is None else stored.revision,
                state="encoded" if len(seen.item) else "cold",
                unknown_candidates=int((asked.item == UNKNOWN).sum()),
                stage_s=watch.stage_s,
            ),
        )

    def _explained(self, item_id: str, item: int, score: float, why: Reasons) -> Explained:
        bundle = self.scorer.model.bundle
        return Explained(
            item_id=item_id,
            label=bundle.label(item) if item >= FIRST_KNOWN else item_id,
            score=score,
            reasons=[
                CarriedBy(
                    item_id=bundle.vocabularies["item"].ids[one.item],
                    label=bundle.label(one.item),
                    count=one.count,
                    last_time_ms=one.last_time_ms,
                    drop=one.drop,
                )
                for one in why.carriers
            ],
            joint_drop=why.joint_drop,
        )


class _Seen:
    """What a ranker sees of one user at one moment, to be asked about with behaviours taken out."""

    def __init__(
        self, model: LiveModel, columns: Mapping[str, Array], fields: Mapping[str, Array], asked: Asked
    ) -> None:
        self._assembler, self._ranker = model.assembler, model.ranker
        self._columns, self._fields, self._asked = columns, fields, asked
        self.item, self.time_ms = columns["item"], columns["time_ms"]

    def logits(self, versions: Sequence[Array], candidates: Array) -> Array:
        """Return (V, C) float64 of versions of the past and candidates, both given by position."""
        import torch

        rows = np.concatenate(versions)
        offsets = offsets_of(np.array([len(one) for one in versions]))
        with torch.inference_mode():
            batch = self._assembler.batch(
                offsets,
                {name: column[rows] for name, column in self._columns.items()},
                {name: column[rows] for name, column in self._fields.items()},
                self._tiled(len(versions), candidates),
            )
            output = self._ranker.score(self._ranker.encode(batch.histories), batch.candidates, batch.context)
        return np.asarray(output.logits.numpy(force=True), np.float64).reshape(len(versions), len(candidates))

    def _tiled(self, versions: int, candidates: Array) -> Asked:
        asked = self._asked
        positions = np.tile(candidates, versions)
        return Asked(
            offsets=np.arange(versions + 1, dtype=np.int64) * len(candidates),
            item=asked.item[positions],
            candidate_fields={name: column[positions] for name, column in asked.candidate_fields.items()},
            user=np.repeat(asked.user, versions),
            time_ms=np.repeat(asked.time_ms, versions),
            place=np.repeat(asked.place, versions),
            context_fields={name: np.repeat(column, versions, axis=0) for name, column in asked.context_fields.items()},
            about=None if asked.about is None else asked.about.part(positions),
        )


__all__ = ["LiveExplainer"]
