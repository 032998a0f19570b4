"""Logistic regression on hand-made features, with a few products of them.

No paper. Columns are standardised with the mean and deviation of the training candidates; small categories are
one-hot; products of a short list of strong columns are added, since what is constant within a request (the length of
the history, say) can only change an order through a product. Fitted by Newton steps to convergence, so there is no
learning rate and no seed; the strength of the ridge is the one of a grid with the best log loss on validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from sostenuto.baselines.design_matrix import (
    LENGTH,
    Column,
    check_names,
    design_columns,
    design_matrix,
    matrix_bytes,
    positive_share,
    read_batches,
    write_names,
)
from sostenuto.schema.errors import RunError, SpecError
from sostenuto.schema.features import PADDING
from sostenuto.schema.histories import RankerOutput

if TYPE_CHECKING:
    from torch import Tensor

    from sostenuto.schema.features import FeatureSpec
    from sostenuto.schema.histories import Candidates, Context, History, RequestBatch

Array = npt.NDArray[Any]

BLOCK_ROWS = 16_384  # rows expanded at once: bounds memory, keeps the block in cache
CONVERGED = 1e-7  # relative fall of the objective in one step below which it has converged
MAX_PASSES = 40  # over the data, for one ridge


@dataclass(frozen=True, kw_only=True, slots=True)
class LogisticConfig:
    """What is expanded and how the ridge is chosen."""

    l2_grid: tuple[float, ...] = (1e-3, 1e-4, 1e-5)  # ridge on the mean log loss; tried from strong to weak
    max_codes: int = 64  # larger categories are left out
    products: bool = True  # add the products of strong columns

    def __post_init__(self) -> None:
        if not self.l2_grid or min(self.l2_grid) <= 0:
            raise SpecError(f"LogisticConfig.l2_grid must hold positive numbers, got {self.l2_grid}; 1e-4 is usual")


class Logistic:
    """Ridge logistic regression behind the contract."""

    def __init__(self, config: LogisticConfig, features: FeatureSpec) -> None:
        self.config = config
        self.columns = design_columns(features, max_codes=config.max_codes)
        self.num_numeric = sum(not column.is_categorical for column in self.columns)
        strong = strong_columns(self.columns, features) if config.products else ()
        self.crossed = tuple((a, b) for a in strong for b in strong if a <= b)
        self.gapped = tuple((a, b) for b in self._optional(features) for a in strong)
        self.mean = np.zeros(self.num_numeric)
        self.scale = np.ones(self.num_numeric)
        self.weight: Array | None = None  # the last entry is the intercept

    def encode(self, histories: History) -> Tensor:
        """Return (B,) lengths: what the features need of the history comes as match features."""
        return histories.lengths

    def append(self, state: Tensor, events: History) -> Tensor:
        """Fold later events in."""
        return state + events.lengths

    def score(self, state: Tensor, candidates: Candidates, context: Context) -> RankerOutput:
        """Return the linear predictor as logits."""
        import torch

        if self.weight is None:
            raise RunError("logistic must be fitted before it scores, it is not; call fit or load")
        matrix = design_matrix(self.columns, state, candidates, context)
        # float64: a row's sum must not depend on how many rows stand beside it
        starts = range(0, len(matrix), BLOCK_ROWS)
        logits = [self._expanded(matrix[at : at + BLOCK_ROWS], np.float64) @ self.weight for at in starts]
        flat = np.concatenate([np.zeros(0), *logits]).astype(np.float32)
        return RankerOutput(logits=torch.from_numpy(flat).to(candidates.match.device))

    def fit(self, train: Iterable[RequestBatch], valid: Iterable[RequestBatch]) -> dict[str, float]:
        """Fit for every ridge of the grid and keep the one with the best validation log loss."""
        matrices, labels = read_batches(self.columns, train, split="train")
        valid_matrices, valid_labels = read_batches(self.columns, valid, split="valid")
        positives = positive_share(labels)
        self.mean, self.scale = moments([m[:, : self.num_numeric] for m in matrices])
        weight = np.zeros(len(self.names()))
        weight[-1] = np.log(positives / (1 - positives))
        best, best_l2, chosen, passes = np.inf, 0.0, weight, 0
        for l2 in sorted(self.config.l2_grid, reverse=True):  # each starts where the stronger one ended
            weight, taken = self._newton(matrices, labels, weight, l2)
            passes += taken
            loss = self._loss(valid_matrices, valid_labels, weight)
            if loss < best:
                best, best_l2, chosen = loss, l2, weight
        self.weight = chosen
        return {
            "l2": best_l2,
            "valid_logloss": best,
            "passes": float(passes),
            "columns": float(len(chosen)),
            "trials": float(len(self.config.l2_grid)),
        }

    def fit_bytes(self, train_rows: int, valid_rows: int) -> int:
        """Return the bytes that `fit` holds at most, for a memory plan made before it.

        The matrices and labels, and one expanded block: its parts, the joined block and the scaled one, float32.
        """
        block = min(BLOCK_ROWS, max(train_rows, valid_rows)) * len(self.names()) * 4 * 3
        return matrix_bytes(len(self.columns), train_rows + valid_rows) + block

    def save(self, folder: Path) -> None:
        """Write weights and moments as safetensors, column names as JSON."""
        from safetensors.numpy import save_file

        if self.weight is None:
            raise RunError("logistic must be fitted before it is saved, it is not; call fit")
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"mean": self.mean, "scale": self.scale, "weight": self.weight}
        save_file(
            {name: np.ascontiguousarray(array, np.float64) for name, array in arrays.items()},
            folder / "weights.safetensors",
        )
        write_names(folder, self.names())

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; refuse another set of columns."""
        from safetensors.numpy import load_file

        check_names(folder, self.names())
        arrays = load_file(folder / "weights.safetensors")
        self.mean, self.scale, self.weight = arrays["mean"], arrays["scale"], arrays["weight"]

    def _optional(self, features: FeatureSpec) -> tuple[int, ...]:
        """Return the categorical columns of the candidate that may be missing: a candidate of another list, say."""
        names = {f.name for f in features.candidate_fields}
        return tuple(n for n, c in enumerate(self.columns) if c.is_categorical and c.name in names)

    def names(self) -> list[str]:
        """Return the name of every weight, the intercept last: for reading a fitted model."""
        numeric = [column.name for column in self.columns[: self.num_numeric]]
        products = [f"{numeric[a]} * {numeric[b]}" for a, b in self.crossed]
        products += [f"{numeric[a]} * no {self.columns[b].name}" for a, b in self.gapped]
        codes = [f"{c.name} = {code}" for c in self.columns[self.num_numeric :] for code in range(c.size)]
        return [*numeric, *products, *codes, "intercept"]

    def _expanded(self, block: Array, dtype: type) -> Array:
        """Return (n, number of weights): standardised numbers, products, one-hot codes, 1; columns as in `names`.

        Built column by column, so it lies column-major in memory.
        """
        out: Array = np.empty((len(self.names()), len(block)), dtype)
        columns = np.ascontiguousarray(block.T)
        numbers = out[: self.num_numeric]
        np.subtract(columns[: self.num_numeric], self.mean[:, None], out=numbers, casting="same_kind")
        numbers /= self.scale[:, None].astype(dtype)
        np.nan_to_num(numbers, copy=False, nan=0.0)
        at = self.num_numeric
        for left, right in self.crossed:
            np.multiply(numbers[left], numbers[right], out=out[at])
            at += 1
        for left, gap in self.gapped:
            np.multiply(numbers[left], columns[gap] == PADDING, out=out[at])
            at += 1
        for n, column in enumerate(self.columns[self.num_numeric :], self.num_numeric):
            out[at : at + column.size] = columns[n] == np.arange(column.size)[:, None]
            at += column.size
        out[at] = 1.0
        return out.T

    def _newton(self, matrices: list[Array], labels: list[Array], weight: Array, l2: float) -> tuple[Array, int]:
        """Minimise mean log loss + l2 / 2 * |weight|^2, the intercept free; return the weight and the passes taken."""
        penalty = np.full(len(weight), l2)
        penalty[-1] = 1e-9  # free, but the intercept and a whole one-hot set are collinear
        here = self._curvature(matrices, labels, weight, penalty)
        passes, length = 1, 1.0
        while passes < MAX_PASSES and length > 1e-3:
            objective, gradient, hessian = here
            trial = weight - length * np.linalg.solve(hessian, gradient)
            new = self._curvature(matrices, labels, trial, penalty)
            passes += 1
            if not new[0] < objective:
                length /= 4
                continue
            weight, here, length = trial, new, 1.0
            if objective - new[0] <= CONVERGED * objective:
                break
        return weight, passes

    def _curvature(
        self, matrices: list[Array], labels: list[Array], weight: Array, penalty: Array
    ) -> tuple[float, Array, Array]:
        """Return objective, gradient and Hessian at `weight`, in one pass over the data."""
        loss, gradient = 0.0, np.zeros(len(weight))
        hessian = np.zeros((len(weight), len(weight)))
        for x, y in self._blocks(matrices, labels):
            logit = x @ weight.astype(np.float32)
            p = expit(logit)  # float32, like x: its noise is far below that of the labels
            loss += float(np.sum(np.logaddexp(0.0, logit) - y * logit, dtype=np.float64))
            gradient += (p - y) @ x
            scaled = x * np.sqrt(p * (1 - p))[:, None]
            hessian += scaled.T @ scaled
        count = sum(map(len, labels))
        ridge = 0.5 * float(penalty @ weight**2)
        return loss / count + ridge, gradient / count + penalty * weight, hessian / count + np.diag(penalty)

    def _loss(self, matrices: list[Array], labels: list[Array], weight: Array) -> float:
        total = 0.0
        for x, y in self._blocks(matrices, labels):
            logit = x @ weight
            total += float(np.sum(np.logaddexp(0.0, logit) - y * logit))
        return total / sum(map(len, labels))

    def _blocks(self, matrices: list[Array], labels: list[Array]) -> Iterator[tuple[Array, Array]]:
        for matrix, label in zip(matrices, labels, strict=True):
            for at in range(0, len(matrix), BLOCK_ROWS):
                x = self._expanded(matrix[at : at + BLOCK_ROWS], np.float32)
                yield x, label[at : at + BLOCK_ROWS].astype(np.float32)


