"""Sostenuto on the same data: its model classes, loss, step and optimiser, over a loader of memory-mapped slices.

    python benchmarks/peers/sostenuto_driver.py train DATA --model din

`train` measures samples/s and peak memory; `quality` trains one epoch and scores the test samples; `score` ranks
candidates of one user, once with the state encoded in the call and once with the cached state. The last line of the
output is JSON. Batches are collated in the same thread, as the peer does with num_workers=0.

What the peer's model does not have is switched off where the configuration can: match features, bins, fixed vectors,
wide path, gap values, decayed buckets, auxiliary loss of DIEN, dropout, decay. The README says what is left.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Window, auc, logloss, peak_mb, print_result, read_set, timed_calls
from settings import (
    ATTENTION_UNITS,
    EMBEDDING,
    EMBEDDING_STD,
    EXACT_DIM,
    GRADIENT_NORM,
    KEPT,
    ROW_RATE,
    SEARCHED,
    SHORT,
    TOWER_UNITS,
    Given,
    parse,
)

WORD = 64  # bits; ETA fills whole words, and fewer cost as much
HOUR_MS = 3_600_000  # between two behaviours; the data have no times, the model asks for some


class Slices:
    """Batches of requests: histories are slices of the memory-mapped array, joined; nothing is padded or repeated."""

    def __init__(self, data: Path, split: str, shape: str, *, batch: int, seed: int | None) -> None:
        self.columns = read_set(data, split, shape)
        self.candidates = int(self.columns["item"].shape[1])
        self.requests = max(batch // self.candidates, 1)
        self.history = np.load(data / "history_item.npy", mmap_mode="r")
        self.starts = np.load(data / "history_offsets.npy")[:-1]
        self.category = np.load(data / "item_category.npy").astype(np.int64)[:, None]
        self.seed = seed

    def __len__(self) -> int:
        return -(-len(self.columns["user"]) // self.requests)

    def held(self) -> dict[str, float]:
        """Return the number of samples, and the bytes of one on disk or in memory, its share of histories included."""
        arrays = [*self.columns.values(), self.history, self.starts, self.category]
        count = self.columns["label"].size
        return {"prepared_samples": count, "bytes_per_sample": sum(array.nbytes for array in arrays) / count}

    def __iter__(self) -> Iterator[Any]:
        order = np.arange(len(self.columns["user"]))
        if self.seed is not None:
            order = np.random.default_rng(self.seed).permutation(order)
        for at in range(0, len(order), self.requests):
            yield self.batch(order[at : at + self.requests])

    def batch(self, rows: Any) -> Any:
        columns = {name: column[rows] for name, column in self.columns.items()}
        return self.collate(columns["user"], columns["prefix"], columns["item"], columns["label"])

    def collate(self, user: Any, prefix: Any, candidates: Any, label: Any) -> Any:
        """Put histories (B,) and candidates (B, C) together."""
        import torch

        from sostenuto.features.collation import joined_slices
        from sostenuto.schema.histories import Candidates, Context, History, RequestBatch

        count, each = candidates.shape
        start, length = self.starts[user], prefix.astype(np.int64)
        item = joined_slices(self.history, start, start + length).astype(np.int64)
        offsets = np.concatenate(([0], np.cumsum(length)))
        place = np.arange(len(item)) - np.repeat(offsets[:-1], length)
        target = candidates.ravel().astype(np.int64)
        zeros = torch.zeros(len(item), dtype=torch.int64)
        return RequestBatch(
            histories=History(
                offsets=torch.from_numpy(offsets),
                item=torch.from_numpy(item),
                category=torch.from_numpy(self.category[item]),
                time_ms=torch.from_numpy(place * HOUR_MS),
                action=zeros,
                value=torch.zeros(len(item)),
                place=zeros,
            ),
            candidates=Candidates(
                offsets=torch.arange(count + 1) * each,
                item=torch.from_numpy(target),
                category=torch.from_numpy(self.category[target]),
                match=torch.zeros(len(target), 0),
            ),
            context=Context(time_ms=torch.from_numpy(length * HOUR_MS), place=torch.zeros(count, dtype=torch.int64)),
            labels=torch.from_numpy(label.ravel().astype(np.float32)),
            list_id=torch.zeros(len(target), dtype=torch.int64),
            request=torch.arange(count),
            user=torch.from_numpy(user.astype(np.int64)),
        )


def sizes(given: Given) -> dict[str, Any]:
    """Return what the configuration of the model is given."""
    wanted: dict[str, Any] = {
        "item_dim": EMBEDDING,
        "category_dim": EMBEDDING,
        "vector_dim": 0,
        "key_vector_dim": 0,
        "attention_units": (ATTENTION_UNITS,),
        "attention_activation": "relu",
        "tower_units": TOWER_UNITS,
        "tower_activation": "relu",
        "dropout": 0.0,
        "wide": False,
        "bins": 0,
        "table_std": EMBEDDING_STD,
        "gaps": False,
        "products": False,
    }
    if given.model == "dien":
        return wanted | {"units": 2 * EMBEDDING, "auxiliary_weight": 0.0}
    wanted["normalise"] = "none"
    if given.model == "din":
        return wanted
    wanted["short_recent"] = SHORT
    if given.model == "sdim":
        hashes = {"num_hashes": given.signatures * given.hash_bits, "hash_bits": given.hash_bits}
        return wanted | hashes | {"half_life_days": ()}
    wanted |= {"kept": KEPT, "heads": 1, "head_dim": EXACT_DIM}
    if given.model == "sim_soft":
        return wanted | {"search_dim": EXACT_DIM, "search_units": TOWER_UNITS}
    return wanted | ({"hash_bits": WORD * -(-given.eta_bits // WORD)} if given.model == "eta" else {})


def build(given: Given) -> Any:
    """Return the model with the sizes of `settings.py`, all else off."""
    from sostenuto.models import table
    from sostenuto.schema.features import FeatureSpec, Field

    manifest = json.loads((given.data / "manifest.json").read_text(encoding="utf-8"))
    features = FeatureSpec(
        num_items=manifest["item_rows"],
        num_item_rows=manifest["item_rows"],
        categories=(Field(name="category", kind="categorical", size=manifest["category_rows"]),),
    )
    config = table.config_class(given.model)(**sizes(given))
    return table.build(given.model, config, features, seed=given.seed)


def training_config(given: Given) -> Any:
    """Adam on everything at one constant rate, clipped as the peer clips."""
    from sostenuto.training.config import TrainingConfig

    return TrainingConfig(
        learning_rate=given.learning_rate,
        table_learning_rate=ROW_RATE * given.learning_rate,
        weight_decay=0.0,
        table_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        max_grad_norm=GRADIENT_NORM,
        weighting="candidate",
        precision=given.precision,
        seed=given.seed,
    )


def train_epoch(given: Given, model: Any, batches: Any) -> None:
    from sostenuto.training.loop import train_step
    from sostenuto.training.losses import objective_named
    from sostenuto.training.optimiser import RankerOptimiser
    from sostenuto.training.process_memory import keep_freed

    config = training_config(given)
    optimiser, objective = RankerOptimiser(model, config), objective_named("bce")
    keep_freed()
    model.train()
    for step, batch in enumerate(batches, 1):
        train_step(model, batch, optimiser, objective, config, 1.0, step)


def train(given: Given) -> tuple[dict[str, Any], Any]:
    model = build(given)
    started = time.perf_counter()
    batches = Slices(given.data, "train", given.shape, batch=given.batch, seed=given.seed)
    window = Window(batches, given, batch_samples=batches.requests * batches.candidates)
    facts = {"prepare_s": time.perf_counter() - started} | batches.held()
    train_epoch(given, model, window)
    return window.result() | {"peak_mb": peak_mb()} | facts, model


def quality(given: Given) -> tuple[dict[str, Any], Any]:
    import torch

    from sostenuto.training.losses import objective_named

    model = build(given)
    started = time.perf_counter()
    batches = Slices(given.data, "train", given.shape, batch=given.batch, seed=given.seed)
    facts = {"prepare_s": time.perf_counter() - started} | batches.held()
    started = time.perf_counter()
    train_epoch(given, model, batches)
    facts |= {"epoch_s": time.perf_counter() - started, "peak_mb": peak_mb()}
    model.eval()
    test = Slices(given.data, "test", given.shape, batch=given.batch, seed=None)
    with torch.inference_mode():
        output = objective_named("bce").output
        logits = torch.cat([output(model, batch).logits for batch in test])
    label, probability = test.columns["label"].ravel(), logits.double().sigmoid().numpy()
    return facts | {"auc": auc(label, probability), "logloss": logloss(label, probability)}, model


def score(given: Given) -> tuple[dict[str, Any], Any]:
    """Time candidates of the user with the longest history: collate, encode, score; and score alone."""
    import torch

    model = build(given).eval()
    slices = Slices(given.data, "test", given.shape, batch=given.batch, seed=None)
    longest = int(np.argmax(slices.columns["prefix"]))
    user = slices.columns["user"][longest : longest + 1]
    prefix = np.array([slices.starts[1] - slices.starts[0]])
    candidates = slices.columns["item"].ravel()[None, : given.candidates]
    label = np.zeros(candidates.shape, np.int8)

    @torch.inference_mode()
    def call() -> object:
        batch = slices.collate(user, prefix, candidates, label)
        return model(batch.histories, batch.candidates, batch.context).logits.numpy()

    batch = slices.collate(user, prefix, candidates, label)
    with torch.inference_mode():
        state = model.encode(batch.histories)

    @torch.inference_mode()
    def cached() -> object:
        return model.score(state, batch.candidates, batch.context).logits.numpy()

    numbers: dict[str, Any] = dict(timed_calls(call, seconds=given.seconds))
    numbers["cached"] = timed_calls(cached, seconds=given.seconds)
    return numbers | {"history": int(prefix[0])}, model


def main() -> None:
    given = parse(__doc__, tasks=("train", "quality", "score"))
    os.environ["SOSTENUTO_BACKEND"] = given.backend  # read once, when the first operation asks
    import torch

    from sostenuto.native.library import library

    torch.set_num_threads(given.threads)
    numbers, model = {"train": train, "quality": quality, "score": score}[given.task](given)
    found = library()
    numbers["native"] = None if found is None else found.processor
    versions = {name: importlib.metadata.version(name) for name in ("sostenuto", "torch", "numpy")}
    tower = (model.two_stage.head if given.model in SEARCHED else model).tower
    print_result(numbers, system="Sostenuto", versions=versions, tower_in=tower.layers[0].in_features)


if __name__ == "__main__":
    main()
