"""DeepCTR-Torch on the generated data: its DIN, its `fit` and `predict` over matrices. Runs in a venv of its own.

    deepctr-venv/bin/python benchmarks/peers/deepctr_driver.py train DATA

`train` measures samples/s and peak memory over as many samples as the window can use up; `quality` trains one epoch on
all of them and scores the test samples; `score` ranks candidates of one user, the history copied into every row. The
last line of the output is JSON. Everything is as the package has it: it knows no clipping of gradients, and ids pass
through float32.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

from matrices import candidate_rows, manifest_of, matrices, size_of, window_samples
from measuring import Window, auc, logloss, peak_mb, print_result, timed_calls
from settings import ATTENTION_UNITS, EMBEDDING, EMBEDDING_STD, TOWER_UNITS, Given, parse

BATCHES = "deepctr_torch.models.basemodel"  # where `fit` takes its DataLoader from


def build(given: Given) -> Any:
    """Return its model with the sizes of `settings.py`; whatever is not named keeps the package's default."""
    import torch
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DIN

    manifest = manifest_of(given.data)
    columns: list[Any] = []
    for name, rows in (("item", manifest["item_rows"]), ("category", manifest["category_rows"])):
        columns.append(SparseFeat(name, rows, embedding_dim=EMBEDDING))
        behaviours = SparseFeat(f"hist_{name}", rows, embedding_dim=EMBEDDING, embedding_name=name)
        columns.append(VarLenSparseFeat(behaviours, maxlen=manifest["length"], length_name="length"))
    model = DIN(
        columns,
        ["item", "category"],
        dnn_hidden_units=TOWER_UNITS,
        att_hidden_size=(ATTENTION_UNITS,),
        att_activation="relu",
        l2_reg_embedding=0.0,
        init_std=EMBEDDING_STD,
        seed=given.seed,
    )
    model.compile(torch.optim.Adam(model.parameters(), lr=given.learning_rate), "binary_crossentropy")
    return model


def fit(model: Any, made: dict[str, Any], batch: int, batches: Callable[..., Any]) -> None:
    """Run one epoch of its `fit`, over the loader that `batches` makes in place of torch's."""
    importlib.import_module(BATCHES).DataLoader = batches  # type: ignore[attr-defined]
    model.fit(made, made["label"], batch_size=batch, epochs=1, verbose=0, shuffle=True)


def train(given: Given) -> tuple[dict[str, Any], Any]:
    from torch.utils.data import DataLoader

    model = build(given)
    windows: list[Window] = []
    prepared: list[float] = []

    def batches(**wanted: Any) -> Window:
        prepared.append(time.perf_counter() - started)  # `fit` has joined the columns
        windows.append(Window(DataLoader(**wanted), given, batch_samples=given.batch))
        return windows[-1]

    started = time.perf_counter()
    made = matrices(given.data, "train", given.shape, samples=window_samples(given))
    fit(model, made, given.batch, batches)
    facts = {"prepare_s": prepared[0], "prepared_samples": len(made["label"]), "bytes_per_sample": size_of(made)}
    return windows[0].result() | {"peak_mb": peak_mb()} | facts, model


def quality(given: Given) -> tuple[dict[str, Any], Any]:
    from torch.utils.data import DataLoader

    model = build(given)
    prepared: list[float] = []

    def batches(**wanted: Any) -> DataLoader[Any]:
        prepared.append(time.perf_counter() - started)
        return DataLoader(**wanted)

    started = time.perf_counter()
    made = matrices(given.data, "train", given.shape)
    facts = {"prepared_samples": len(made["label"]), "bytes_per_sample": size_of(made)}
    fit(model, made, given.batch, batches)
    seconds = time.perf_counter() - started - prepared[0]
    peak = peak_mb()
    importlib.import_module(BATCHES).DataLoader = DataLoader  # type: ignore[attr-defined]
    made = matrices(given.data, "test", given.shape)
    probability = model.predict(made, batch_size=given.batch)[:, 0]
    label = made["label"]
    facts |= {"auc": auc(label, probability), "logloss": logloss(label, probability), "epoch_s": seconds}
    return facts | {"peak_mb": peak, "prepare_s": prepared[0]}, model


def score(given: Given) -> tuple[dict[str, Any], Any]:
    """Time candidates of the user with the longest history: its `predict`, which joins the columns and scores."""
    model = build(given)
    rows = candidate_rows(given.data, given.shape, given.candidates)

    def call() -> object:
        return model.predict(dict(rows), batch_size=given.candidates)

    return timed_calls(call, seconds=given.seconds) | {"history": rows["hist_item"].shape[1]}, model


def refuse(*_: object, **__: object) -> None:
    """Stand in for the request that the package makes when it is imported, to ask for its newest version."""
    raise OSError("no network in a measurement")


def main() -> None:
    given = parse(__doc__, tasks=("train", "quality", "score"), models=("din",))
    import torch

    torch.set_num_threads(given.threads)
    importlib.import_module("requests").get = refuse  # type: ignore[attr-defined]
    importlib.import_module("deepctr_torch.models")  # before the clock starts
    numbers, model = {"train": train, "quality": quality, "score": score}[given.task](given)
    versions = {name: importlib.metadata.version(name) for name in ("deepctr-torch", "torch", "numpy")}
    print_result(numbers, system="DeepCTR-Torch", versions=versions, tower_in=model.dnn.linears[0].in_features)


if __name__ == "__main__":
    main()