def strong_columns(columns: tuple[Column, ...], features: FeatureSpec) -> tuple[int, ...]:
    """Return the numeric columns whose products are added.

    Counts, decayed counts, recency and share of the item and of its finest category, the popularities, and the length
    of the history.
    """
    levels = ["item", *(level.name for level in features.categories[-1:])]
    strong = {
        f"{level}.{name}" for level in levels for name in ("count", "decayed_7d", "decayed_28d", "recency", "share")
    }
    strong |= {f.name for f in features.candidate_fields if f.kind == "numeric" and f.name.startswith("popularity")}
    return tuple(n for n, column in enumerate(columns) if column.name in strong | {LENGTH})


def moments(matrices: list[Array]) -> tuple[Array, Array]:
    """Return mean and deviation of every column over all matrices, missing values left out; a constant has scale 1."""
    count = sum(np.isfinite(m).sum(0) for m in matrices)
    mean = sum(np.nansum(m, axis=0, dtype=np.float64) for m in matrices) / np.maximum(count, 1)
    square = sum(np.nansum((m - mean) ** 2, axis=0) for m in matrices) / np.maximum(count, 1)
    return mean, np.where(square > 1e-12, np.sqrt(square), 1.0)


__all__ = ["Logistic", "LogisticConfig", "moments", "strong_columns"]
