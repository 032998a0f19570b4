"""Which systems are measured, and what of them."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from settings import BATCH, MODELS

OURS, PLAIN = "Sostenuto", "Sostenuto, torch only"
QUALITY_RATE = 5e-3  # learning rate: 160,000 samples are few steps
LONG, LONG_BATCH = 5_000, 128  # padded batches of long histories have to be small, and then everybody's are


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """Something that is measured: a driver and the Python it runs in."""

    title: str
    driver: str
    python: str
    models: tuple[str, ...] = ("din",)
    more: tuple[str, ...] = ()  # arguments


PEERS: dict[str, dict[str, Any]] = {
    "fuxictr": {"title": "FuxiCTR", "driver": "fuxictr_driver.py", "models": MODELS},
    "deepctr": {"title": "DeepCTR-Torch", "driver": "deepctr_driver.py"},
    "rechub": {"title": "torch-rechub", "driver": "rechub_driver.py"},
    "recbole": {"title": "RecBole", "driver": "recbole_driver.py"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What is measured by every system that can."""

    task: str
    model: str
    length: int
    shape: str  # single: 1 candidate a request; shared: 20 candidates share a history
    candidates: int  # of the user that is scored; 0 in other tasks

    @property
    def kind(self) -> str:
        return "easy" if self.task == "quality" else "plain"

    @property
    def batch(self) -> int:
        return LONG_BATCH if self.length >= LONG else BATCH

    def __str__(self) -> str:
        asked = f" {self.candidates} candidates" if self.candidates else ""
        return f"{self.task} {self.model} L={self.length} {self.shape}{asked}"


def cells(given: argparse.Namespace) -> Iterator[Cell]:
    """Yield what was asked for; one shape is enough to score one user or to compare AUC."""
    for task, model, length, shape in itertools.product(given.tasks, given.models, given.lengths, given.shapes):
        if task == "train" or shape == given.shapes[0]:
            for candidates in given.candidates if task == "score" else [0]:
                yield Cell(task=task, model=model, length=length, shape=shape, candidates=candidates)


def systems_of(given: argparse.Namespace) -> list[System]:
    both: dict[str, Any] = {"driver": "sostenuto_driver.py", "python": sys.executable, "models": MODELS}
    found = [System(title=OURS, **both)]
    if given.plain:
        found.append(System(title=PLAIN, more=("--backend", "plain"), **both))
    return found + [System(python=python, **PEERS[name]) for name, python in given.peer]
