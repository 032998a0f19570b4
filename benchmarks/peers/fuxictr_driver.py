"""FuxiCTR on the generated data: its LongCTR loader, models and training loop. Runs in a venv of its own.

    fuxictr-venv/bin/python benchmarks/peers/fuxictr_driver.py convert DATA
    fuxictr-venv/bin/python benchmarks/peers/fuxictr_driver.py train DATA --model din

`convert` writes the parquet files that its loader reads; `train` measures samples/s and peak memory; `quality` trains
one epoch and scores the test samples; `score` ranks candidates of one user, collating included. The last line of the
output is JSON. Everything is as the package has it, with num_workers=0: one process, one thread.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from matrices import manifest_of
from measuring import Window, auc, flat_set, logloss, peak_mb, print_result, timed_calls
from settings import (
    ATTENTION_UNITS,
    EMBEDDING,
    EXACT_DIM,
    GRADIENT_NORM,
    KEPT,
    SHORT,
    TOWER_UNITS,
    Given,
    parse,
)

LOADER = "model_zoo.LongCTR.longctr_dataloader"
NAMES = {"din": "DIN", "sdim": "SDIM", "sim_soft": "SIM", "eta": "ETA", "twin": "TWIN", "dien": "DIEN"}
SETS = [("train", "single"), ("train", "shared"), ("test", "single"), ("test", "shared")]


def convert(data: Path) -> dict[str, float]:
    """Write users, items and samples as the LongCTR loader wants them; return and keep the seconds each took."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = data / "fuxictr"
    folder.mkdir(exist_ok=True)
    began = time.perf_counter()
    offsets = np.load(data / "history_offsets.npy")
    history = np.load(data / "history_item.npy", mmap_mode="r")
    sequences = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.asarray(history)))
    pq.write_table(pa.table({"full_item_seq": sequences}), folder / "users.parquet")
    category = np.load(data / "item_category.npy")
    item = np.arange(len(category))
    pq.write_table(pa.table({"item_index": item, "item": item, "category": category}), folder / "items.parquet")
    seconds = {"histories": time.perf_counter() - began}
    for split, shape in SETS:
        began = time.perf_counter()
        columns = flat_set(data, split, shape)
        # integers only: one float column would turn the loader's whole matrix, ids included, into floats
        named = {"label": "label", "user_index": "user", "item_index": "item", "seq_len": "prefix"}
        table = {there: np.asarray(columns[here], np.int64) for there, here in named.items()}
        pq.write_table(pa.table(table), folder / f"{split}_{shape}.parquet")
        seconds[f"{split}_{shape}"] = time.perf_counter() - began
    (folder / "converted.json").write_text(json.dumps(seconds), encoding="utf-8")  # last: a folder with it is whole
    return seconds


def converted(given: Given) -> float:
    """Return the seconds that it took to convert what this run trains on."""
    seconds = json.loads((given.data / "fuxictr" / "converted.json").read_text(encoding="utf-8"))
    return float(seconds["histories"] + seconds[f"train_{given.shape}"])


def feature_map(data: Path) -> Any:
    """Say what the columns are: item and category with their tables; the rest is for the loader alone."""
    from fuxictr.features import FeatureMap

    manifest = manifest_of(data)
    meta = {"type": "meta"}
    table = {"source": "item", "type": "categorical", "padding_idx": 0}
    described = FeatureMap("peers", str(data / "fuxictr"))
    described.features = OrderedDict(
        user_index=meta,
        item_index=meta,
        seq_len=meta,
        item=table | {"vocab_size": manifest["item_rows"]},
        category=table | {"vocab_size": manifest["category_rows"]},
    )
    described.labels = ["label"]
    described.default_emb_dim = EMBEDDING
    described.num_fields = 2
    return described


def loader(given: Given, described: Any, split: str, *, shuffle: bool) -> Any:
    module = importlib.import_module(LOADER)
    folder = given.data / "fuxictr"
    return module.LongCTRDataLoader(
        described,
        str(folder / f"{split}_{given.shape}.parquet"),
        str(folder / "users.parquet"),
        str(folder / "items.parquet"),
        batch_size=given.batch,
        shuffle=shuffle,
        num_workers=0,
        max_len=manifest_of(given.data)["length"],
        # DIEN packs the first `length` places of a row: with zeros in front it would read these, and not the newest
        padding="post" if given.model == "dien" else "pre",
    )


