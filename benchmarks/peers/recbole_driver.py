"""RecBole on the generated data: its DIN, data set, loaders and trainer, from atomic files. Runs in a venv of its own.

    recbole-venv/bin/python benchmarks/peers/recbole_driver.py train DATA

The samples are written as RecBole's atomic files, one line with its history each: the form it calls pre-augmented,
since its own augmentation would make a sample of every prefix instead of the ones asked for. It reads, remaps and pads
them. `train` measures samples/s and peak memory over as many samples as the window can use up; `quality` trains one
epoch on all of them and scores the test samples; `score` ranks candidates of one user, each a line. The last line of
the output is JSON.

Everything is as the package has it but for the activation unit: `DIN` gives it the layers of its tower, so it is put
in anew, from the package's own class, with the units of `settings.py` and ReLU.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matrices import manifest_of, window_samples
from measuring import Window, auc, flat_set, logloss, peak_mb, print_result, timed_calls
from settings import ATTENTION_UNITS, EMBEDDING, GRADIENT_NORM, TOWER_UNITS, Given, parse

NAME = "peers"
FEW = 2  # samples of a part that the task does not use; RecBole wants all three
HEAD = "user_id:token\titem_id:token\tlabel:float\titem_id_list:token_seq\n"


def write(given: Given, part: str, samples: dict[str, Any]) -> None:
    """Write samples as an atomic file: user, item, label and the history, oldest first."""
    history = np.load(given.data / "history_item.npy", mmap_mode="r")
    starts = np.load(given.data / "history_offsets.npy")
    rows = zip(*(samples[name].tolist() for name in ("user", "prefix", "item", "label")), strict=True)
    with (folder_of(given) / f"{NAME}.{part}.inter").open("w", encoding="utf-8") as file:
        file.write(HEAD)
        for user, prefix, item, label in rows:
            seen = history[starts[user] : starts[user] + prefix].tolist()
            file.write(f"{user}\t{item}\t{label}\t{' '.join(map(str, seen))}\n")


def folder_of(given: Given) -> Path:
    return given.data / "recbole" / NAME


def write_all(given: Given, *, train: int | None, test: dict[str, Any]) -> int:
    """Write items and the three parts; return the number of samples in them."""
    folder = folder_of(given)
    shutil.rmtree(folder.parent, ignore_errors=True)  # of a run that was ended
    folder.mkdir(parents=True)
    category = np.load(given.data / "item_category.npy").tolist()
    with (folder / f"{NAME}.item").open("w", encoding="utf-8") as file:
        file.write("item_id:token\tcategory:token\n")
        file.writelines(f"{item}\t{category[item]}\n" for item in range(2, len(category)))
    found = flat_set(given.data, "train", given.shape)
    parts = {"train": first(found, train), "valid": first(found, FEW), "test": test}
    for part, samples in parts.items():
        write(given, part, samples)
    return sum(len(samples["label"]) for samples in parts.values())


def first(samples: dict[str, Any], count: int | None) -> dict[str, Any]:
    return {name: np.asarray(column[:count]) for name, column in samples.items()}


def prepare(given: Given) -> tuple[Any, Any, Any]:
    """Let it read the atomic files; return its trainer, training loader and test loader."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.layers import SequenceAttLayer
    from recbole.model.sequential_recommender import DIN
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    wanted = {
        "data_path": str(folder_of(given).parent),
        "checkpoint_dir": str(folder_of(given).parent / "saved"),
        "benchmark_filename": ["train", "valid", "test"],
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id", "label", "item_id_list"], "item": ["item_id", "category"]},
        "MAX_ITEM_LIST_LENGTH": manifest_of(given.data)["length"],
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": None, "mode": "labeled"},
        "metrics": ["AUC", "LogLoss"],
        "valid_metric": "AUC",
        "embedding_size": EMBEDDING,
        "mlp_hidden_size": list(TOWER_UNITS),
        "learning_rate": given.learning_rate,
        "clip_grad_norm": {"max_norm": GRADIENT_NORM},
        "train_batch_size": given.batch,
        "eval_batch_size": max(given.batch, given.candidates),
        "use_gpu": False,
        "seed": given.seed,
        "state": "ERROR",
    }
    config = Config(model="DIN", dataset=NAME, config_dict=wanted)
    init_seed(given.seed, config["reproducibility"])
    found = create_dataset(config)
    config["MAX_ITEM_LIST_LENGTH"] = found.field2seqlen["item_id_list"]  # the longest there is, as the rows are padded
    train, _, test = data_preparation(config, found)
    init_seed(given.seed, config["reproducibility"])
    model = DIN(config, train.dataset)
    unit = [4 * 2 * EMBEDDING, ATTENTION_UNITS]
    model.attention = SequenceAttLayer(
        model.attention.mask_mat, unit, activation="ReLU", softmax_stag=False, return_seq_weight=False
    )
    model.attention.apply(model._init_weights)
    return Trainer(config, model), train, test


