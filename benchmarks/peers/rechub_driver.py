"""torch-rechub on the generated data: its DIN, its data generator and trainer over matrices. Runs in a venv of its own.

    rechub-venv/bin/python benchmarks/peers/rechub_driver.py train DATA

`train` measures samples/s and peak memory over as many samples as the window can use up; `quality` trains one epoch on
all of them and scores the test samples; `score` ranks candidates of one user, the history copied into every row. The
last line of the output is JSON. Everything is as the package has it: one activation unit for each field, batch
normalisation in unit and tower, Dice in the tower, no mask but the zero row of the padding, a constant feature because
it wants one beside target and history, no clipping of gradients.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import time
from typing import Any

import numpy as np
from matrices import candidate_rows, manifest_of, matrices, size_of, window_samples
from measuring import Window, auc, logloss, peak_mb, print_result, timed_calls
from settings import ATTENTION_UNITS, EMBEDDING, EMBEDDING_STD, TOWER_UNITS, Given, parse

COLUMNS = ("item", "category", "hist_item", "hist_category")
CONSTANT = "constant"  # its DIN wants a feature beside target and history: this one is always 0, one number wide


def build(given: Given) -> Any:
    """Return its trainer around its model with the sizes of `settings.py`; the rest keeps the package's default."""
    import torch
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.basic.initializers import RandomNormal
    from torch_rechub.models.ranking import DIN
    from torch_rechub.trainers import CTRTrainer

    torch.manual_seed(given.seed)
    manifest = manifest_of(given.data)
    targets, histories = [], []
    for name, rows in (("item", manifest["item_rows"]), ("category", manifest["category_rows"])):
        table = {"vocab_size": rows, "embed_dim": EMBEDDING, "padding_idx": 0}
        targets.append(SparseFeature(name, **table, initializer=RandomNormal(0.0, EMBEDDING_STD)))
        histories.append(SequenceFeature(f"hist_{name}", **table, pooling="concat", shared_with=name))
    unit = {"dims": [ATTENTION_UNITS], "activation": "relu", "use_softmax": False}
    constant = SparseFeature(CONSTANT, vocab_size=1, embed_dim=1)
    model = DIN([constant], histories, targets, mlp_params={"dims": list(TOWER_UNITS)}, attention_mlp_params=unit)
    return CTRTrainer(model, optimizer_params={"lr": given.learning_rate, "weight_decay": 0.0}, n_epoch=1)


def batches(made: dict[str, Any], batch: int, *, train: bool) -> Any:
    """Return its loader over the matrices: shuffled for training, in order for the rest."""
    from torch_rechub.utils.data import DataGenerator

    columns, label = {name: made[name] for name in COLUMNS}, made["label"]
    columns[CONSTANT] = np.zeros(len(label), np.int32)
    few = {name: column[:1] for name, column in columns.items()}  # it makes three loaders at once
    generator = DataGenerator(columns, label)
    loaders = generator.generate_dataloader(
        x_val=few, y_val=label[:1], x_test=columns, y_test=label, batch_size=batch, num_workers=0
    )
    return loaders[0 if train else 2]


def train(given: Given) -> tuple[dict[str, Any], Any]:
    trainer = build(given)
    started = time.perf_counter()
    made = matrices(given.data, "train", given.shape, samples=window_samples(given))
    window = Window(batches(made, given.batch, train=True), given, batch_samples=given.batch)
    prepared = time.perf_counter() - started
    trainer.train_one_epoch(window)
    facts = {"prepare_s": prepared, "prepared_samples": len(made["label"]), "bytes_per_sample": size_of(made)}
    return window.result() | {"peak_mb": peak_mb()} | facts, trainer.model


def quality(given: Given) -> tuple[dict[str, Any], Any]:
    trainer = build(given)
    started = time.perf_counter()
    made = matrices(given.data, "train", given.shape)
    facts = {"prepared_samples": len(made["label"]), "bytes_per_sample": size_of(made)}
    loader = batches(made, given.batch, train=True)
    prepared = time.perf_counter() - started
    trainer.train_one_epoch(loader)
    seconds = time.perf_counter() - started - prepared
    peak = peak_mb()
    made = matrices(given.data, "test", given.shape)
    probability = trainer.predict(trainer.model, batches(made, given.batch, train=False))
    label = made["label"]
    facts |= {"auc": auc(label, probability), "logloss": logloss(label, probability), "epoch_s": seconds}
    return facts | {"peak_mb": peak, "prepare_s": prepared}, trainer.model


def score(given: Given) -> tuple[dict[str, Any], Any]:
    """Time candidates of the user with the longest history: its loader, which copies the rows, and its `predict`."""
    trainer = build(given)
    rows = candidate_rows(given.data, given.shape, given.candidates)

    def call() -> object:
        return trainer.predict(trainer.model, batches(rows, given.candidates, train=False))

    return timed_calls(call, seconds=given.seconds) | {"history": rows["hist_item"].shape[1]}, trainer.model


def main() -> None:
    given = parse(__doc__, tasks=("train", "quality", "score"), models=("din",))
    import torch

    torch.set_num_threads(given.threads)
    os.environ["TQDM_DISABLE"] = "1"  # no progress bars: they would cost it time
    importlib.import_module("torch_rechub.trainers")  # before the clock starts
    numbers, model = {"train": train, "quality": quality, "score": score}[given.task](given)
    first = next(module for module in model.mlp.modules() if isinstance(module, torch.nn.Linear))
    versions = {name: importlib.metadata.version(name) for name in ("torch-rechub", "torch", "numpy")}
    print_result(numbers, system="torch-rechub", versions=versions, tower_in=first.in_features)


if __name__ == "__main__":
    main()
