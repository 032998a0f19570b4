"""Gradient-boosted trees on hand-made features: the bar that a network has to beat.

LightGBM (Ke et al., NeurIPS 2017), binary log loss, so that the logit is calibrated by construction. Numbers go in as
they are (missing stays missing), small categories as categories. The number of trees is the one with the best log
loss on validation, and so is the trial of a short grid over size of the trees and smallest leaf.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.baselines.design_matrix import (
    check_names,
    design_columns,
    design_matrix,
    matrix_bytes,
    positive_share,
    read_batches,
    write_names,
)
from sostenuto.schema.errors import MissingExtra, RunError, SpecError
from sostenuto.schema.histories import RankerOutput

if TYPE_CHECKING:
    from torch import Tensor

    from sostenuto.schema.features import FeatureSpec
    from sostenuto.schema.histories import Candidates, Context, History, RequestBatch

Array = npt.NDArray[Any]

SAMPLED_ROWS = 200_000  # LightGBM chooses bins from so many rows


@dataclass(frozen=True, kw_only=True, slots=True)
class TreesConfig:
    """Boosting and its grid; every pair of `leaves_grid` and `min_leaf_grid` is one trial."""

    leaves_grid: tuple[int, ...] = (15, 63)  # leaves of a tree
    min_leaf_grid: tuple[int, ...] = (100,)  # fewest candidates in a leaf
    learning_rate: float = 0.05
    max_trees: int = 1_000
    patience: int = 30  # trees in a row without a better validation log loss
    column_share: float = 0.7  # columns drawn for each tree
    row_share: float = 0.8  # candidates drawn for each tree
    l2: float = 5.0  # ridge on leaf values
    max_codes: int = 512  # larger categories are left out
    threads: int = 0  # 0 = as OpenMP decides
    seed: int = 0  # draws rows and columns

    def __post_init__(self) -> None:
        for name in ("leaves_grid", "min_leaf_grid"):
            if not getattr(self, name) or min(getattr(self, name)) < 2:
                raise SpecError(f"TreesConfig.{name} must hold numbers of at least 2, got {getattr(self, name)}")
        for name in ("max_trees", "patience"):
            if getattr(self, name) < 1:
                raise SpecError(f"TreesConfig.{name} must be at least 1, got {getattr(self, name)}; raise it")
        for name in ("column_share", "row_share", "learning_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise SpecError(f"TreesConfig.{name} must be in (0, 1], got {getattr(self, name)}; 0.8 is usual")


class Trees:
    """Boosted trees behind the contract."""

    def __init__(self, config: TreesConfig, features: FeatureSpec) -> None:
        self.config = config
        self.columns = design_columns(features, max_codes=config.max_codes)
        self._booster: Any = None

    def encode(self, histories: History) -> Tensor:
        """Return (B,) lengths: what the features need of the history comes as match features."""
        return histories.lengths

    def append(self, state: Tensor, events: History) -> Tensor:
        """Fold later events in."""
        return state + events.lengths

    def score(self, state: Tensor, candidates: Candidates, context: Context) -> RankerOutput:
        """Return the sum of the leaves as logits."""
        import torch

        if self._booster is None:
            raise RunError("trees must be fitted before they score, they are not; call fit or load")
        matrix = design_matrix(self.columns, state, candidates, context)
        logits = np.zeros(0)
        if len(matrix):
            logits = self._booster.predict(matrix, raw_score=True, num_threads=self.config.threads)
        flat = torch.from_numpy(np.asarray(logits, np.float32))
        return RankerOutput(logits=flat.to(candidates.match.device))

    def fit(self, train: Iterable[RequestBatch], valid: Iterable[RequestBatch]) -> dict[str, float]:
        """Boost every trial of the grid and keep the one with the best validation log loss."""
        lightgbm = import_lightgbm()
        config = self.config
        matrices, labels = read_batches(self.columns, train, split="train")
        valid_matrices, valid_labels = read_batches(self.columns, valid, split="valid")
        positive_share(labels)
        codes = [at for at, column in enumerate(self.columns) if column.is_categorical]
        shared = {
            "objective": "binary",
            "metric": "binary_logloss",
            "learning_rate": config.learning_rate,
            "feature_fraction": config.column_share,
            "bagging_fraction": config.row_share,
            "bagging_freq": 1,
            "lambda_l2": config.l2,
            "num_threads": config.threads,
            "seed": config.seed,
            "deterministic": True,
            "force_row_wise": True,
            "feature_pre_filter": False,  # the trials share one binned data set
            "verbosity": -1,
        }
        data = lightgbm.Dataset(matrices, np.concatenate(labels), categorical_feature=codes, params=shared)
        held_out = data.create_valid(valid_matrices, np.concatenate(valid_labels))
        best: tuple[float, Any, int, int] | None = None
        for leaves in config.leaves_grid:
            for min_leaf in config.min_leaf_grid:
                booster = lightgbm.train(
                    shared | {"num_leaves": leaves, "min_data_in_leaf": min_leaf},
                    data,
                    num_boost_round=config.max_trees,
                    valid_sets=[held_out],
                    callbacks=[lightgbm.early_stopping(config.patience, verbose=False)],
                )
                loss = booster.best_score["valid_0"]["binary_logloss"]
                if best is None or loss < best[0]:
                    best = (loss, booster, leaves, min_leaf)
        assert best is not None
        loss, booster, leaves, min_leaf = best
        text = booster.model_to_string(num_iteration=booster.best_iteration)
        self._booster = lightgbm.Booster(model_str=text)  # what is saved is what scores
        return {
            "valid_logloss": float(loss),
            "trees": float(self._booster.num_trees()),
            "leaves": float(leaves),
            "min_leaf": float(min_leaf),
            "columns": float(len(self.columns)),
            "trials": float(len(config.leaves_grid) * len(config.min_leaf_grid)),
        }

    def fit_bytes(self, train_rows: int, valid_rows: int) -> int:
        """Return the bytes that `fit` holds at most, for a memory plan made before it.

        The matrices and labels; then LightGBM's sample for choosing bins (value and row of the values that are not
        0, taken as 7 of 10), its bins (a byte a value, and once more by row for training), scores and gradients.
        """
        import_lightgbm()  # what the library itself takes is then part of the process, not of the fit
        columns, rows = len(self.columns), train_rows + valid_rows
        sample = int(min(train_rows, SAMPLED_ROWS) * columns * 12 * 0.7)
        bins = rows * columns
        boosting = train_rows * columns + train_rows * 40 + valid_rows * 16
        return matrix_bytes(columns, rows) + bins + max(sample, boosting)

    def save(self, folder: Path) -> None:
        """Write LightGBM's text format and the column names."""
        if self._booster is None:
            raise RunError("trees must be fitted before they are saved, they are not; call fit")
        write_names(folder, [column.name for column in self.columns])
        (folder / "trees.txt").write_text(self._booster.model_to_string(), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; refuse another set of columns."""
        lightgbm = import_lightgbm()
        check_names(folder, [column.name for column in self.columns])
        self._booster = lightgbm.Booster(model_str=(folder / "trees.txt").read_text(encoding="utf-8"))

    def gains(self) -> dict[str, float]:
        """Return the share of the total gain that each column brought, strongest first."""
        if self._booster is None:
            raise RunError("trees must be fitted before they have gains, they are not; call fit or load")
        gain = self._booster.feature_importance("gain")
        order = np.argsort(-gain)
        return {self.columns[n].name: float(gain[n] / max(gain.sum(), 1e-12)) for n in order}


def import_lightgbm() -> Any:
    """Return the module, or say which extra to install."""
    try:
        import lightgbm
    except ImportError as error:
        raise MissingExtra("trees need LightGBM, it is not installed; run `pip install 'sostenuto[trees]'`") from error
    return lightgbm


__all__ = ["Trees", "TreesConfig", "import_lightgbm"]