def build(given: Given, described: Any) -> Any:
    """Return its model with the sizes of `settings.py`; whatever is not named keeps the package's default."""
    from fuxictr.pytorch.torch_utils import seed_everything

    seed_everything(given.seed)
    common = {
        "embedding_dim": EMBEDDING,
        "dnn_hidden_units": list(TOWER_UNITS),
        "learning_rate": given.learning_rate,
        "optimizer": "adam",
        "loss": "binary_crossentropy",
        "metrics": ["AUC"],
        "model_root": tempfile.gettempdir(),
        "verbose": 0,
    }
    name = NAMES[given.model]
    model_class = getattr(importlib.import_module(f"model_zoo.LongCTR.{name}.{name}"), name)
    if name == "DIN":
        units = {"attention_hidden_units": [ATTENTION_UNITS], "attention_hidden_activations": "ReLU"}
        return model_class(described, **common, **units, din_use_softmax=False)
    if name == "DIEN":
        units = {"attention_hidden_units": [ATTENTION_UNITS], "attention_activation": "ReLU"}
        return model_class(described, **common, **units, attention_type="din_attention", batch_norm=False)
    common |= {"attention_dim": EXACT_DIM, "short_seq_len": SHORT}
    if name == "SDIM":
        hashes = {"num_hashes": given.signatures, "hash_bits": given.hash_bits}
        return model_class(described, **common, **hashes, l2_norm=True)
    bits = {"hash_bits": given.eta_bits} if name == "ETA" else {}
    return model_class(described, **common, **bits, topk=KEPT)


def train_epoch(model: Any, batches: Any) -> None:
    """Run its own loop over one epoch, without the evaluation and the checkpoint that `fit` puts around it."""
    model._max_gradient_norm = GRADIENT_NORM
    model._total_steps, model._eval_steps, model._stop_training = 0, 1 << 60, False
    model.train_epoch(batches)


def train(given: Given, described: Any) -> tuple[dict[str, Any], Any]:
    model = build(given, described)
    started = time.perf_counter()
    batches = loader(given, described, "train", shuffle=True)
    window = Window(batches, given, batch_samples=given.batch)
    facts = {"prepare_s": converted(given) + time.perf_counter() - started} | held(batches)
    train_epoch(model, window)
    return window.result() | {"peak_mb": peak_mb()} | facts, model


def held(batches: Any) -> dict[str, float]:
    """Return the number of samples in a loader, and the bytes of one, its share of the histories included."""
    histories = batches.collate_fn.user_info
    count = len(batches.dataset)
    total = batches.dataset.darray.nbytes + sum(history.nbytes for history in histories)
    return {"prepared_samples": count, "bytes_per_sample": total / count}


def quality(given: Given, described: Any) -> tuple[dict[str, Any], Any]:
    model = build(given, described)
    started = time.perf_counter()
    batches = loader(given, described, "train", shuffle=True)
    facts = {"prepare_s": converted(given) + time.perf_counter() - started} | held(batches)
    started = time.perf_counter()
    train_epoch(model, batches)
    facts |= {"epoch_s": time.perf_counter() - started, "peak_mb": peak_mb()}
    probability = model.predict(loader(given, described, "test", shuffle=False))
    label = flat_set(given.data, "test", given.shape)["label"]
    return facts | {"auc": auc(label, probability), "logloss": logloss(label, probability)}, model


def score(given: Given, described: Any) -> tuple[dict[str, Any], Any]:
    """Time candidates of the user with the longest history: collate, forward."""
    import torch

    model = build(given, described).eval()
    batches = loader(given, described, "test", shuffle=False)
    columns = flat_set(given.data, "test", given.shape)
    longest = int(np.argmax(columns["prefix"]))
    history = np.load(given.data / "history_offsets.npy")
    rows = np.zeros((given.candidates, batches.dataset.darray.shape[1]), np.int64)
    place = batches.dataset.column_index
    rows[:, place["user_index"]] = columns["user"][longest]
    rows[:, place["seq_len"]] = history[1] - history[0]
    rows[:, place["item_index"]] = columns["item"][: given.candidates]

    @torch.no_grad()
    def call() -> object:
        return model(batches.collate_fn(list(rows)))["y_pred"].numpy()

    return timed_calls(call, seconds=given.seconds) | {"history": int(history[1] - history[0])}, model


def main() -> None:
    given = parse(__doc__, tasks=("convert", "train", "quality", "score"))
    versions = {name: importlib.metadata.version(name) for name in ("fuxictr", "torch", "numpy", "pandas")}
    if given.task == "convert":
        print_result({"convert_s": sum(convert(given.data).values())}, system="FuxiCTR", versions=versions, tower_in=0)
        return
    import torch

    torch.set_num_threads(given.threads)
    importlib.import_module(LOADER)  # before the clock starts
    tasks = {"train": train, "quality": quality, "score": score}
    numbers, model = tasks[given.task](given, feature_map(given.data))
    first = next(module for module in model.dnn.modules() if isinstance(module, torch.nn.Linear))
    print_result(numbers, system="FuxiCTR", versions=versions, tower_in=first.in_features)


if __name__ == "__main__":
    main()
