"""Hand-made features as one matrix: what the rules, the logistic regression and the trees see of a request.

A row is a candidate. Columns are the match features, the numbers of candidate, item and request, the length of the
history, and then the codes of small categories. Item and user identity are left out on purpose: whatever a baseline
knows of them went through counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from sostenuto.schema.errors import DataError, RunError, SpecError, did_you_mean
from sostenuto.schema.features import FeatureSpec, Field

if TYPE_CHECKING:
    from torch import Tensor

    from sostenuto.schema.histories import Candidates, Context, RequestBatch

Array = npt.NDArray[Any]

LENGTH = "user.length"  # log1p of the behaviours that the ranker sees; also a match feature


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of the matrix and where it is read from."""

    name: str
    source: Literal["match", "length", "candidate", "category", "context"]
    at: int = 0  # column of `match` or `category`
    size: int = 0  # codes of a categorical column; 0 = numeric

    @property
    def is_categorical(self) -> bool:
        """True when the values are codes without order."""
        return self.size > 0


def design_columns(features: FeatureSpec, *, max_codes: int) -> tuple[Column, ...]:
    """Return the columns of the matrix, numeric ones first.

    Args:
        features:   as handed to the ranker.
        max_codes:  categorical fields and category levels with more codes than this are left out.
    """
    numeric = [Column(name=name, source="match", at=at) for at, name in enumerate(features.match)]
    if LENGTH not in features.match:
        numeric.append(Column(name=LENGTH, source="length"))
    codes = [
        Column(name=f"category.{level.name}", source="category", at=at, size=level.size)
        for at, level in enumerate(features.categories)
    ]
    sources: tuple[tuple[Literal["candidate", "context"], tuple[Field, ...]], ...] = (
        ("candidate", features.candidate_fields + features.item_fields),
        ("context", features.context_fields),
    )
    for source, fields in sources:
        for f in fields:
            if f.kind == "numeric":
                numeric.append(Column(name=f.name, source=source))
            elif f.kind == "categorical":
                codes.append(Column(name=f.name, source=source, size=f.size))
    return (*numeric, *(column for column in codes if column.size <= max_codes))


def design_matrix(columns: tuple[Column, ...], length: Tensor, candidates: Candidates, context: Context) -> Array:
    """Return the (N, P) float32 matrix of N candidates; missing numbers are NaN, missing codes 0.

    Args:
        columns:  from `design_columns`.
        length:   (B,) behaviours per request row.
    """
    row = candidates.row.cpu().numpy()
    matrix = np.empty((len(row), len(columns)), np.float32)
    match = candidates.match.cpu().numpy()
    for at, column in enumerate(columns):
        if column.source == "match":
            matrix[:, at] = match[:, column.at]
        elif column.source == "length":
            matrix[:, at] = np.log1p(length.cpu().numpy())[row]
        elif column.source == "category":
            matrix[:, at] = candidates.category[:, column.at].cpu().numpy()
        elif column.source == "candidate":
            matrix[:, at] = candidates.fields[column.name].cpu().numpy()
        else:
            matrix[:, at] = context.fields[column.name].cpu().numpy()[row]
    return matrix


def read_batches(
    columns: tuple[Column, ...], batches: Iterable[RequestBatch], *, split: str
) -> tuple[list[Array], list[Array]]:
    """Return the matrix (n, P) and the labels (n,) of every batch; refuse a split without candidates."""
    matrices, labels = [], []
    for batch in batches:
        if len(batch.labels):
            matrices.append(design_matrix(columns, batch.histories.lengths, batch.candidates, batch.context))
            labels.append(batch.labels.cpu().numpy().astype(np.float64))
    if not labels:
        raise DataError(f"{split} batches must hold at least one candidate, they hold none; raise the budget")
    return matrices, labels


def matrix_bytes(columns: int, rows: int) -> int:
    """Return the bytes of the matrices and labels of `rows` candidates; labels also stand joined."""
    return rows * (columns * 4 + 8 + 8)


def positive_share(labels: list[Array]) -> float:
    """Return the mean training label; refuse labels that are all the same."""
    share = float(np.concatenate(labels).mean())
    if not 0 < share < 1:
        raise DataError(f"training labels must hold both 0 and 1, all are {share:g}; check the label column")
    return share


def write_names(folder: Path, names: Sequence[str]) -> None:
    """Write the names of a fitted model's columns as `columns.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "columns.json").write_text(json.dumps(list(names), indent=2) + "\n", encoding="utf-8")


def check_names(folder: Path, names: Sequence[str]) -> None:
    """Refuse a fitted model whose columns are not these."""
    path = folder / "columns.json"
    if not path.is_file():
        raise RunError(f"fitted folder must hold columns.json, {folder} does not; train it again")
    if json.loads(path.read_text(encoding="utf-8")) != list(names):
        raise RunError(f"{path} must name the columns of these features, it names others; train it again")


def candidate_number(features: FeatureSpec, name: str, *, asked_by: str) -> Field:
    """Return the numeric candidate field `name`; a ranker that lives by it refuses data without it."""
    for f in features.candidate_fields:
        if f.name == name and f.kind == "numeric":
            return f
    known = [f.name for f in features.candidate_fields if f.kind == "numeric"]
    raise SpecError(
        f"{asked_by} needs the numeric candidate field {name!r}, the features have {', '.join(known) or 'none'}; "
        f"build it with the features of a HistoryView.{did_you_mean(name, known)}"
    )


def match_column(features: FeatureSpec, name: str, *, asked_by: str) -> int:
    """Return the column of the match feature `name`; a ranker that lives by it refuses data without it."""
    if name not in features.match:
        raise SpecError(
            f"{asked_by} needs the match feature {name!r}, the features have "
            f"{'others' if features.match else 'none'}; take a view with match=true"
        )
    return features.match.index(name)


__all__ = [
    "LENGTH",
    "Column",
    "candidate_number",
    "check_names",
    "design_columns",
    "design_matrix",
    "match_column",
    "matrix_bytes",
    "positive_share",
    "read_batches",
    "write_names",
]