def probabilities(model: Any, batches: Iterable[Any]) -> tuple[Any, Any]:
    """Return the probabilities of a loader's samples, and their labels."""
    import torch

    model.eval()
    with torch.no_grad():
        pairs = [(model.predict(batch), batch["label"]) for batch, *_ in batches]
    scores, labels = zip(*pairs, strict=True)
    return torch.cat(scores).numpy(), torch.cat(labels).numpy()


def bytes_of(loader: Any) -> float:
    """Return the bytes of one sample in its loader."""
    columns = loader.dataset.inter_feat.interaction.values()
    return float(sum(column.nbytes for column in columns) / len(loader.dataset))


def train(given: Given) -> tuple[dict[str, Any], Any]:
    started = time.perf_counter()
    test = first(flat_set(given.data, "test", given.shape), FEW)
    count = write_all(given, train=window_samples(given), test=test)
    written = time.perf_counter() - started
    trainer, batches, _ = prepare(given)
    window = Window(batches, given, batch_samples=given.batch)
    prepared = time.perf_counter() - started
    trainer._train_epoch(window, 0)
    facts = {"peak_mb": peak_mb(), "prepare_s": prepared, "write_s": written, "prepared_samples": count}
    return window.result() | facts | {"bytes_per_sample": bytes_of(batches)}, trainer.model


def quality(given: Given) -> tuple[dict[str, Any], Any]:
    started = time.perf_counter()
    count = write_all(given, train=None, test=first(flat_set(given.data, "test", given.shape), None))
    written = time.perf_counter() - started
    trainer, batches, test = prepare(given)
    facts = {"write_s": written, "prepared_samples": count, "bytes_per_sample": bytes_of(batches)}
    prepared = time.perf_counter() - started
    trainer._train_epoch(batches, 0)
    seconds = time.perf_counter() - started - prepared
    peak = peak_mb()
    probability, label = probabilities(trainer.model, test)
    facts |= {"auc": auc(label, probability), "logloss": logloss(label, probability), "epoch_s": seconds}
    return facts | {"peak_mb": peak, "prepare_s": prepared}, trainer.model


def score(given: Given) -> tuple[dict[str, Any], Any]:
    """Time candidates of the user with the longest history: its loader over rows that are padded already, `predict`."""
    columns = first(flat_set(given.data, "test", given.shape), None)
    longest = int(np.argmax(columns["prefix"]))
    asked = first(columns, given.candidates)
    length = manifest_of(given.data)["length"]
    asked |= {"user": np.full(given.candidates, columns["user"][longest]), "prefix": np.full(given.candidates, length)}
    write_all(given, train=FEW, test=asked)
    trainer, _, test = prepare(given)

    def call() -> object:
        return probabilities(trainer.model, test)

    return timed_calls(call, seconds=given.seconds) | {"history": length}, trainer.model


def main() -> None:
    given = parse(__doc__, tasks=("train", "quality", "score"), models=("din",))
    import torch

    torch.set_num_threads(given.threads)
    sys.argv = sys.argv[:1]  # it reads the command line as its own
    for name in ("recbole.quick_start", "recbole.trainer"):
        importlib.import_module(name)  # before the clock starts
    given = replace(given, data=given.data.absolute())
    with tempfile.TemporaryDirectory() as logs:
        os.chdir(logs)  # where it leaves its log folders
        numbers, model = {"train": train, "quality": quality, "score": score}[given.task](given)
        os.chdir(given.data)
    shutil.rmtree(folder_of(given).parent)
    first_layer = next(m for m in model.dnn_mlp_layers.modules() if isinstance(m, torch.nn.Linear))
    versions = {name: importlib.metadata.version(name) for name in ("recbole", "torch", "numpy")}
    print_result(numbers, system="RecBole", versions=versions, tower_in=first_layer.in_features)


if __name__ == "__main__":
    main()
